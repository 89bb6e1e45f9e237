# SPDX-License-Identifier: Apache-2.0
"""A report for a terminal: plain, greppable text of the given width, colour only as an addition.

rich lays out and wraps; everything is handed to it as ``Text``, so that nothing in a
name from the target is ever taken for markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import takewhile

from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ebpftrace import frames
from ebpftrace.model import Calls, EndedBy, Failures, Finding, Report, Verdict
from ebpftrace.report import finding_text
from ebpftrace.report.headline import Tone, next_step, title, verdict_lines
from ebpftrace.report.tables import NARROWEST, WIDTH, wrapped
from ebpftrace.report.view import ThreadGroup, View, select, thread_groups
from ebpftrace.text import (
    change,
    count,
    cpu_time,
    duration,
    error_name,
    escape,
    inside,
    pid_inside,
    plural,
    searches,
    shorten,
    size,
    wall,
)

_INDENT = 3
_LABEL = 12
_HEAD_LABEL = 9
_GAP = 2
_NAME_WIDTH = 16
_PLACES_SHOWN = 3
_NARROWEST_SITE = 16

_TONES = {Tone.LEAK: "bold red", Tone.UNSURE: "bold yellow", Tone.CLEAN: "bold green"}
_HEAD, _FAINT = "bold", "dim"
_SCREEN = 24
"""Lines of a page from which on its first line may have left the screen."""

_THREAD_COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("TID", "right"),
    ("THREAD", "left"),
    ("STATE", "left"),
    ("MAPPINGS", "right"),
    ("BYTES", "right"),
    ("BRK", "right"),
)
_OPTIONAL = ("BRK", "STATE")
"""Columns that are left out if the place needs their space, in this order."""
_ENDED = {
    EndedBy.DURATION: "",
    EndedBy.INTERRUPT: ", interrupted",
    EndedBy.TARGET_EXIT: ", ended because the target exited",
    EndedBy.EXEC: ", ended because the target called exec",
    EndedBy.INTERVAL: ", tracing continues",
}


def render(
    report: Report, view: View, *, width: int = WIDTH, color: bool = False, verdict_again: bool = False
) -> str:
    """The report as text; no line is wider than ``width`` cells (at least 60), none ends in spaces.

    ``verdict_again``: a report that fills a screen ends with its verdict too.
    """
    width = max(width, NARROWEST)
    sink = io.StringIO()
    console = Console(
        file=sink,
        width=width,
        force_terminal=color,
        no_color=not color,
        color_system="standard" if color else None,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(_page(report, view, width))
    if verdict_again and sink.getvalue().count("\n") > _SCREEN:
        console.print(Group(Text(), _verdict(report, width)))
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def _page(report: Report, view: View, width: int) -> Group:
    selection = select(report, view)
    parts: list[RenderableType] = [_verdict(report, width), Text(), _head(report, width)]
    for number, finding in enumerate(selection.leaks, start=1):
        parts += [Text(), *_finding(number, finding, report, width)]
    if selection.undecided:
        parts += [Text(), Text("Cannot tell", style=_HEAD)]
        parts += _short(selection.undecided, report.ended_by, width)
    if selection.accepted:
        parts += [Text(), Text("Accepted", style=_HEAD)]
        parts += _accepted(selection.accepted, width)
    threads = _threads(report, view, width)
    if threads:
        parts += [Text(), *threads]
    if selection.others:
        parts += [Text(), Text("Not a leak", style=_HEAD)]
        parts += _short(selection.others, report.ended_by, width)
    left_out = selection.left_out
    if left_out.findings:
        hidden = f"Not shown: {plural(left_out.findings, 'finding')}, {size(left_out.size)}"
        parts += [Text(), Text(f"{hidden} (--top, --show, --min-bytes)")]
    closing = _closing(report)
    if closing:
        parts += [Text(), _grid(closing, width)]
    return Group(*parts)


def _verdict(report: Report, width: int) -> RenderableType:
    return Group(*(_hanging(line, _TONES[tone], width) for tone, line in verdict_lines(report)))


def _hanging(line: str, style: str, width: int, after: str = ": ") -> RenderableType:
    """A line; if it is wrapped, its part up to ``after`` is a label to the left of the rest."""
    first, _, rest = line.partition(after)
    if not rest:
        return Text(line, style=style)
    label = f"{first}{after}"
    if cell_len(label) > width // 2:
        return Text("\n".join(wrapped(line, width=width, cut=False)), style=style)
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    lines = wrapped(rest, width=max(width - cell_len(label), 1), cut=False)
    grid.add_row(Text(label, style=style), Text("\n".join(lines), style=style))
    return grid


def _head(report: Report, width: int) -> RenderableType:
    target, memory = report.target, report.memory
    changes = [
        change(memory.virt_start, memory.virt_end),
        change(memory.rss_start, memory.rss_end),
        change(target.threads_start, target.threads, count),
    ]
    virt, rss, threads = (f" ({suffix})" if suffix and report.seconds > 0 else "" for suffix in changes)
    facts = [f"VIRT {size(memory.virt_end)}{virt}", f"RSS {size(memory.rss_end)}{rss}"]
    if target.threads is not None:
        facts.append(f"{plural(target.threads, 'thread')}{threads}")
    pid = pid_inside(target.pid, target.inner_pid)
    rows = [("target", f"{escape(target.comm)} ({pid}): {', '.join(facts)}")]
    if target.exe:
        rows.append(("", shorten(escape(target.exe), width - _HEAD_LABEL)))
    rows.append(("window", _window(report)))
    if report.outstanding_mappings:
        mapped = plural(report.outstanding_mappings, "stack" if report.threads_only else "mapping")
        when = "and mapped when it ended" if report.ended_by.by_target else "and still mapped"
        rows.append(("", f"{mapped} made in it {when}: {size(report.outstanding_bytes)}"))
    if report.threads_only:
        rows.append(
            ("not seen", "mappings that are no stacks of threads: with --threads-only none is traced")
        )
    step = next_step(report)
    if step is not None:
        rows.append(("next", f"{step.command}    {step.finds}"))
    return _grid(rows, width, _HEAD_LABEL)


def _window(report: Report) -> str:
    if report.seconds <= 0:
        return "none: the state at this moment, without tracing"
    ended = report.clock.wall_ns(report.ended_at)
    began = ended - round(report.seconds * 1e9)
    why = _ENDED[report.ended_by]
    if report.executed:
        why = f"{why} of {escape(report.executed)}"
    span = f"{duration(report.seconds)}, {wall(began, ended)} to {wall(ended, ended)}{why}"
    lost = "see LOST above" if report.losses.any else "nothing lost"
    return f"{span}: {_calls(report.calls, report.threads_only)}; {lost}"


def _calls(calls: Calls, threads_only: bool) -> str:
    system_calls = (
        (calls.mmap, "mmap"),
        (calls.munmap, "munmap"),
        (calls.mremap, "mremap"),
        (calls.brk, "brk"),
    )
    kinds = (*(() if threads_only else system_calls), (calls.clone, "clone"))
    seen = [f"{count(number)} {name}{_failed(calls.failed_of(name), number)}" for number, name in kinds]
    if calls.fork:
        seen.append(f"{count(calls.fork)} fork")
    return ", ".join([*seen, plural(calls.thread_exit, "thread exit")])


def _failed(failures: Sequence[Failures], calls: int) -> str:
    """Return a line with the number of these calls that failed, and their errors."""
    if not failures:
        return ""
    number = sum(one.times for one in failures)
    how_many = "all failed" if number == calls else f"{count(number)} failed"
    return f" ({how_many}: {', '.join(error_name(one.error) for one in failures)})"


def _finding(number: int, finding: Finding, report: Report, width: int) -> list[RenderableType]:
    heading = f"{number}. {finding.verdict.value}: {title([finding])}, mapped {_when(finding)}"
    width_left = width - _INDENT - _LABEL
    return [
        _hanging(heading, _HEAD, width, after=". "),
        _indented(_grid(finding_text.rows(finding, report, width_left), width - _INDENT)),
    ]


def _when(finding: Finding) -> str:
    if finding.before_attach:
        return "before attach"
    before = finding.older.number
    return f"in the window, {count(before)} before attach" if before else "in the window"


def _short(findings: Iterable[Finding], ended_by: EndedBy, width: int) -> list[RenderableType]:
    """For all findings of one kind that the same evidence decides: a line, and where they come from."""
    names = {
        Verdict.JUST_EXITED: "at its end" if ended_by.by_target else "not yet",
    }
    similar: dict[tuple[Verdict, tuple[str, ...]], list[Finding]] = {}
    for finding in findings:
        similar.setdefault((finding.verdict, finding.evidence[:1]), []).append(finding)
    parts: list[RenderableType] = []
    for (verdict, evidence), group in similar.items():
        line = f"{names.get(verdict, verdict.value)}: {title(group)}"
        line += "".join(f": {escape(why)}" for why in evidence)
        parts.append(_indented(_hanging(line, "", width - _INDENT)))
        places = _places(group, width - 2 * _INDENT)
        if places:
            parts.append(Padding(Text(places), (0, 0, 0, 2 * _INDENT)))
    return parts


def _places(findings: Sequence[Finding], width: int) -> str:
    """Return the user's functions that most of them come from; empty if they are not known."""
    numbers: dict[str, int] = {}
    for site in (site for finding in findings for site in finding.sites):
        frame = frames.culprit(site.stack)
        if frame is not None:
            name = frames.site(frame, width // 2)
            numbers[name] = numbers.get(name, 0) + site.count
    if not numbers:
        return ""
    most = sorted(numbers.items(), key=lambda item: -item[1])
    shown = [f"{count(number)} at {name}" for name, number in most[:_PLACES_SHOWN]]
    rest = sum(finding.count for finding in findings) - sum(number for _, number in most[:_PLACES_SHOWN])
    if rest > 0:
        shown.append(f"{count(rest)} elsewhere or not known where")
    how = "created" if findings[0].verdict.of_stacks else "mapped"
    return f"{how} {', '.join(shown)}"


def _accepted(findings: Iterable[Finding], width: int) -> list[RenderableType]:
    """One line for each: the verdict, the place and why it is accepted."""
    lines = []
    for finding in findings:
        if finding.accepted is None:
            continue
        site = frames.culprit(finding.stack) or finding.start_routine
        where = f" at {frames.name(site)}" if site is not None else ""
        how = "suppressed by" if finding.is_suppressed else "the baseline has"
        line = f"{finding.verdict.value}: {title([finding])}{where}: {how} {escape(finding.accepted.why)}"
        lines.append(line)
    return [_indented(_hanging(line, "", width - _INDENT)) for line in lines]


def _threads(report: Report, view: View, width: int) -> list[RenderableType]:
    large = [total for total in report.threads if total.size + total.brk_growth >= view.min_bytes]
    groups = thread_groups(large)[: view.top] if view.show_all else []
    if not groups:
        return []
    rows = [_thread_cells(group) for group in groups]
    table = Table(box=None, padding=(0, _GAP, 0, 0), header_style=_HEAD, pad_edge=False)
    needs = {
        header: max([len(header), *(cell_len(row[index]) for row in rows)]) + _GAP
        for index, (header, _) in enumerate(_THREAD_COLUMNS)
    }
    width_left = width - _INDENT - sum(needs.values())
    for optional in _OPTIONAL:
        if width_left < _NARROWEST_SITE:
            width_left += needs.pop(optional)
    for header, justify in _THREAD_COLUMNS:
        if header in needs:
            table.add_column(header, justify=justify, no_wrap=True)
    with_site = width_left >= _NARROWEST_SITE
    if with_site:
        table.add_column("MOSTLY MAPPED AT", no_wrap=True)
    for row, group in zip(rows, groups):
        line = (frames.site(group.site, width_left) if group.site else "-",) if with_site else ()
        shown = [cell for cell, (header, _) in zip(row, _THREAD_COLUMNS) if header in needs]
        table.add_row(*(Text(cell) for cell in (*shown, *line)))
    when = "mapped when it ended" if report.ended_by.by_target else "still there"
    parts: list[RenderableType] = [
        Text(f"Mapped in the window and {when}, by owner", style=_HEAD),
        _indented(table),
    ]
    left_out = report.left_out
    hidden = len(report.threads) - sum(len(group.totals) for group in groups) + left_out.threads
    if hidden:
        shown_size = sum(total.owned for group in groups for total in group.totals)
        rest = sum(total.owned for total in report.threads) - shown_size + left_out.threads_size
        parts.append(_indented(Text(f"and {plural(hidden, 'more thread')}, {size(rest)}")))
    return parts


def _thread_cells(group: ThreadGroup) -> tuple[str, ...]:
    first = group.totals[0].thread
    number = len(group.totals)
    return (
        inside(first.id.tid, first.inner_tid) if number == 1 else plural(number, "thread"),
        shorten(_common_name([total.thread.name for total in group.totals]), _NAME_WIDTH) or "-",
        "alive" if group.alive else "exited",
        count(group.mappings),
        size(group.size),
        size(group.brk_growth) if group.brk_growth else "-",
    )


def _common_name(names: Sequence[str]) -> str:
    """The name that threads share, else what their names begin with and ``*``."""
    if len(set(names)) == 1:
        return escape(names[0])
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names)))
    return f"{escape(''.join(one for one, _ in pairs))}*"


_NAMES_SHOWN = 3
"""Limit of names for mappings without an explanation."""


def _closing(report: Report) -> list[tuple[str, str]]:
    rows = []
    if report.unexplained_bytes:
        lost = " (or lost events)" if report.losses.any else ""
        unexplained = f"mapped, but by no call that was seen{lost}"
        names = ", ".join(f"{size(of)} of {escape(name)}" for name, of in report.unexplained[:_NAMES_SHOWN])
        rows.append(("unexplained", f"{size(report.unexplained_bytes)} {unexplained}: {names or '?'}"))
    rows += [("note", escape(note)) for note in report.notes]
    searched = report.searched
    if searched.searches:
        extent = searches(searched.searches, searched.bytes_searched)
        rows.append(("searched", f"{extent}, {duration(searched.cpu_seconds)} of CPU time"))
    cost = report.cost
    if cost is not None:
        rows.append(("tracer", cpu_time(cost.cpu_seconds, report.seconds)))
        if cost.bpf_seconds is not None:
            rows.append(("in kernel", _kernel_cost(cost.bpf_seconds, cost.bpf_runs or 0)))
    return rows


def _kernel_cost(seconds: float, runs: int) -> str:
    each = f", {seconds / runs * 1e9:.0f} ns each" if runs else ""
    return f"{duration(seconds)} in {plural(runs, 'run')} of our programs{each}"


def _indented(block: RenderableType) -> Padding:
    return Padding(block, (0, 0, 0, _INDENT))


def _grid(rows: Iterable[tuple[str, str]], width: int, label_width: int = _LABEL) -> Table:
    grid = Table.grid(padding=0)
    grid.add_column(width=label_width, no_wrap=True)
    grid.add_column(overflow="fold")
    for label, line in rows:
        lines = wrapped(line, width=width - label_width, cut=False)
        grid.add_row(Text(label, style=_FAINT), Text("\n".join(lines)))
    return grid
