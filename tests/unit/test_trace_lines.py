# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501 - lines are what is tested here
"""Lines of the call trace: what strace 6.1 printed for the same calls, and what it never meets."""

from __future__ import annotations

import re
import struct
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Clock, Frame, Stack, StackSource
from ebpftrace.strace.arguments import arguments
from ebpftrace.strace.events import (
    CloneMemory,
    Ended,
    Event,
    Executed,
    Executes,
    Leaves,
    Ordered,
    Returned,
    Stacked,
    Text,
)
from ebpftrace.strace.format import Style, Transcript, summary_of_losses
from ebpftrace.strace.values import error, text

U64 = st.integers(0, (1 << 64) - 1)
CLOCK = Clock(monotonic_ns=0, realtime_ns=1_700_000_000_000_000_000)
NOBODY_KNOWS = 0xFFFFFFFFFFFFFFFF


def returned(
    name: str, *values: int, result: int = 0, at: int = 1, lost: int = 0, **more: object
) -> Returned:
    padded = (*values, *[0] * (6 - len(values)))
    call = Returned(at, 31152, 31152, name, padded, result, 0, lost)
    return call._replace(**more)  # type: ignore[arg-type]


def transcript(style: Style = Style()) -> Transcript:  # noqa: B008
    return Transcript(style, CLOCK)


def lines(*events: Event, style: Style = Style()) -> list[str]:  # noqa: B008
    one = transcript(style)
    return [line for event in events for line in one.lines(event)]


def test_the_line_that_engineers_grep_for() -> None:
    call = returned("mmap", 0, 10489856, 3, 0x20022, NOBODY_KNOWS, 0, result=0x7FAAE0E49000)
    clock = time.strftime("%H:%M:%S", time.localtime(1_700_000_000))
    assert lines(call, style=Style(times=1)) == [
        f"31152 {clock} mmap(NULL, 10489856, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK, -1, 0)"
        " = 0x7faae0e49000\n"
    ]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (returned("mmap", 0, 3, 1, 1, 3, 0x2000, result=5 << 12), "mmap(NULL, 3, PROT_READ, MAP_SHARED, 3, 0x2000) = 0x5000"),
        (returned("munmap", 0x7F0000001000, 0, result=-22), "munmap(0x7f0000001000, 0)         = -1 EINVAL (Invalid argument)"),
        (returned("brk"), "brk(NULL)                         = 0"),
        (returned("mprotect", 0, 4096, 0x88, result=-12), "mprotect(NULL, 4096, PROT_SEM|0x80) = -1 ENOMEM (Cannot allocate memory)"),
        (returned("madvise", 0, 0, 4), "madvise(NULL, 0, MADV_DONTNEED)   = 0"),
        (returned("madvise", 0, 1, NOBODY_KNOWS), "madvise(NULL, 1, 0xffffffff /* MADV_??? */) = 0"),
        (returned("mremap", 4096, 1, 2, 1, 8192, result=4096), "mremap(0x1000, 1, 2, MREMAP_MAYMOVE) = 0x1000"),
        (returned("mremap", 4096, 1, 2, 3, 8192, result=8192), "mremap(0x1000, 1, 2, MREMAP_MAYMOVE|MREMAP_FIXED, 0x2000) = 0x2000"),
        (returned("mremap", 4096, 1, 2, 16, result=-22), "mremap(0x1000, 1, 2, 0x10 /* MREMAP_??? */) = -1 EINVAL (Invalid argument)"),
        (returned("fork", result=7), "fork()                            = 7"),
        (returned("fork", result=-513), "fork()                            = ? ERESTARTNOINTR (To be restarted)"),
        (returned("brk", result=-4095), "brk(NULL)                         = -1 (errno 4095)"),
        (returned("clone", 0x1200011, 0, 0, 0x7F00, result=9), "clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x7f00) = 9"),
        (returned("clone3", 0x1000, 63, result=-22), "clone3(0x1000, 63)                = -1 EINVAL (Invalid argument)"),
    ],
)  # fmt: skip
def test_a_call_is_a_line_as_strace_prints_it(call: Returned, shown: str) -> None:
    assert lines(call) == [f"31152 {shown}\n"]


def test_clone3_shows_what_the_call_left() -> None:
    words = (0x3D0F00, 0, 0x10, 0x20, 0, 0x7F0000000000, 0x7FFF00, 0x30, 0, 0, 0)
    memory = CloneMemory(words, fetched=88, parent_tid=1234, pidfd=None)
    call = returned("clone3", 0x7FF000, 88, result=1234, clone=memory)
    flags = "|".join(f"CLONE_{name}" for name in (
        "VM", "FS", "FILES", "SIGHAND", "THREAD", "SYSVSEM", "SETTLS", "PARENT_SETTID", "CHILD_CLEARTID"
    ))  # fmt: skip
    fields = (
        f"flags={flags}, child_tid=0x10, parent_tid=0x20, exit_signal=0, stack=0x7f0000000000, "
        "stack_size=0x7fff00, tls=0x30"
    )
    assert arguments(call) == f"{{{fields}}} => {{parent_tid=[1234]}}, 88"
    unread = call._replace(clone=memory._replace(parent_tid=None))
    assert arguments(unread) == f"{{{fields}}} => {{parent_tid=0x20}}, 88"
    assert arguments(call._replace(returned=-11)) == f"{{{fields}}}, 88"
    assert arguments(call._replace(clone=memory._replace(fetched=0))) == "0x7ff000, 88"


EXECUTES = Executes(
    at=5, tid=31152, tgid=31152, path=Text(1, b"/bin/x"), argv=0x10,
    strings=(Text(2, b"a\tb", True), Text(3, b"0" * 32, False), Text(0x33, None)), has_more=False,
    open_at=None, envp=0x20, variables=1, has_more_variables=False, lost=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (EXECUTES, f'"/bin/x", ["a\\tb", "{"0" * 32}"..., 0x33], 0x20 /* 1 var */'),
        (EXECUTES._replace(strings=(), variables=0), '"/bin/x", [], 0x20 /* 0 vars */'),
        (EXECUTES._replace(strings=(Text(2, b"a"),), has_more=True), '"/bin/x", ["a", ...], 0x20 /* 1 var */'),
        (EXECUTES._replace(strings=(Text(2, b"a"),), open_at=0x18), '"/bin/x", ["a", ... /* 0x18 */], 0x20 /* 1 var */'),
        (EXECUTES._replace(path=Text(0, None), argv=0, envp=0), "NULL, NULL, NULL"),
        (EXECUTES._replace(strings=(), open_at=0x10, variables=-1), '"/bin/x", 0x10, 0x20'),
        (EXECUTES._replace(strings=(), variables=1024, has_more_variables=True), '"/bin/x", [], 0x20 /* >= 1024 vars */'),
    ],
)  # fmt: skip
def test_execve_shows_what_it_was_given(call: Executes, shown: str) -> None:
    assert lines(call, returned("execve", result=0, at=9)) == [f"{f'31152 execve({shown}) ':40}= 0\n"]


def test_an_execve_whose_beginning_was_lost() -> None:
    assert lines(returned("execve")) == ["31152 execve(???)                       = 0\n"]


def test_a_thread_that_executes_takes_the_leaders_place() -> None:
    begun = EXECUTES._replace(tid=31153)
    leader_ended = Ended(6, 31152, 31152, 0, 0)
    taken = Executed(7, 31152, 31152, 31153, 0)
    shown = lines(begun, leader_ended, taken, returned("execve", at=8))
    assert shown[0] == "31152 +++ superseded by execve in pid 31153 +++\n"
    assert shown[1].startswith('31152 execve("/bin/x", [')
    assert len(shown) == 2
    # It was killed before it could.
    assert lines(begun, leader_ended, Ended(7, 31153, 31152, 9, 0)) == [
        "31152 +++ exited with 0 +++\n",
        "31153 +++ killed by SIGKILL +++\n",
    ]


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (0, "exited with 0"),
        (0x3400, "exited with 52"),
        (9, "killed by SIGKILL"),
        (0x8B, "killed by SIGSEGV (core dumped)"),
        (64, "killed by SIGRT_32"),
    ],
)
def test_exits_and_signals_are_lines(code: int, shown: str) -> None:
    ended = Ended(1, 7, 7, code, 0)
    assert lines(ended) == [f"7     +++ {shown} +++\n"]
    assert len(lines(ended, style=Style(ends=False))) == ("killed" in shown)


def test_a_call_that_never_returns() -> None:
    assert lines(Leaves(1, 31152, 31152, "exit", (0xFFFFFFFF,), 0)) == [
        "31152 exit(-1)                          = ?\n"
    ]


def test_times_are_as_the_options_ask() -> None:
    call = returned("fork", result=1, at=61_000_002_999, entered_at=61_000_001_000)
    later = call._replace(at=62_500_004_999, entered_at=62_500_003_999)
    for style, before, after in [
        (Style(times=3), "1700000061.000001 ", ""),
        (Style(took=True), "", " <0.000001>"),
        (Style(relative=True), "     0.000000 ", ""),
    ]:
        (line,) = lines(call, style=style)
        assert line == f"{f'31152 {before}fork() ':40}= 1{after}\n"
    assert lines(call, later, style=Style(relative=True))[1].startswith("31152      1.500002 fork()")
    stamped = lines(call, later, style=Style(times=2, relative=True))[1]
    assert re.match(r"31152 \d\d:\d\d:\d\d\.500003 \(\+ {5}1\.500002\) fork\(\)", stamped)


def test_a_call_has_the_time_when_it_began_although_lines_are_in_order_of_return() -> None:
    inner = returned("brk", at=3_000_000_000, entered_at=2_000_000_000)
    outer = returned("vfork", result=1, at=4_000_000_000, entered_at=1_500_000_000)
    shown = lines(inner, outer, Ended(5_000_000_000, 31152, 31152, 0, 0), style=Style(times=3, relative=True))
    assert [line.split()[1:4] for line in shown] == [
        ["1700000002.000000", "(+", "0.000000)"],
        ["1700000001.500000", "(+", "-0.500000)"],
        ["1700000005.000000", "(+", "3.500000)"],
    ]


def test_a_call_that_ran_when_the_trace_began_has_the_time_of_its_return() -> None:
    (line,) = lines(returned("fork", result=1, at=61_000_000_000), style=Style(times=3, took=True))
    assert line.startswith("31152 1700000061.000000 fork()")
    assert line.endswith("= 1\n")


def test_losses_come_before_the_call_that_reports_them() -> None:
    one = transcript()
    shown = [line for lost in (0, 3, 3, 4) for line in one.lines(returned("fork", result=1, lost=lost))]
    assert [line for line in shown if "lost" in line] == [
        "--- 3 calls lost ---\n",
        "--- 1 call lost ---\n",
    ]
    assert shown[1].startswith("---")
    assert list(one.losses(4)) == []
    assert list(one.losses(6)) == ["--- 2 calls lost ---\n"]


def test_what_was_lost_is_said_at_the_end() -> None:
    assert summary_of_losses(0, 0, 0) == ""
    assert summary_of_losses(1234, 0, 1) == "lost: 1,234 calls, 1 threads"


STACK = Stack(
    (
        Frame("mmap64", module="/lib/libc.so.6", offset=0x10A3A3, function_offset=0x13),
        Frame(None, module="/bin/\x1bx", offset=16),
    ),
    complete=True,
    source=StackSource.COPIED,
)


def test_stacks_follow_their_call() -> None:
    shown = [" > /lib/libc.so.6(mmap64+0x13) [0x10a3a3]\n", " > /bin/\\x1bx() [0x10]\n"]
    call = returned("fork", result=1, at=5)
    assert lines(call, Stacked(5, 31152, STACK))[1:] == shown
    # Of execve it is taken when it begins, and shown when it returns.
    result = lines(EXECUTES, Stacked(5, 31152, STACK), returned("execve", at=9))
    assert result[0].startswith("31152 execve(")
    assert result[1:] == shown
    cut = replace(STACK, complete=False, note="cut\n")
    assert lines(call, Stacked(5, 31152, cut))[-1] == " > (cut\\n)\n"


def test_errors_are_named_as_the_c_library_does() -> None:
    assert error(11) == "-1 EAGAIN (Resource temporarily unavailable)"
    assert error(35) == "-1 EDEADLK (Resource deadlock avoided)"
    assert error(514) == "? ERESTARTNOHAND (To be restarted if no handler)"


@given(st.binary(max_size=64))
def test_strings_can_be_read_back(content: bytes) -> None:
    shown = text(Text(1, content))
    assert shown.isascii()
    assert shown.isprintable()
    back = shown[1:-1].encode("ascii").decode("unicode_escape").encode("latin-1")
    assert back == content


@given(st.sampled_from(["mmap", "munmap", "mremap", "brk", "mprotect", "madvise", "clone", "clone3", "fork"]),
       st.lists(U64, min_size=6, max_size=6), st.integers(-(1 << 63), (1 << 63) - 1),
       st.binary(min_size=88, max_size=88), st.integers(0, 88))  # fmt: skip
def test_no_registers_break_a_line(
    name: str, values: list[int], result: int, memory: bytes, fetched: int
) -> None:
    clone = CloneMemory(struct.unpack("=11Q", memory), fetched, None, None)
    (line,) = lines(returned(name, *values, result=result, clone=clone))
    assert re.fullmatch(rf"31152 {name}\([ -~]*\) += [ -~]+\n", line)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), max_size=40), st.integers(0, 9))
def test_events_of_several_cpus_are_sorted_by_time(moments: list[tuple[int, int]], until: int) -> None:
    """All come out, sorted, and those of one task in the order in which they came."""
    moments = sorted(moments, key=lambda moment: moment[0])
    events = [
        returned("fork", result=index, at=at)._replace(tid=tid) for index, (at, tid) in enumerate(moments)
    ]
    ordered: Ordered[Returned] = Ordered()
    ordered.add(reversed([event for event in events if event.tid == 1]))
    ordered.add(event for event in events if event.tid != 1)
    first = ordered.take(until)
    rest = ordered.take(100)
    taken = first + rest
    assert all(event.at <= until for event in first)
    assert all(event.at > until for event in rest)
    assert sorted(event.returned for event in taken) == list(range(len(events)))
    assert [event.at for event in taken] == sorted(event.at for event in taken)
    for tid in (2, 3):
        own = [event.returned for event in taken if event.tid == tid]
        assert own == sorted(own)
