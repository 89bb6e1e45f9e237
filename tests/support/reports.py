# SPDX-License-Identifier: Apache-2.0
"""Builds realistic reports for the tests of ebpftrace.report."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from ebpftrace.model import (
    Calls,
    Certainty,
    Clock,
    EndedBy,
    Finding,
    Frame,
    Interval,
    Losses,
    Mapping,
    Memory,
    Orphan,
    Outstanding,
    OwnedBy,
    Report,
    Stack,
    StackSource,
    TargetInfo,
    Thread,
    ThreadId,
    ThreadTotal,
    TracerCost,
    Verdict,
)

SECOND = 1_000_000_000
KIB = 1024
STACK_BYTES = 10489856
GUARD = 4096
BOOT_TO_END = 500_000 * SECOND
WALL_AT_END = 1_760_569_230 * SECOND
CLOCK = Clock(monotonic_ns=BOOT_TO_END, realtime_ns=WALL_AT_END)

APP = "/opt/acme/app_server/bin/app_server"
LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"

TIMER_STACK = Stack(
    frames=(
        Frame("__clone3", module=LIBC, offset=0x10F3E1),
        Frame("create_thread", "./nptl/pthread_create.c", 297, LIBC, 0x89A41),
        Frame("pthread_create@@GLIBC_2.34", "./nptl/pthread_create.c", 833, LIBC, 0x8A4C2),
        Frame("acme::spawn<&acme::minute_job>", "src/acme/timer.hpp", 41, APP, 0x2B1F0, inlined=True),
        Frame("acme::Timer::on_minute(acme::Clock const&)", "src/acme/timer.cpp", 118, APP, 0x2B1F0),
        Frame("acme::Timer::run()", "src/acme/timer.cpp", 87, APP, 0x2AC13),
        Frame("start_thread", "./nptl/pthread_create.c", 442, LIBC, 0x89133),
        Frame("__clone3", module=LIBC, offset=0x10F3FB),
    ),
    complete=True,
    source=StackSource.COPIED,
)
MINUTE_JOB = Frame("acme::minute_job(void*)", "src/acme/jobs.cpp", 23, APP, 0x2A0C0)


def stack_mapping(
    start: int,
    made_at: Optional[int],
    mapper: Optional[ThreadId],
    length: int = STACK_BYTES,
    prot: int = 0,
    flags: int = 0x20022,
) -> Mapping:
    if made_at is None:
        return Mapping((Interval(start, start + length),), None, None, None, None, 0)
    return Mapping((Interval(start, start + length),), made_at, mapper, prot, flags, 7)


def never_joined_before_attach(number: int) -> Finding:
    first = 0x7F0000000000
    return Finding(
        verdict=Verdict.NEVER_JOINED,
        leak=True,
        certainty=Certainty.PROVED,
        evidence=(
            f"all {number:,} are on glibc's list of stacks in use, and no task with their tid lives",
            "nothing has joined or detached them: glibc 2.36 will keep their stacks for ever",
        ),
        advice="pthread_join() these threads, or create them detached (PTHREAD_CREATE_DETACHED)",
        before_attach=True,
        orphans=tuple(
            Orphan(
                Outstanding(
                    stack_mapping(first + index * STACK_BYTES, None, None),
                    owner=None,
                    owned_by=OwnedBy.RUNS_ON_IT,
                    mapper=None,
                ),
                rss=8192,
                guard=GUARD,
            )
            for index in range(number)
        ),
        bytes_per_minute=None,
        start_routine=MINUTE_JOB,
    )


def never_joined_in_window(number: int = 2) -> Finding:
    creator = ThreadId(31110, BOOT_TO_END - 90_000 * SECOND)
    orphans = []
    for index in range(number):
        started_at = BOOT_TO_END - (number - index) * 60 * SECOND + 30 * SECOND
        owner = Thread(
            ThreadId(31152 + index, started_at),
            "minute-job",
            31108,
            exited_at=started_at + 1_204_000_000,
            creator=creator,
            creator_name="timer",
        )
        mapping = stack_mapping(0x7FAAE0E49000 + index * STACK_BYTES, started_at - 50_000, creator)
        orphans.append(
            Orphan(Outstanding(mapping, owner, OwnedBy.RUNS_ON_IT, None), rss=12288, guard=GUARD),
        )
    return Finding(
        verdict=Verdict.NEVER_JOINED,
        leak=True,
        certainty=Certainty.PROVED,
        evidence=(
            "on glibc's list of stacks in use, and no task with their tid lives",
            "nothing has joined or detached them: glibc 2.36 will keep their stacks for ever",
        ),
        advice="pthread_join() these threads, or create them detached (PTHREAD_CREATE_DETACHED)",
        before_attach=False,
        orphans=tuple(orphans),
        bytes_per_minute=float(STACK_BYTES),
        stack=TIMER_STACK,
        start_routine=MINUTE_JOB,
        period=60.0,
    )


def stack_cache() -> Finding:
    orphans = tuple(
        Orphan(
            Outstanding(
                stack_mapping(0x7F9900000000 + index * 0x900000, None, None, 0x801000), None, None, None
            ),
            rss=4096,
        )
        for index in range(4)
    )
    return Finding(
        Verdict.STACK_CACHE,
        False,
        ("in glibc's cache for reuse, 32.0 MiB of at most 40 MiB",),
        "",
        True,
        orphans,
        None,
    )


def malloc_arena() -> Finding:
    owner = Thread(ThreadId(31130, BOOT_TO_END - 80 * SECOND), "worker-3", 31108, BOOT_TO_END - 20 * SECOND)
    mapping = stack_mapping(0x7F8800000000, BOOT_TO_END - 70 * SECOND, owner.id, 64 * KIB * KIB, 0, 0x4022)
    return Finding(
        Verdict.MALLOC_ARENA,
        False,
        ("heap of a glibc malloc arena: later threads reuse it; 1 of at most 64 arenas",),
        "",
        False,
        (Orphan(Outstanding(mapping, owner, OwnedBy.MAPPED_IT, owner), rss=135168),),
        None,
    )


def thread_totals() -> tuple[ThreadTotal, ...]:
    timer = Thread(ThreadId(31110, BOOT_TO_END - 90_000 * SECOND), "timer", 31108, before_attach=True)
    worker = Thread(ThreadId(31130, BOOT_TO_END - 80 * SECOND), "worker-3", 31108, BOOT_TO_END - 20 * SECOND)
    jobs = [orphan.outstanding.owner for orphan in never_joined_in_window().orphans]
    return (
        ThreadTotal(worker, 1, 64 * KIB * KIB),
        *(ThreadTotal(job, 1, STACK_BYTES, stack=TIMER_STACK) for job in jobs if job is not None),
        ThreadTotal(timer, 3, 409600, brk_growth=135168, stack=TIMER_STACK),
    )


def production() -> Report:
    """The server of the design: 27,840 stacks leaked before attach, two more in the window."""
    return Report(
        target=TargetInfo(31108, "app_server", APP, threads=41, threads_start=41),
        seconds=120.0,
        ended_by=EndedBy.DURATION,
        ended_at=BOOT_TO_END,
        clock=CLOCK,
        memory=Memory(
            306_016_387_072, 306_016_387_072 + 2 * STACK_BYTES, 4_301_299_712, 4_301_299_712 + 24576
        ),
        calls=Calls(mmap=24, munmap=9, mremap=0, brk=3, clone=2, thread_exit=2),
        losses=Losses(),
        threads=thread_totals(),
        findings=(
            never_joined_in_window(),
            stack_cache(),
            never_joined_before_attach(27_840),
            malloc_arena(),
        ),
        outstanding_mappings=6,
        outstanding_bytes=64 * KIB * KIB + 2 * STACK_BYTES + 409600,
        notes=("stacks of mappings made before attach are not known; their start routine is",),
        cost=TracerCost(cpu_seconds=0.31, bpf_seconds=0.000_21, bpf_runs=1200),
    )


def raw_clone(number: int = 15) -> Report:
    """The reproducer: a 40 KiB stack mapped, run on by a raw clone child, never unmapped."""
    parent = Thread(ThreadId(4242, BOOT_TO_END - 40 * SECOND), "cloner", 4242, before_attach=True)
    site = Stack(
        frames=(
            Frame("mmap64", module=LIBC, offset=0x10F5C3),
            Frame("main", "reproducer.c", 27, "/home/me/reproducer", 0x11D9),
            Frame("__libc_start_call_main", module=LIBC, offset=0x2724A),
            Frame("__libc_start_main@@GLIBC_2.34", module=LIBC, offset=0x27305),
            Frame("_start", module="/home/me/reproducer", offset=0x10C1),
        ),
        complete=True,
        source=StackSource.COPIED,
    )
    orphans = []
    for index in range(number):
        started_at = BOOT_TO_END - (number - index) * 2 * SECOND
        child = Thread(
            ThreadId(4300 + index, started_at),
            "cloner",
            4300 + index,
            exited_at=started_at + 310_000,
            creator=parent.id,
            creator_name=parent.name,
        )
        mapping = stack_mapping(0x7F4BC2600000 + index * 40960, started_at - 9_000, parent.id, 40960, 3)
        orphans.append(
            Orphan(Outstanding(mapping, child, OwnedBy.RUNS_ON_IT, parent), rss=4096),
        )
    finding = Finding(
        Verdict.ABANDONED_STACK,
        True,
        (
            "a clone child ran on each; all have exited and no live task runs on one",
            f"none of {number} was reused or unmapped in the window",
        ),
        "munmap() the stack when the child has been waited for, or reuse it for the next one",
        False,
        tuple(orphans),
        30 * 40960.0,
        stack=site,
        period=2.0,
    )
    return Report(
        target=TargetInfo(4242, "cloner", "/home/me/reproducer", threads=1, threads_start=1),
        seconds=30.0,
        ended_by=EndedBy.INTERRUPT,
        ended_at=BOOT_TO_END,
        clock=CLOCK,
        memory=Memory(2_605_056, 2_605_056 + number * 40960, 946_176, 946_176 + number * 4096),
        calls=Calls(mmap=number, clone=number, thread_exit=number),
        losses=Losses(),
        threads=tuple(
            ThreadTotal(orphan.outstanding.owner, 1, 40960, stack=site)
            for orphan in orphans
            if orphan.outstanding.owner is not None
        ),
        findings=(finding,),
        outstanding_mappings=number,
        outstanding_bytes=number * 40960,
        cost=TracerCost(cpu_seconds=0.12),
    )


def healthy() -> Report:
    """A server that joins its threads: a stack cache, an arena, no leak."""
    report = production()
    return replace(report, findings=(stack_cache(), malloc_arena()), notes=())


def lossy() -> Report:
    """A flood that overran the tables, ended by exec, with an incomplete stack."""
    finding = never_joined_in_window()
    orphan = finding.orphans[0]
    mapping = orphan.outstanding.mapping
    holed = mapping._replace(
        pieces=(
            Interval(mapping.start, mapping.start + 4096),
            Interval(mapping.end - 8192, mapping.end),
        ),
        prot=3,
        flags=0x22,
    )
    thread = orphan.outstanding.owner
    cut = replace(TIMER_STACK, frames=TIMER_STACK.frames[:5], complete=False, note="3 of 40 copies differ")
    return replace(
        production(),
        ended_by=EndedBy.EXEC,
        losses=Losses(events=1204, mappings=17, stacks=3),
        findings=(
            Finding(
                Verdict.ORPHANED_MAPPING,
                True,
                ("9 threads of this site left such a mapping behind, one after the other",),
                "unmap the buffer before the thread ends, or hand it over and unmap it there",
                False,
                (Orphan(Outstanding(holed, thread, OwnedBy.MAPPED_IT, thread), rss=None),),
                4096.0,
                stack=cut,
            ),
        ),
        unexplained_bytes=2 * 1024 * 1024,
        notes=("the table of mappings was full for a while: raise --max-mappings above 65,536",),
    )
