# SPDX-License-Identifier: Apache-2.0
"""Whatever the evidence: every orphan has exactly one verdict, and it takes little work."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

from diagnosis_scenes import (
    ABSENT,
    MUSL,
    NO_LIBC,
    OWN_SITE,
    STACK_BYTES,
    THREAD_SITE,
    judge,
    listed_thread,
    name_of,
    orphaned,
    pthread_stack,
    span,
    thread_lists,
)
from hypothesis import given
from hypothesis import strategies as st
from steps import lines_run

from ebpftrace.diagnosis import baseline_verdict
from ebpftrace.model import Interval, Outstanding, ReadState, Verdict, Vma
from ebpftrace.vmas import Vmas

moments = st.floats(0, 59)
sites = st.sampled_from([0, THREAD_SITE, OWN_SITE, 99])
flags = st.sampled_from([0x22, 0x20022, 0x4022, 0x32, 0x1])


@st.composite
def stacks(draw: st.DrawFn, number: int) -> Outstanding:
    started_at = draw(moments)
    exited = draw(st.one_of(st.none(), st.just(min(started_at + draw(st.floats(0, 60)), 60.0))))
    return pthread_stack(
        number,
        started_at=started_at,
        exited=exited,
        site=draw(sites),
        flags=draw(flags),
        tgid=draw(st.sampled_from([4000, 6000, 0])),
        size=draw(st.sampled_from([40960, 64 << 10, STACK_BYTES])),
        clone3=draw(st.booleans()),
        before_attach=draw(st.booleans()),
    )


@st.composite
def mappings(draw: st.DrawFn, number: int) -> Outstanding:
    made = draw(moments)
    return orphaned(
        number,
        made=made,
        exited=min(made + draw(st.floats(0, 60)), 60.0),
        site=draw(sites),
        size=draw(st.sampled_from([4096, 1 << 20, 64 << 20])),
        prot=draw(st.sampled_from([0, 3])),
        flags=draw(flags),
    )


@st.composite
def scenes(draw):
    held = [draw(stacks(number)) for number in range(draw(st.integers(0, 12)))]
    lists = [
        listed_thread(
            span(stack),
            exited=draw(st.booleans()),
            user_stack=draw(st.booleans()),
            detached=draw(st.booleans()),
            start_routine=draw(st.integers(1, 2)),
        )
        for stack in held
        if draw(st.booleans())
    ]
    cache = tuple(span(stack) for stack in held if draw(st.booleans()))
    held += [draw(mappings(number)) for number in range(draw(st.integers(0, 12)))]
    state = draw(st.sampled_from(list(ReadState)))
    libc = draw(st.sampled_from(["glibc 2.36", ABSENT.libc, MUSL.libc, NO_LIBC.libc]))
    read = thread_lists(*lists, stack_cache=cache, libc=libc)
    pointers = {number: stack.mapping.end - 64 for number, stack in enumerate(held) if draw(st.booleans())}
    return held, replace(read, state=state), pointers


@given(scenes())
def test_each_orphan_has_exactly_one_verdict(scene):
    held, lists, pointers = scene
    findings = judge(held, lists, live_stack_pointers=pointers).findings
    judged = Counter(span(orphan.outstanding) for finding in findings for orphan in finding.orphans)
    must = {span(outstanding) for outstanding in held if outstanding.owner.exited_at is not None}
    may = {span(outstanding) for outstanding in held}
    assert must <= set(judged) <= may
    assert set(judged.values()) <= {1}
    assert list(findings) == sorted(findings, key=lambda finding: (not finding.leak, -finding.size))
    for finding in findings:
        assert finding.evidence
        assert finding.advice
        assert all(orphan.outstanding.mapping.size for orphan in finding.orphans)


@given(scenes())
def test_a_live_thread_on_it_is_never_called_a_leak(scene):
    held, lists, pointers = scene
    occupied = {pointer + 64 for pointer in pointers.values()}
    for finding in judge(held, lists, live_stack_pointers=pointers).findings:
        # Live threads that pile up are a leak of threads, each of which still uses its stack.
        if finding.leak and finding.verdict is not Verdict.GROWING_THREADS:
            assert not any(orphan.outstanding.mapping.end in occupied for orphan in finding.orphans)


def test_work_grows_with_the_number_of_orphans_only() -> None:
    """Four times the orphans, stacks, areas and sites are about four times the work, not sixteen."""

    def work(count):
        old = [
            Interval(0x10000000000 + n * STACK_BYTES, 0x10000000000 + (n + 1) * STACK_BYTES)
            for n in range(count)
        ]
        new = [
            pthread_stack(n, started_at=n / 600, exited=n / 600 + 1, site=n % 500 + 1) for n in range(count)
        ]
        workers = [orphaned(n, made=n / 600, exited=n / 600 + 1, site=n + 1) for n in range(count)]
        vmas = Vmas(Vma(*stack, "rw-p", 0, "00:00", 0, "", rss=4096) for stack in old)
        lists = thread_lists(*map(listed_thread, old), *(listed_thread(span(stack)) for stack in new))
        traced = lines_run(partial(judge, [*new, *workers], lists, vmas=vmas))
        return traced + lines_run(baseline_verdict, lists, vmas, name_of)

    assert work(4000) < 5 * work(1000)
