# SPDX-License-Identifier: Apache-2.0
"""What several readings of glibc's thread lists say together, and what the rules conclude from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from diagnosis_scenes import (
    READ,
    SECOND,
    STACK_BYTES,
    THREAD_SITE,
    all_kept,
    at,
    judge,
    listed_thread,
    nothing_left,
    only,
    orphaned,
    pthread_stack,
    span,
    thread_lists,
)
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.diagnosis import History
from ebpftrace.diagnosis.evidence import no_search
from ebpftrace.model import (
    Certainty,
    Holder,
    Outstanding,
    Reach,
    ReadState,
    Search,
    Suspect,
    ThreadLists,
    Verdict,
    Where,
)

ROUTINE = 0x401000


def history(*readings: tuple[float, ThreadLists]) -> History:
    """Readings at so many seconds after attach."""
    known = History()
    for when, lists in readings:
        known.add(lists, at(when))
    return known


def listed(stacks: Sequence[Outstanding], **changes: object) -> ThreadLists:
    return thread_lists(*(listed_thread(span(stack), **changes) for stack in stacks))


# --- the readings themselves --------------------------------------------------


@pytest.mark.parametrize(("exited", "departed"), [(59.5, 0), (60.5, 0), (61.5, 1)])
def test_a_reading_takes_time_in_which_threads_exit(exited: float, departed: int) -> None:
    """Who exits while the lists are read is who they show, no later thread at the same address."""
    stack = pthread_stack(0)
    known = History()
    known.add(listed([stack], start_routine=ROUTINE), at(60), at(61))
    (thread,) = listed([stack]).threads
    assert known.with_exits([(thread.descriptor, at(exited))]).departed(ROUTINE).number == departed
    assert known.since(thread.descriptor) == at(61)


def test_how_late_one_was_joined_is_never_asked_too_short() -> None:
    known = History()
    known.add(listed([pthread_stack(0)], start_routine=ROUTINE), at(10), at(12))
    known.add(thread_lists(), at(20), at(23))
    assert known.departed(ROUTINE).longest == 13 * SECOND


@given(
    st.lists(
        st.frozensets(st.integers(0, 5)),
        min_size=1,
        max_size=12,
    )
)
def test_whoever_was_and_does_not_any_more_has_left(sets: list[frozenset[int]]):
    """A plain model: a thread is there, or it is not; it has left once each time it goes."""
    stacks = [pthread_stack(number) for number in range(6)]
    known = history(
        *((when, listed([stacks[number] for number in sorted(here)])) for when, here in enumerate(sets))
    )
    left = sum(len(before - after) for before, after in zip(sets, sets[1:]))
    assert known.departed(ROUTINE).number == left
    assert known.unjoined().get(ROUTINE, 0) == len(sets[-1])
    assert known.first.get(ROUTINE, 0) == len(sets[0])


def test_how_long_the_longest_waited():
    stack = pthread_stack(1)
    known = history((0, listed([stack])), (2, listed([stack])), (7, listed([])))
    assert known.departed(ROUTINE) == (1, 7 * SECOND, True)


@pytest.mark.parametrize("state", [ReadState.UNSTABLE, ReadState.ABSENT])
def test_a_reading_that_is_not_to_be_trusted_shows_no_joins(state: ReadState):
    stack = pthread_stack(1)
    known = history((0, listed([stack])), (1, replace(thread_lists(), state=state)), (2, listed([stack])))
    assert known.departed(ROUTINE).number == 0


def test_live_and_detached_threads_are_not_unjoined():
    stacks = [pthread_stack(number) for number in range(2)]
    lists = thread_lists(
        listed_thread(span(stacks[0]), exited=False), listed_thread(span(stacks[1]), detached=True)
    )
    assert history((0, lists)).unjoined() == {}


def test_a_descriptor_that_a_later_thread_has_was_left_by_the_former():
    stack = pthread_stack(1)
    known = history((0, listed([stack])), (5, listed([stack])))
    descriptor = listed_thread(span(stack)).descriptor
    again = known.with_exits([(descriptor, at(3))])
    assert again.departed(ROUTINE) == (1, 3 * SECOND, False)
    assert again.since(descriptor) == at(3)
    assert known.departed(ROUTINE).number == 0, "the readings themselves stay as they are"
    assert known.with_exits([(descriptor, at(-1))]).departed(ROUTINE).number == 0


# --- exited threads whose handles are kept --------------------------------------


def steady(number: int, **changes: object) -> list[Outstanding]:
    """Threads that are created evenly over a window of 60 s."""
    return [pthread_stack(n, started_at=5 * n, exited=5 * n + 1, **changes) for n in range(number)]


def test_kept_and_none_leaves_and_no_growth_is_not_joined_yet():
    batch = [pthread_stack(n, started_at=10, exited=11) for n in range(8)]
    lists = listed(batch)
    finding = only(judge(batch, lists, search=all_kept, history=history((0, thread_lists()), (60, lists))))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.NOT_JOINED_YET, False, 8)
    assert (finding.certainty, finding.undecided) == (Certainty.POSSIBLE, False)
    assert any("in workers in app_server" in line for line in finding.evidence)
    assert finding.reach is not None
    assert (finding.reach.checked, finding.reach.lost, finding.reach.kept) == (8, 0, 8)
    assert [holder.symbol for holder in finding.reach.holders] == ["workers in app_server"]


def test_kept_and_older_ones_leave_is_joined_later():
    stacks = steady(12)
    readings = [(5.0 * n, listed(stacks[max(0, n - 2) : n])) for n in range(13)]
    lists = listed(stacks[9:])
    finding = only(judge(stacks[9:], lists, search=all_kept, history=history(*readings, (60, lists))))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.JOINED_LATER, False, 3)


def test_kept_and_none_leaves_and_they_grow_is_likely_a_leak():
    stacks = steady(12)
    lists = listed(stacks)
    finding = only(judge(stacks, lists, search=all_kept, history=history((0, thread_lists()), (60, lists))))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.NEVER_JOINED, True, 12)
    assert finding.certainty is Certainty.LIKELY
    assert not any("proved" in line for line in finding.evidence)


def test_a_window_of_seconds_is_too_short_to_call_what_is_kept_a_leak():
    stacks = [pthread_stack(n, started_at=n / 2, exited=n / 2 + 0.1) for n in range(14)]
    lists = listed(stacks)
    known = history((0, thread_lists()), (8, lists))
    finding = only(judge(stacks, lists, search=all_kept, history=known, report_at=at(8)))
    assert (finding.verdict, finding.leak) == (Verdict.NOT_JOINED_YET, False)


def test_new_ones_that_replace_old_ones_do_not_grow():
    """A lazy program: as many from before the window were joined just at its end, between two readings."""
    stacks = steady(12)
    old = [pthread_stack(100 + n, before_attach=True) for n in range(12)]
    lists = listed(stacks)
    known = history((0, listed(old)), (60, lists))
    finding = only(judge(stacks, lists, search=all_kept, history=known))
    assert (finding.verdict, finding.leak) == (Verdict.JOINED_LATER, False)


def test_those_that_wait_much_longer_than_any_that_was_joined_are_likely_a_leak():
    stacks = steady(12)
    joined = pthread_stack(50, started_at=1, exited=1.5)
    readings = [(5.0 * n, listed(stacks[:n])) for n in range(13)]
    readings[1] = 5.0, listed([*stacks[:1], joined])
    known = history(*readings)
    finding = only(judge(stacks, listed(stacks), search=all_kept, history=known))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.NEVER_JOINED, True, 12)
    assert any("1 other was joined within 5.0 s" in line for line in finding.evidence)


# --- most are lost, a few are kept ----------------------------------------------


def kept_only(kept: Sequence[Outstanding]):
    """A search that finds a reference to these alone."""
    starts = {stack.mapping.start for stack in kept}

    def search(suspects: Sequence[Suspect]) -> Search:
        found = [suspect for suspect in suspects if suspect.pieces[0].start in starts]
        lost = nothing_left(suspects)
        return replace(lost, reach={**lost.reach, **all_kept(found).reach})

    return search


@pytest.mark.parametrize(("lost", "kept"), [(1, 1), (1, 2), (6, 1), (10, 10)])
def test_the_few_that_are_kept_are_stale_copies_and_counted_with_the_lost(lost: int, kept: int):
    stacks = [pthread_stack(n, site=THREAD_SITE) for n in range(lost + kept)]
    finding = only(judge(stacks, listed(stacks), search=kept_only(stacks[lost:])))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.NEVER_JOINED, True, lost + kept)
    assert finding.certainty is Certainty.PROVED
    assert (finding.reach.lost, finding.reach.kept) == (lost, kept)
    assert any("stale copy" in line for line in finding.evidence)


def test_many_kept_beside_one_lost_are_judged_by_themselves():
    stacks = [pthread_stack(n, site=THREAD_SITE) for n in range(9)]
    findings = judge(stacks, listed(stacks), search=kept_only(stacks[1:])).findings
    assert [(finding.verdict, finding.leak, finding.count) for finding in findings] == [
        (Verdict.NEVER_JOINED, True, 1),
        (Verdict.NOT_JOINED_YET, False, 8),
    ]


def test_a_kept_one_may_be_joined_where_joins_were_seen():
    stacks = [pthread_stack(n, started_at=50, exited=51, site=THREAD_SITE) for n in range(3)]
    other = pthread_stack(9, started_at=1, exited=2)
    lists = listed(stacks)
    known = history((10, listed([other])), (40, thread_lists()), (52, lists))
    findings = judge(stacks, lists, search=kept_only(stacks[2:]), history=known).findings
    assert [(finding.verdict, finding.leak, finding.count) for finding in findings] == [
        (Verdict.NEVER_JOINED, True, 2),
        (Verdict.JOINED_LATER, False, 1),
    ]


def test_mappings_likewise():
    left = [orphaned(n) for n in range(4)]
    finding = only(judge(left, READ, search=kept_only(left[3:])))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.ORPHANED_MAPPING, True, 4)


# --- what was not searched -------------------------------------------------------


def test_without_a_search_it_is_undecided():
    batch = [pthread_stack(n, started_at=10, exited=11) for n in range(8)]
    lists = listed(batch)
    diagnosis = judge(batch, lists, search=no_search, history=history((0, thread_lists()), (60, lists)))
    finding = only(diagnosis)
    assert (finding.verdict, finding.leak, finding.undecided) == (Verdict.NOT_JOINED_YET, False, True)
    assert diagnosis.undecided == 8


def test_without_a_search_growth_is_likely_a_leak_and_never_proved():
    stacks = steady(12)
    finding = only(judge(stacks, listed(stacks), search=no_search, history=history((0, thread_lists()))))
    assert (finding.leak, finding.certainty) == (True, Certainty.LIKELY)


@pytest.mark.parametrize(("unsearched", "decided"), [(0, True), (4096, False), (8 * 7, True), (8 * 8, False)])
def test_memory_that_was_left_out_may_hold_so_many_handles(unsearched: int, decided: bool):
    batch = [pthread_stack(n) for n in range(8)]

    def search(suspects: Sequence[Suspect]) -> Search:
        gaps = (f"{unsearched} bytes are in swap and were not searched",) if unsearched else ()
        found = nothing_left(suspects)
        return replace(found, complete=not unsearched, unsearched_bytes=unsearched, gaps=gaps)

    diagnosis = judge(batch, listed(batch), search=search)
    finding = only(diagnosis)
    assert (finding.leak, diagnosis.undecided) == ((True, 0) if decided else (False, 8))
    proved = finding.certainty is Certainty.PROVED
    assert proved == (unsearched == 0)


def test_what_the_search_does_not_speak_of_is_unknown():
    stacks = [pthread_stack(n) for n in range(2)]

    def half(suspects: Sequence[Suspect]) -> Search:
        return replace(nothing_left(suspects), reach={suspects[0]: Reach(True)})

    findings = judge(stacks, listed(stacks), search=half).findings
    assert [(finding.leak, finding.undecided) for finding in findings] == [(True, False), (False, True)]


def test_the_places_that_keep_most_are_named():
    """One handle may be in three registers of a thread that is about to join it."""
    stacks = [pthread_stack(n) for n in range(4)]
    array = Holder(Where.STACK, 0x7FFC0000, "", 1, "main")
    registers = tuple(Holder(Where.REGISTER, None, name, 1, "main") for name in ("rdi", "rbx", "r12"))

    def one_in_registers(suspects: Sequence[Suspect]) -> Search:
        found = {
            suspect: Reach(False, registers if suspect == suspects[0] else (array,)) for suspect in suspects
        }
        return replace(all_kept(suspects), reach=found)

    reach = only(judge(stacks, listed(stacks), search=one_in_registers)).reach
    assert reach is not None
    assert reach.holders[0] == array
    assert len(reach.holders) == 3


def test_threads_joined_during_the_search_are_not_reported():
    """Not CANNOT TELL: a gate would fail a program that joins its threads."""
    stacks = [pthread_stack(n) for n in range(3)]

    def one_is_joined(suspects: Sequence[Suspect]) -> Search:
        found = all_kept(suspects)
        del found.reach[suspects[0]]
        return replace(found, gone=frozenset(suspects[:1]))

    diagnosis = judge(stacks, listed(stacks), search=one_is_joined)
    finding = only(diagnosis)
    assert (finding.verdict, finding.count) == (Verdict.NOT_JOINED_YET, 2)
    assert diagnosis.undecided == 0


def test_the_size_of_a_stack_is_all_of_it():
    stack = pthread_stack(1)
    assert only(judge([stack], listed([stack]))).size == STACK_BYTES
