# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
import time
import unicodedata
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import report_strategies as strategies
import reports
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from steps import lines_run

from ebpftrace import frames
from ebpftrace.model import Certainty, EndedBy, Frame, Losses, Report, Site, Stack, Verdict
from ebpftrace.report.output import use_color
from ebpftrace.report.tables import WIDTH
from ebpftrace.report.terminal import render
from ebpftrace.report.view import View, select

ANSI = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=40)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def one_line(shown: str) -> str:
    """The text without its wrapping."""
    return re.sub(r"\s+", " ", shown)


def section(shown: str, title: str) -> str:
    """The block of lines that begins with ``title``, up to the next empty line."""
    found = re.search(rf"^{re.escape(title)}.*?(?=^\s*$|\Z)", shown, re.MULTILINE | re.DOTALL)
    assert found, f"no {title!r} in:\n{shown}"
    return found.group()


def test_production_case_says_what_the_engineer_needs_in_its_first_words() -> None:
    shown = render(reports.production(), View())
    assert one_line(shown).startswith(
        "LEAK (proved): 27,842 threads exited and were never joined: 272.0 GiB of their stacks still mapped, "
        "growing by 10244 KiB per minute, one every 60 s; explains 100 % of VIRT's +20488 KiB"
    )
    assert "app_server (PID 31108): VIRT 285.0 GiB (+20488 KiB), RSS 4.0 GiB (+24 KiB), 41 threads" in shown
    assert "nothing lost" in one_line(shown)
    assert "22:58:30 to 23:00:30" in shown


def test_what_leaked_before_the_trace_is_named_by_what_the_threads_ran() -> None:
    named = [
        replace(reports.never_joined_before_attach(number), start_routine=Frame(name))
        for number, name in ((9, "night_job"), (27_840, "minute_job"))
    ]
    verdict = replace(reports.production(), findings=tuple(named), seconds=0)
    reported = one_line(render(verdict, View()))
    assert reported.startswith("LEAK (proved): 27,849 threads exited and were never joined")
    assert "still mapped; they ran minute_job (27,840), night_job (9)" in reported
    both = replace(verdict, findings=(*named, reports.never_joined_in_window()))
    assert "they ran" not in render(both, View())


def test_finding_shows_owners_shape_stack_evidence_and_advice() -> None:
    block = section(render(reports.production(), View()), "2. never-joined-thread: 2 stacks")
    assert "31153 minute-job, lived 1.2 s, exited 23:00:01, created by 31110 timer" in block
    assert "10244 KiB = 10489856 bytes, guard 4 KiB" in block
    assert "PROT_NONE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK" in block
    assert "0x7faae0e49000-0x7faae184a000" in block
    assert "started at  acme::minute_job(void*)  src/acme/jobs.cpp:23  app_server+0x2a0c0" in block
    assert re.search(
        r"#5 acme::Timer::run\(\)  src/acme/timer.cpp:87  app_server\+0x2ac13$", block, re.MULTILINE
    )
    assert "(inlined)" in block
    assert "on glibc's list of stacks in use" in block
    assert "advice      pthread_join() these threads" in block
    order = [int(number) for number in re.findall(r"#(\d+) ", block)]
    assert order == list(range(8))


def test_findings_are_sorted_by_bytes_and_few_owners_are_named() -> None:
    shown = render(reports.production(), View())
    assert shown.index("27,840 stacks") < shown.index("2. never-joined-thread: 2 stacks")
    block = section(render(reports.raw_clone(15), View()), "1. abandoned-stack: 15 stacks")
    assert "4314 cloner, lived 310 us" in block
    assert "and 12 more" in block
    assert "one every 2 s" in block


def test_healthy_target_has_no_leak_and_says_what_is_not_one() -> None:
    shown = render(reports.healthy(), View())
    assert shown.startswith("No leak seen in 2 min\n")
    assert "LEAK" not in shown
    innocent = section(shown, "Not a leak")
    assert "stack-cache: 4 stacks, 32.0 MiB" in innocent
    assert "malloc-arena: 1 mapping, 64.0 MiB" in innocent


@pytest.mark.parametrize(("report", "reported"), [(reports.healthy(), False), (reports.lossy(), True)])
def test_lost_events_explain_nothing_where_none_were_lost(report: Report, reported: bool) -> None:
    shown = render(replace(report, unexplained_bytes=4096), View())
    assert "4096 B mapped, but by no call" in shown or "4 KiB mapped, but by no call" in shown
    assert ("lost events" in shown) is reported


def grown(report: Report, size: int) -> Report:
    start = 1 << 30
    return replace(report, memory=replace(report.memory, virt_start=start, virt_end=start + size))


def test_growth_that_is_no_leak_is_not_passed_over() -> None:
    healthy = reports.healthy()
    next_step = f"ebpftrace growth -p {healthy.target.pid}"
    assert next_step in render(grown(healthy, 1 << 20), View())
    made = 2 * reports.STACK_BYTES  # by the leak of the window
    assert next_step in render(replace(grown(reports.production(), 5 * made)), View())
    for other in (
        grown(healthy, 4096),
        grown(reports.production(), made),
        grown(reports.production(), 3 * made // 2),
        grown(replace(healthy, ended_by=EndedBy.TARGET_EXIT), 1 << 20),
        grown(replace(healthy, seconds=0.0), 1 << 20),
    ):
        assert next_step not in render(other, View())


def test_memory_that_is_filled_is_followed_by_page_faults() -> None:
    healthy = reports.healthy()
    step = f"ebpftrace growth -p {healthy.target.pid} --rss"

    def filled(report: Report, rss: int, virt: int = 0) -> str:
        start = 1 << 30
        memory = replace(
            report.memory, virt_start=start, virt_end=start + virt, rss_start=start, rss_end=start + rss
        )
        return render(replace(report, memory=memory), View())

    assert step in filled(healthy, 1 << 20)
    assert step in filled(healthy, 8 << 20, 10 << 20)
    assert step not in filled(healthy, 2 << 20, 10 << 20)  # then VIRT says more
    assert "which calls make VIRT grow" in filled(healthy, 2 << 20, 10 << 20)
    assert step not in filled(healthy, 4096)
    assert step not in filled(replace(healthy, ended_by=EndedBy.TARGET_EXIT), 1 << 30)
    assert step not in filled(replace(healthy, seconds=0.0), 1 << 30)
    # By stacks that leaked in the window, two of 12 KiB: hardly a reason.
    assert step in filled(reports.production(), 1 << 20)
    orphan = reports.production().findings[0].orphans[-1]._replace(rss=1 << 20)
    assert not orphan.outstanding.mapping.before_attach
    finding = replace(reports.production().findings[0], orphans=(orphan,))
    assert step not in filled(replace(reports.production(), findings=(finding,)), 3 << 19)


def test_losses_are_loud_and_forbid_a_clean_bill() -> None:
    shown = render(reports.lossy(), View())
    assert one_line(shown).count("LOST: 1,204 events, 17 mappings, 3 stacks could not be recorded") == 1
    assert "nothing lost" not in shown
    clean = one_line(render(replace(reports.healthy(), losses=Losses(threads=1)), View()))
    assert "this proves nothing" in clean
    assert "LOST: 1 thread birth could not be recorded" in clean
    assert "more may leak" in clean


def test_stacks_that_were_lost_hide_no_leak() -> None:
    """As of a program that ended before its files could be read."""
    shown = one_line(render(replace(reports.healthy(), losses=Losses(stacks=7)), View()))
    assert "LOST: 7 stacks could not be recorded; their callers are not known" in shown
    assert "nothing lost" not in shown
    assert "proves nothing" not in shown
    assert "more may leak" not in shown


def test_incomplete_and_unreliable_stacks_say_so() -> None:
    shown = render(reports.lossy(), View())
    assert "(incomplete: not all of its frames are known)" in shown
    assert "(3 of 40 copies differ)" in shown
    assert "2 pieces, 12 KiB of it left" in shown


def test_just_exited_owners_are_neither_leak_nor_clean() -> None:
    fresh = replace(reports.never_joined_in_window(), verdict=Verdict.JUST_EXITED, leak=False)
    shown = one_line(render(replace(reports.healthy(), findings=(fresh,)), View()))
    assert shown.startswith("No leak seen in 2 min; the owner of 2 mappings exited just before")
    assert "not yet: 2 mappings" in shown


def test_one_look_judges_stacks_only_and_names_threads_that_are_not_joined() -> None:
    waiting = replace(reports.never_joined_in_window(), verdict=Verdict.NOT_JOINED_YET, leak=False)
    look = replace(reports.healthy(), seconds=0.0)
    judged = "No leak seen; nothing was traced, so of mappings only stacks of threads were judged"
    assert one_line(render(look, View())).startswith(judged)
    shown = one_line(render(replace(look, findings=(waiting,)), View()))
    assert shown.startswith(f"{judged}; 2 threads have exited and are not joined so far")


def test_what_a_filter_hides_is_reported_and_the_verdict_stays() -> None:
    report = reports.production()
    shown = render(report, View(top=1, show_all=False))
    assert shown.startswith("LEAK (proved): 27,842 threads")
    assert "2. never-joined" not in shown
    assert "Not a leak" not in shown
    assert "Not shown: 3 findings" in shown
    assert "Not shown: 4 findings" in render(report, View(min_bytes=1 << 50))


def test_baseline_verdict_alone() -> None:
    report = replace(reports.production(), seconds=0.0, findings=(reports.never_joined_before_attach(3),))
    shown = render(report, View())
    assert shown.startswith("LEAK (proved): 3 threads exited and were never joined")
    assert "window   none" in shown
    assert "app_server (PID 31108): VIRT 285.0 GiB, RSS 4.0 GiB, 41 threads\n" in shown
    assert "mapped before attach" in shown


def test_long_stack_is_cut_in_its_middle() -> None:
    deep = replace(
        reports.TIMER_STACK, frames=tuple(Frame(f"level_{number}", module="/bin/x") for number in range(500))
    )
    report = replace(reports.raw_clone(2), threads=())
    report = replace(report, findings=(replace(report.findings[0], stack=deep),))
    shown = render(report, View())
    assert "level_0 " in shown
    assert "level_499 " in shown
    assert "... 468 frames ..." in shown
    assert len(shown.splitlines()) < 80


@HOSTILE
@given(strategies.any_report, st.integers(60, 140), st.booleans())
def test_any_report_fits_its_width_and_cannot_act_on_the_terminal(
    report: Report, width: int, show_all: bool
) -> None:
    view = View(show_all=show_all)
    shown = render(report, view, width=width)
    for line in shown.split("\n"):
        assert cell_len(line) <= width
        assert line == line.rstrip()
    bad = {
        character for character in shown if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    assert bad <= {"\n"}


@HOSTILE
@given(strategies.any_report)
def test_colour_adds_only_colour(report: Report) -> None:
    plain = render(report, View())
    coloured = render(report, View(), color=True)
    assert [line.rstrip() for line in ANSI.sub("", coloured).splitlines()] == plain.splitlines()


def test_a_long_thread_name_leaves_space_for_the_site() -> None:
    report = reports.raw_clone(1)
    total = report.threads[0]
    named = replace(total, thread=replace(total.thread, name="\x1b" * 15))
    shown = render(replace(report, threads=(named,)), View())
    row = next(line for line in shown.splitlines() if line.startswith("   4300 "))
    assert re.search(r"^   4300  \\x1b\S*\.\.\.\S*b  exited +1  40 KiB +-  main  reproducer.c:27$", row), row


def hostile(value: Any) -> Any:
    """The same report with an attack in each of its texts."""
    if isinstance(value, str):
        return "\x1b[2J\u202e\n\udcff[bold]"
    if isinstance(value, tuple):
        items = [hostile(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: hostile(getattr(value, field.name)) for field in fields(value)})
    return value


@pytest.mark.parametrize("make", [reports.production, reports.raw_clone, reports.healthy, reports.lossy])
def test_every_text_of_a_report_is_escaped(make: Callable[[], Report]) -> None:
    shown = render(hostile(make()), View())
    assert not set(shown) & set("\x1b\u202e\udcff")
    assert all(r"[2J" not in line or r"\x1b[2J\u202e" in line or "..." in line for line in shown.splitlines())


def test_innocent_findings_similar_share_a_line() -> None:
    report = replace(reports.healthy(), findings=(reports.stack_cache(), reports.stack_cache()))
    innocent = section(render(report, View()), "Not a leak")
    assert innocent.count("stack-cache") == 1
    assert "8 stacks, 64.0 MiB, RSS 32 KiB" in innocent


def test_innocent_findings_say_where_most_of_them_come_from() -> None:
    elsewhere = Stack((Frame("pool::grow()", "pool.cpp", 12, "/opt/app", 0x10),), True)
    sites = (Site(reports.TIMER_STACK, 2, 2 << 20), Site(elsewhere, 1, 1 << 20))
    finding = replace(reports.stack_cache(), sites=sites)
    innocent = section(render(replace(reports.healthy(), findings=(finding,)), View()), "Not a leak")
    reported = one_line(innocent).split("created ")[1]
    assert reported.startswith("2 at acme::spawn<&acme::minute_job>")
    assert ", 1 at pool::grow() pool.cpp:12, 1 elsewhere or not known where" in reported


def test_threads_that_died_with_their_process_need_no_second_reading() -> None:
    fresh = replace(reports.never_joined_in_window(), verdict=Verdict.JUST_EXITED, leak=False)
    report = replace(reports.healthy(), findings=(fresh,), ended_by=EndedBy.TARGET_EXIT)
    assert render(report, View()).startswith("No leak seen in 2 min\n")


@pytest.mark.parametrize("ended_by", list(EndedBy))
def test_what_is_reported_of_an_ended_target_was_so_when_it_ended(ended_by: EndedBy) -> None:
    fresh = replace(reports.never_joined_in_window(), verdict=Verdict.JUST_EXITED, leak=False)
    report = replace(reports.production(), ended_by=ended_by)
    shown = one_line(render(replace(report, findings=(*report.findings, fresh)), View()))
    now = ("still mapped", "made in it and still mapped", "and still there, by owner", "not yet: ")
    then = (
        "mapped when the target ended",
        "made in it and mapped when it ended",
        "and mapped when it ended, by",
        "at its end: ",
    )
    reported, unreported = (then, now) if ended_by in (EndedBy.TARGET_EXIT, EndedBy.EXEC) else (now, then)
    assert all(words in shown for words in reported)
    assert not any(words in shown for words in unreported)


def test_names_are_never_markup() -> None:
    report = reports.production()
    report = replace(report, target=replace(report.target, comm="[bold red]x[/bold red]:smile:"))
    assert "[bold red]x[/bold red]:smile:" in render(report, View())


@pytest.mark.parametrize("function", ["x" * 4096, "ns::" * 300 + "f<a, b>(int)", "f"])
@pytest.mark.parametrize("width", [60, 85])
def test_frame_line_keeps_function_and_module_readable(function: str, width: int) -> None:
    frame = Frame(
        function, "/src/" + "deep/" * 200 + "file.cpp", 42, "/opt/" + "d/" * 300 + "libx.so.1", 0x1234
    )
    line = frames.line(frame, width)
    assert cell_len(line) <= width
    assert "file.cpp:42" in line
    assert line.endswith("  libx.so.1+0x1234")
    assert line.startswith(function[:5])


@pytest.mark.parametrize("width", [42, 62, 82])
@pytest.mark.parametrize("long", ["function", "file", "module"])
def test_frame_in_lines_cuts_no_number(width: int, long: str) -> None:
    lengths = {"function": 5, "file": 5, "module": 5, long: 300}
    function, file, module = ("".join("abcdefghij"[i % 10] for i in range(n)) for n in lengths.values())
    first, *rest = frames.lines(Frame(function, file, 118, module, 0x2B1F0), width)
    assert all(cell_len(line) <= width for line in (first, *rest))
    assert re.search(r":118  \S+\+0x2b1f0$", rest[0] if rest else first)
    assert bool(rest) is (width < 82 or long != "function")
    assert rest == [] or first == frames.shorten(function, width)


def test_frame_without_a_place_has_one_line() -> None:
    for frame in (Frame("f"), Frame("f" * 500), Frame("f", None, 7, None, 9), Frame(None, None, 7, None, 9)):
        assert frames.lines(frame, 60) == [frames.line(frame, 60)]
        assert not set("79") & set(frames.line(frame, 60))


def test_frame_without_a_name_shows_the_whole_module_path() -> None:
    assert frames.line(Frame(None, module="/opt/a/libx.so", offset=0x10), 80) == "/opt/a/libx.so+0x10"
    made = Frame("Job.go", module="[jit]", offset=0x7FE912345678)
    assert frames.line(made, 80) == "Job.go  [jit] 0x7fe912345678"
    assert frames.line(Frame(None), 80) == "??"


@HOSTILE
@given(strategies.any_report, st.integers(1, 5), st.booleans(), st.integers(0, 1 << 40))
def test_a_view_loses_no_finding_and_no_thread(report: Report, top: int, show_all: bool, least: int) -> None:
    chosen = select(report, View(top, show_all, least))
    shown = list(chosen.shown)
    everything = [*shown, *chosen.hidden]
    assert sorted(map(id, everything)) == sorted(map(id, report.findings))
    assert len(chosen.leaks) <= top
    assert all(finding.size >= least for finding in shown)
    assert show_all or not chosen.others
    for group in (chosen.leaks, chosen.undecided, chosen.accepted, chosen.others):
        assert [finding.size for finding in group] == sorted((f.size for f in group), reverse=True)
    assert len(chosen.threads) + chosen.left_out.threads - report.left_out.threads == len(report.threads)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert use_color(Terminal(), no_color=False)
    assert not use_color(Terminal(), no_color=True)
    assert not use_color(io.StringIO(), no_color=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not use_color(Terminal(), no_color=False)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not use_color(Terminal(), no_color=False)


def test_default_width_is_the_one_promised() -> None:
    assert WIDTH == 100
    assert max(map(len, render(reports.production(), View()).splitlines())) <= WIDTH


def test_thirty_thousand_orphans_take_a_screen_and_little_work() -> None:
    def report(orphans: int) -> Report:
        return replace(reports.production(), findings=(reports.never_joined_before_attach(orphans),))

    many, few = report(30_000), report(300)
    assert lines_run(render, many, View()) - lines_run(render, few, View()) < 30_000 * 20
    assert len(render(many, View()).splitlines()) < 60


def test_the_first_line_says_which_part_of_the_growth_is_explained() -> None:
    report = grown(reports.production(), 8 * reports.STACK_BYTES)
    assert "; explains 25 % of VIRT's +80.0 MiB" in one_line(render(report, View()))
    assert "explains" not in render(grown(reports.production(), -reports.STACK_BYTES), View())
    assert "explains" not in render(replace(reports.production(), seconds=0.0), View())


def test_a_line_is_as_certain_as_the_least_certain_of_its_findings() -> None:
    proved = reports.never_joined_in_window()
    likely = replace(proved, certainty=Certainty.LIKELY)
    report = replace(reports.production(), findings=(proved, likely))
    assert render(report, View()).startswith("LEAK (likely): ")


def test_what_cannot_be_reported_is_the_first_line_and_not_under_not_a_leak() -> None:
    unknown = replace(
        reports.never_joined_in_window(7), verdict=Verdict.NOT_JOINED_YET, leak=False, undecided=True
    )
    healthy = reports.healthy()
    report = replace(healthy, findings=(*healthy.findings, unknown), undecided=7)
    shown = render(report, View())
    assert shown.startswith("CANNOT TELL: 7 stacks of exited threads, 70.0 MiB: whether they are leaked\n")
    assert "No leak seen" not in shown
    assert "not-joined-yet: 7 stacks" in section(shown, "Cannot tell")
    assert "not-joined-yet" not in section(shown, "Not a leak")
    both = replace(reports.production(), findings=(reports.never_joined_in_window(), unknown))
    first, second = render(both, View(), width=200).splitlines()[:2]
    assert first.startswith("LEAK (proved): 2 threads")
    assert second.startswith("CANNOT TELL: 7 stacks")
    assert "Cannot tell" in render(both, View(show_all=False)), "--show leaks hides no doubt"
