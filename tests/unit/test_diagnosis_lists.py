# SPDX-License-Identifier: Apache-2.0
"""What glibc's thread lists say of stacks from before attach, and how it joins with the trace."""

from __future__ import annotations

from dataclasses import replace

from diagnosis_scenes import (
    ABSENT,
    MAIN,
    OWN_SITE,
    OWN_STACK,
    READ,
    STACK_BYTES,
    TGID,
    THREAD_SITE,
    THREAD_STACK,
    all_kept,
    at,
    judge,
    listed_thread,
    name_of,
    nothing_left,
    only,
    pthread_stack,
    span,
    thread_lists,
)

from ebpftrace.diagnosis import baseline_verdict
from ebpftrace.diagnosis.evidence import no_search
from ebpftrace.model import (
    Frame,
    Interval,
    Mapping,
    Outstanding,
    OwnedBy,
    ReadState,
    Site,
    Stack,
    Thread,
    ThreadId,
    ThreadLists,
    Verdict,
    Vma,
)
from ebpftrace.vmas import Vmas

LOW = 0x7E0000000000
GUARD = 4096


def stack_at(number: int) -> Interval:
    return Interval(LOW + number * STACK_BYTES, LOW + (number + 1) * STACK_BYTES)


def areas(count: int, rss: int = 8192) -> Vmas:
    """As smaps shows the classic case: a guard page of its own beside each stack."""
    vmas = Vmas()
    for number in range(count):
        start, end = stack_at(number)
        vmas.add(start, start + GUARD, Vma(0, 0, "---p", 0, "00:00", 0, "", rss=0, guard=True))
        vmas.add(start + GUARD, end, Vma(0, 0, "rw-p", 0, "00:00", 0, "", rss=rss))
    return vmas


def baseline(vmas: Vmas) -> list[Outstanding]:
    """The ledger knows no owner for what was there before attach."""
    return [
        Outstanding(Mapping((Interval(vma.start, vma.end),), None, None, None, None, 0), None, None, None)
        for vma in vmas
    ]


def test_a_stack_from_before_attach_is_counted_once_with_its_guard():
    vmas = areas(3)
    lists = thread_lists(*(listed_thread(stack_at(number)) for number in range(3)))
    finding = only(judge(baseline(vmas), lists, vmas=vmas))
    assert (finding.verdict, finding.leak, finding.before_attach) == (Verdict.NEVER_JOINED, True, True)
    assert (finding.count, finding.size, finding.rss) == (3, 3 * STACK_BYTES, 3 * 8192)
    assert finding.bytes_per_minute is None
    assert [orphan.guard for orphan in finding.orphans] == [GUARD] * 3
    assert finding.orphans[0].outstanding.owner is None


def test_the_baseline_verdict_says_the_same_and_groups_by_start_routine():
    vmas = areas(5)
    lists = thread_lists(
        *(listed_thread(stack_at(number), start_routine=0x10 + number % 2) for number in range(5))
    )
    findings = baseline_verdict(lists, vmas, name_of, search=nothing_left).findings
    assert [(f.verdict, f.leak, f.count) for f in findings] == [
        (Verdict.NEVER_JOINED, True, 3),
        (Verdict.NEVER_JOINED, True, 2),
    ]
    assert findings[0].start_routine is not None
    assert findings[0].start_routine.function == "routine_10"


def test_the_baseline_verdict_waits_for_a_second_reading_where_it_can():
    vmas = areas(2)
    now = thread_lists(listed_thread(stack_at(0)), listed_thread(stack_at(1)))
    earlier = thread_lists(listed_thread(stack_at(0)), listed_thread(stack_at(1), exited=False))
    diagnosis = baseline_verdict(now, vmas, name_of, earlier)
    (standing,) = (finding for finding in diagnosis.findings if finding.undecided)
    (young,) = (finding for finding in diagnosis.findings if not finding.undecided)
    assert (standing.verdict, standing.leak, standing.count) == (Verdict.NOT_JOINED_YET, False, 1)
    assert (young.verdict, young.leak, young.count) == (Verdict.JUST_EXITED, False, 1)
    assert diagnosis.undecided == 1


def test_threads_that_came_and_went_before_attach_are_not_counted_as_of_the_window():
    """Between the first reading of the lists and the begin of the trace: no exit was seen of the second."""
    now = thread_lists(listed_thread(stack_at(0)), listed_thread(stack_at(1)))
    earlier = thread_lists(listed_thread(stack_at(0)))
    finding = only(judge(baseline(areas(2)), now, vmas=areas(2), earlier_lists=earlier))
    assert finding.count == 2
    assert "at least 1 of them exited before the trace began" in finding.evidence


def test_lists_that_were_not_read_prove_nothing():
    lists = thread_lists(listed_thread(stack_at(0)))
    for state in (ReadState.UNSTABLE, ReadState.ABSENT):
        assert baseline_verdict(replace(lists, state=state), areas(1), name_of).findings == ()


def test_live_threads_are_no_leak_and_detached_ones_that_ended_by_a_bare_exit_are():
    lists = thread_lists(listed_thread(stack_at(0), exited=False), listed_thread(stack_at(1), detached=True))
    finding = only(judge(baseline(areas(2)), lists, vmas=areas(2)))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.ABANDONED_STACK, True, 1)


def test_a_thread_alive_at_attach_has_the_exit_that_the_trace_saw():
    earlier = thread_lists(listed_thread(stack_at(0), exited=False, tid=77))
    gone = Thread(ThreadId(77, 5), "poller", TGID, exited_at=at(20), before_attach=True)
    finding = only(
        judge(
            [],
            thread_lists(listed_thread(stack_at(0))),
            vmas=areas(1),
            earlier_lists=earlier,
            threads=(MAIN, gone),
        )
    )
    assert (finding.verdict, finding.leak, finding.before_attach) == (Verdict.NEVER_JOINED, True, False)
    assert finding.orphans[0].outstanding.owner is gone


def test_a_thread_alive_at_attach_with_an_unseen_exit_is_too_recent():
    earlier = thread_lists(listed_thread(stack_at(0), exited=False, tid=77))
    lists = thread_lists(listed_thread(stack_at(0)))
    finding = only(judge([], lists, vmas=areas(1), earlier_lists=earlier, search=no_search))
    assert (finding.verdict, finding.leak) == (Verdict.JUST_EXITED, False)


def test_a_cached_stack_from_before_attach_that_a_new_thread_took_and_left():
    """No mmap in the window, but a clone: the owner is known, and when it exited."""
    stack = pthread_stack(1, before_attach=True)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack)))))
    assert (finding.verdict, finding.leak, finding.before_attach) == (Verdict.NEVER_JOINED, True, False)
    assert finding.orphans[0].outstanding.owner == stack.owner
    assert finding.bytes_per_minute is None
    assert only(judge([stack], READ, search=all_kept)).verdict is Verdict.STACK_CACHE


def test_old_ones_join_the_new_ones_of_the_same_cause_and_show_their_stack():
    new = pthread_stack(1, site=THREAD_SITE)
    lists = thread_lists(listed_thread(stack_at(0)), listed_thread(span(new)))
    finding = only(judge([*baseline(areas(1)), new], lists, vmas=areas(1)))
    assert (finding.leak, finding.count, finding.before_attach) == (True, 2, False)
    assert finding.stack == THREAD_STACK
    assert any("1 of them exited before the trace" in line for line in finding.evidence)


def test_old_ones_stay_apart_where_two_places_may_have_created_them():
    new = [pthread_stack(1, site=THREAD_SITE), pthread_stack(2, site=OWN_SITE)]
    lists = thread_lists(listed_thread(stack_at(0)), *(listed_thread(span(stack)) for stack in new))
    findings = judge([*baseline(areas(1)), *new], lists, vmas=areas(1)).findings
    assert sorted(finding.before_attach for finding in findings) == [False, False, True]


def test_a_mapping_that_the_trace_thinks_owned_is_given_time_when_the_lists_disagree():
    alive = pthread_stack(1, exited=None)
    finding = only(judge([alive], thread_lists(listed_thread(span(alive))), search=no_search))
    assert (finding.verdict, finding.leak) == (Verdict.JUST_EXITED, False)


def test_a_stack_whose_threads_start_was_not_seen_does_not_belong_to_its_creator():
    """The kernel may skip the run of our program that would have shown the thread."""
    seen = pthread_stack(0, site=THREAD_SITE)
    unseen = seen._replace(owner=MAIN, owned_by=OwnedBy.MAPPED_IT, run=None)
    finding = only(judge([unseen], thread_lists(listed_thread(span(unseen)))))
    (orphan,) = finding.orphans
    assert finding.verdict is Verdict.NEVER_JOINED
    assert (orphan.outstanding.owner, orphan.outstanding.mapper) == (None, MAIN)


def test_a_stack_in_use_by_a_live_thread_is_never_a_leak():
    stack = pthread_stack(1, tgid=6000)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack), exited=False))))
    assert not finding.leak
    assert any("glibc's thread lists" in line for line in finding.evidence)


def test_a_user_stack_from_before_attach_counts_its_own_bytes_only():
    heap = Interval(LOW, LOW + (1 << 30))
    block = Interval(LOW + 0x5000, LOW + 0x25000)
    held = baseline([Vma(heap.start, heap.end, "rw-p", 0, "00:00", 0, "[heap]", rss=1 << 30)])
    finding = only(judge(held, thread_lists(listed_thread(block, user_stack=True))))
    assert (finding.verdict, finding.leak, finding.size) == (Verdict.ABANDONED_STACK, True, 0x20000)


def test_a_user_stack_of_unknown_extent_is_noted_not_counted():
    heap = Interval(LOW, LOW + (1 << 30))
    lost = listed_thread(heap, user_stack=True, descriptor=LOW + 0x25000)
    nowhere = listed_thread(stack_at(1))._replace(stack=None)
    diagnosis = judge([], thread_lists(lost, nowhere))
    assert diagnosis.findings == ()
    assert any("2 more threads" in note for note in diagnosis.notes)


def test_a_user_stack_cut_from_a_mapping_of_the_window_does_not_take_all_of_it():
    pool = pthread_stack(1, size=64 << 20, flags=0x22)
    part = Interval(pool.mapping.start, pool.mapping.start + 65536)
    pool = pool._replace(run=pool.run._replace(stack=part.start, stack_size=65536))
    finding = only(judge([pool], thread_lists(listed_thread(part, user_stack=True)), search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.HANDED_OVER, False)


def test_a_byte_is_not_counted_twice_where_old_and_new_stacks_touch():
    """Fallback extents come from areas, and the kernel may have merged a new stack into an old area."""
    new = pthread_stack(1)
    merged = Interval(new.mapping.start - STACK_BYTES, new.mapping.end)
    old = listed_thread(merged)._replace(descriptor=new.mapping.start - 0x900)
    findings = judge([new], thread_lists(old, listed_thread(span(new)))).findings
    assert sum(finding.size for finding in findings) == merged.size


def test_what_the_lists_lack_is_noted():
    assert any("static glibc" in note or "no symbols" in note for note in judge([], ABSENT).notes)
    torn = ThreadLists(
        ReadState.READ, "2 listed threads neither live nor are marked as exited", libc="glibc 2.36"
    )
    assert any("2 listed threads" in note for note in judge([], torn).notes)
    assert judge([], READ).notes == ()


def test_cached_stacks_of_several_places_show_where_most_come_from():
    sites = [THREAD_SITE] * 2 + [OWN_SITE] * 3 + [0]
    held = [pthread_stack(number, site=site) for number, site in enumerate(sites)]
    lists = thread_lists(stack_cache=tuple(map(span, held)), stack_cache_bytes=len(held) * STACK_BYTES)
    finding = only(judge(held, lists))
    assert (finding.verdict, finding.count, finding.more_sites) == (Verdict.STACK_CACHE, 6, 0)
    assert finding.sites == (
        Site(OWN_STACK, 3, 3 * STACK_BYTES),
        Site(THREAD_STACK, 2, 2 * STACK_BYTES),
    )
    assert finding.stack == OWN_STACK


def test_of_many_places_the_commonest_are_reported_and_the_others_counted():
    places = {site: Stack((Frame(f"maker_{site}", module="/opt/app"),), True) for site in range(1, 6)}
    held = [pthread_stack(number, site=number % 5 + 1) for number in range(12)]
    lists = thread_lists(stack_cache=tuple(map(span, held)), stack_cache_bytes=len(held) * STACK_BYTES)
    finding = only(judge(held, lists, stack_of=places.__getitem__))
    assert [(site.stack, site.count) for site in finding.sites] == [
        (places[1], 3), (places[2], 3), (places[3], 2),
    ]  # fmt: skip
    assert finding.more_sites == 2
