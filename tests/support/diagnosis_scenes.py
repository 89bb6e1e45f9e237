# SPDX-License-Identifier: Apache-2.0
"""Builds evidence for the tests of the diagnosis: threads, stacks, mappings, thread lists, searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from ebpftrace.diagnosis import Diagnosis, Evidence, diagnose
from ebpftrace.glibc import Cores
from ebpftrace.model import (
    Finding,
    Frame,
    Holder,
    Interval,
    ListedThread,
    Mapping,
    Outstanding,
    OwnedBy,
    Reach,
    ReadState,
    Search,
    Stack,
    StackSource,
    Suspect,
    Thread,
    ThreadId,
    ThreadLists,
    ThreadStart,
    Where,
)
from ebpftrace.vmas import Vmas

SECOND = 1_000_000_000
ATTACHED = 1000 * SECOND
REPORT = 1060 * SECOND
TGID = 4000
MAIN = Thread(ThreadId(TGID, 1), "app_server", TGID, before_attach=True)

STACK_BYTES = 10489856
STACK_FLAGS = 0x20022
ANONYMOUS = 0x22
HEAP_BYTES = 64 << 20
HEAP_FLAGS = 0x4022
PTHREAD_BYTES = 0x900
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"

READ = ThreadLists(ReadState.READ, libc="glibc 2.36", stack_cache_bytes=None)
ABSENT = ThreadLists(ReadState.ABSENT, "no symbols", libc="static glibc")
MUSL = ThreadLists(ReadState.ABSENT, "no glibc", libc="musl")
NO_LIBC = ThreadLists(ReadState.ABSENT, "no libc")

THREAD_STACK = Stack(
    (
        Frame("mmap64", module=LIBC),
        Frame("pthread_create@@GLIBC_2.34", module=LIBC),
        Frame("acme::Timer::on_minute()", module="/opt/app"),
        Frame("main", module="/opt/app"),
    ),
    True,
    StackSource.COPIED,
)
OWN_STACK = Stack(
    (Frame("mmap64", module=LIBC), Frame("take_stack", module="/opt/app"), Frame("main", module="/opt/app")),
    True,
    StackSource.COPIED,
)
THREAD_SITE, OWN_SITE = 7, 8
STACKS = {THREAD_SITE: THREAD_STACK, OWN_SITE: OWN_STACK}


def at(seconds: float) -> int:
    """A time so many seconds after attach."""
    return ATTACHED + round(seconds * SECOND)


def thread(tid: int, started_at: float, exited: Optional[float], tgid: int = TGID) -> Thread:
    return Thread(
        ThreadId(tid, at(started_at)),
        f"worker-{tid}",
        tgid,
        exited_at=None if exited is None else at(exited),
        creator=MAIN.id,
        creator_name=MAIN.name,
    )


def pthread_stack(
    number: int,
    started_at: float = 10.0,
    exited: Optional[float] = 11.0,
    site: int = 0,
    flags: int = STACK_FLAGS,
    tgid: int = TGID,
    size: int = STACK_BYTES,
    clone3: bool = True,
    made: Optional[float] = None,
    before_attach: bool = False,
    top: int = 0x1000,
) -> Outstanding:
    """A stack as glibc maps one, and the thread that clone put on it; by default it exited long ago.

    ``top`` is how far below the end of the mapping clone, not clone3, was told to begin.
    """
    start = 0x7F0000000000 + number * max(size, STACK_BYTES)
    owner = thread(5000 + number, started_at, exited, tgid)
    stack, stack_size = (start, size - 0x1000) if clone3 else (start + size - top, 0)
    run = ThreadStart(owner.id, owner.name, stack, stack_size, owner.exited_at, MAIN.id, MAIN.name)
    made_at = at(started_at if made is None else made) - 50_000
    if before_attach:
        mapping = Mapping((Interval(start, start + size),), None, None, None, None, 0)
        return Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, None, run)
    mapping = Mapping((Interval(start, start + size),), made_at, MAIN.id, 0, flags, site)
    return Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, MAIN, run)


def orphaned(
    number: int,
    made: float = 10.0,
    exited: float = 11.0,
    site: int = 0,
    size: int = 1 << 20,
    prot: int = 3,
    flags: int = ANONYMOUS,
    start: Optional[int] = None,
) -> Outstanding:
    """A mapping whose mapper exited."""
    start = 0x600000000000 + number * (128 << 20) if start is None else start
    owner = thread(20000 + number, made - 0.1, exited)
    mapping = Mapping((Interval(start, start + size),), at(made), owner.id, prot, flags, site)
    return Outstanding(mapping, owner, OwnedBy.MAPPED_IT, owner)


def listed_thread(interval: Interval, exited: bool = True, **changes: Any) -> ListedThread:
    """What glibc's thread lists say of the thread on this stack."""
    fields: dict[str, Any] = {
        "descriptor": interval.end - PTHREAD_BYTES,
        "tid": 0 if exited else 77,
        "start_routine": 0x401000,
        "stack": interval,
        "user_stack": False,
        "exited": exited,
    }
    return ListedThread(**{**fields, **changes})


def span(outstanding: Outstanding) -> Interval:
    return Interval(outstanding.mapping.start, outstanding.mapping.end)


def thread_lists(*threads: ListedThread, **changes: Any) -> ThreadLists:
    fields: dict[str, Any] = {"libc": "glibc 2.36", "stack_cache_limit": 40 << 20, "threads": threads}
    return ThreadLists(ReadState.READ, **{**fields, **changes})


def name_of(address: int) -> Frame:
    return Frame(f"routine_{address:x}")


def nothing_left(suspects: Sequence[Suspect]) -> Search:
    """A complete search that finds no reference to any of them."""
    return Search(dict.fromkeys(suspects, Reach(True)), complete=True, searches=3, bytes_searched=1 << 20)


def all_kept(suspects: Sequence[Suspect]) -> Search:
    """A complete search that finds a reference to each, in one global array."""
    holder = Holder(Where.GLOBAL, 0x404040, "workers in app_server")
    found = dict.fromkeys(suspects, Reach(False, (holder,)))
    return Search(found, complete=True, searches=3, bytes_searched=1 << 20)


def evidence(outstanding: list[Outstanding], lists: ThreadLists = READ, **changes: Any) -> Evidence:
    fields: dict[str, Any] = {
        "vmas": Vmas(),
        "tgid": TGID,
        "attached_at": ATTACHED,
        "report_at": REPORT,
        "cores": Cores(2, 2),
        "stack_of": lambda site: STACKS.get(site, Stack()),
        "name_of": name_of,
        "search": nothing_left,
    }
    return Evidence(outstanding=outstanding, thread_lists=lists, **{**fields, **changes})


def judge(outstanding: list[Outstanding], lists: ThreadLists = READ, **changes: Any) -> Diagnosis:
    return diagnose(evidence(outstanding, lists, **changes))


def only(diagnosis: Diagnosis) -> Finding:
    (finding,) = diagnosis.findings
    return finding
