# SPDX-License-Identifier: Apache-2.0
"""Each verdict, and a similar case that must not get it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from diagnosis_scenes import (
    ABSENT,
    HEAP_BYTES,
    HEAP_FLAGS,
    LIBC,
    MUSL,
    NO_LIBC,
    OWN_SITE,
    OWN_STACK,
    READ,
    REPORT,
    SECOND,
    STACK_BYTES,
    THREAD_SITE,
    THREAD_STACK,
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
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ebpftrace.diagnosis.evidence import no_search
from ebpftrace.frames import culprit
from ebpftrace.model import (
    Certainty,
    Frame,
    Interval,
    Mapping,
    Outstanding,
    OwnedBy,
    ReadState,
    Search,
    Stack,
    StackSource,
    Suspect,
    ThreadLists,
    Verdict,
    Vma,
)
from ebpftrace.procfs.maps import parse_smaps
from ebpftrace.report.headline import title
from ebpftrace.vmas import Vmas

GROWING = [5.0, 15.0, 25.0, 35.0, 45.0, 55.0]
RAW_CLONE = {"tgid": 6000, "size": 40960, "clone3": False, "top": 0}


def steadily(count, **changes):
    """Stacks of threads that were created evenly over the window of 60 s."""
    step = 57.0 / count
    return [
        pthread_stack(number, started_at=step * number, exited=step * number + 0.5, **changes)
        for number in range(count)
    ]


# --- never joined -----------------------------------------------------------


def test_on_the_list_in_use_and_exited_is_never_joined():
    stack = pthread_stack(1, site=THREAD_SITE)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack)))))
    assert (finding.verdict, finding.leak, finding.before_attach) == (Verdict.NEVER_JOINED, True, False)
    assert finding.orphans[0].outstanding is stack
    assert finding.start_routine == Frame("routine_401000")
    assert "acme::Timer::on_minute()" in finding.advice
    assert any("49.0 s before the report" in line for line in finding.evidence)


def test_three_all_through_the_window_have_a_rate_and_two_have_none():
    stacks = [pthread_stack(number, started_at=15 * number, exited=15 * number + 1) for number in range(1, 4)]
    two, three = (
        only(judge(some, thread_lists(*(listed_thread(span(stack)) for stack in some))))
        for some in (stacks[:2], stacks)
    )
    assert two.bytes_per_minute is None
    assert three.bytes_per_minute == pytest.approx(3 * STACK_BYTES)


@pytest.mark.parametrize(
    "how", [{"target_exited_at": at(1.5)}, {"report_at": at(1.5)}], ids=["ended", "lives"]
)
def test_what_is_judged_at_once_counts_against_the_whole_window(how):
    """Not against the half second that is left of it when owners need a second to count as exited."""
    stacks = [pthread_stack(n, started_at=n * 0.3 + n % 2 * 0.05, exited=n * 0.3 + 0.1) for n in range(5)]
    finding = only(judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks)), **how))
    assert finding.bytes_per_minute == pytest.approx(5 * STACK_BYTES * 60 / 1.5, rel=0.2)


def test_a_burst_has_no_rate():
    stacks = [pthread_stack(number, started_at=30 + number / 10, exited=32) for number in range(10)]
    finding = only(judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks))))
    assert (finding.leak, finding.bytes_per_minute, finding.period) == (True, None, None)


def test_no_rate_is_above_what_the_address_space_grew_by():
    stacks = [pthread_stack(number, started_at=5 * number, exited=5 * number + 1) for number in range(11)]
    lists = thread_lists(*(listed_thread(span(stack)) for stack in stacks))
    rates = [
        only(judge(stacks, lists, virt_growth=growth)).bytes_per_minute
        for growth in (None, 20 * STACK_BYTES, 3 * STACK_BYTES, 0, -STACK_BYTES)
    ]
    assert rates == [pytest.approx(12 * STACK_BYTES)] * 2 + [pytest.approx(3 * STACK_BYTES), None, None]


def test_a_batch_each_time_is_counted():
    stacks = [
        pthread_stack(8 * step + twin, started_at=5 * step + twin / 1000, exited=5 * step + 1)
        for step in range(12)
        for twin in range(8)
    ]
    finding = only(judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks))))
    assert (finding.period, finding.batch) == (pytest.approx(5.0), 8)
    assert any("8 at once every 5" in line for line in finding.evidence)


def test_a_window_below_a_second_has_no_rate():
    stacks = [pthread_stack(n, started_at=n * 0.05, exited=n * 0.05 + 0.01) for n in range(10)]
    finding = only(
        judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks)), report_at=at(0.9))
    )
    assert (finding.leak, finding.bytes_per_minute) == (True, None)


@example(interval=0.875, window=7.0, lived=2.0, batch=1)
@given(
    interval=st.floats(0.05, 10),
    window=st.floats(6, 120),
    lived=st.floats(0.001, 2),
    batch=st.integers(1, 3),
)
def test_the_rate_is_that_of_the_period(interval: float, window: float, lived: float, batch: int):
    """What still ran, or exited just now, at the end of a short window makes neither look slower."""
    started_at = [step * interval for step in range(int((window - 1 - lived) / interval))]
    assume(4 <= len(started_at) <= 200)
    stacks = [
        pthread_stack(batch * step + twin, started_at=at_second, exited=at_second + lived)
        for step, at_second in enumerate(started_at)
        for twin in range(batch)
    ]
    lists = thread_lists(*(listed_thread(span(stack)) for stack in stacks))
    finding = only(judge(stacks, lists, report_at=at(window)))
    assert finding.period == pytest.approx(interval)
    assert finding.bytes_per_minute == pytest.approx(batch * STACK_BYTES * 60 / interval)


def test_what_came_regularly_and_stopped_has_no_period():
    """Helpers of a start-up, never joined: a leak of a few stacks, not so much a second."""
    stacks = [pthread_stack(n, started_at=0.1 * n, exited=0.1 * n + 0.05) for n in range(8)]
    finding = only(judge(stacks, thread_lists(*(listed_thread(span(stack)) for stack in stacks))))
    assert finding.leak
    assert finding.period is None
    assert finding.bytes_per_minute is None
    assert not any("regularly" in line for line in finding.evidence)


def test_one_a_minute_is_reported():
    stacks = [pthread_stack(number, started_at=60 * number, exited=60 * number + 1) for number in range(5)]
    lists = thread_lists(*(listed_thread(span(stack)) for stack in stacks))
    finding = only(judge(stacks, lists, report_at=at(300)))
    assert finding.period == pytest.approx(60.0)
    assert any("every 60 s" in line for line in finding.evidence)


def test_a_detached_thread_that_ended_by_a_bare_exit_leaves_its_stack_and_nothing_is_said_of_a_join():
    stack = pthread_stack(1)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack), detached=True))))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert any("bare exit" in line for line in finding.evidence)
    assert "SYS_exit" in finding.advice
    assert not any("join" in line for line in (*finding.evidence, finding.advice))


def test_a_detached_thread_that_exited_just_now_is_given_time():
    stack = pthread_stack(1, started_at=50, exited=59.5)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack), detached=True)), search=no_search))
    assert (finding.verdict, finding.leak) == (Verdict.JUST_EXITED, False)


def test_one_that_just_exited_may_still_be_joined():
    stack = pthread_stack(1, started_at=50, exited=59.5)
    lists = thread_lists(listed_thread(span(stack)))
    finding = only(judge([stack], lists, search=no_search))
    assert (finding.verdict, finding.leak) == (Verdict.JUST_EXITED, False)
    assert only(judge([stack], lists, search=no_search, min_age=SECOND // 4)).undecided
    assert only(judge([stack], lists)).leak, "nobody has its handle, so nobody can"


def test_lists_that_changed_under_every_reading_prove_nothing():
    stack = pthread_stack(1)
    lists = replace(thread_lists(listed_thread(span(stack))), state=ReadState.UNSTABLE, why="torn")
    diagnosis = judge([stack], lists, search=all_kept)
    assert (only(diagnosis).verdict, only(diagnosis).leak) == (Verdict.STACK_CACHE, False)
    assert only(diagnosis).undecided
    assert any("torn" in note for note in diagnosis.notes)


def test_a_live_stack_pointer_against_the_lists_is_reported_and_no_leak():
    stack = pthread_stack(1)
    lists = thread_lists(listed_thread(span(stack)))
    finding = only(judge([stack], lists, live_stack_pointers={42: stack.mapping.end - 8192}))
    assert not finding.leak
    assert any("conflicting" in line and "thread 42" in line for line in finding.evidence)


def test_a_live_stack_pointer_elsewhere_changes_nothing():
    stack = pthread_stack(1)
    lists = thread_lists(listed_thread(span(stack)))
    assert only(judge([stack], lists, live_stack_pointers={42: stack.mapping.end})).leak


def test_musl_keeps_no_cache_so_a_stack_that_stays_was_never_joined():
    stack = pthread_stack(1, flags=0x22, clone3=False)
    finding = only(judge([stack], MUSL))
    assert (finding.verdict, finding.leak) == (Verdict.NEVER_JOINED, True)
    assert only(judge([stack], MUSL, search=all_kept)).verdict is Verdict.NOT_JOINED_YET


def test_threads_of_two_start_routines_are_two_findings():
    stacks = [pthread_stack(number, site=THREAD_SITE) for number in range(4)]
    lists = thread_lists(
        *(listed_thread(span(stack), start_routine=number % 2 + 1) for number, stack in enumerate(stacks))
    )
    findings = judge(stacks, lists).findings
    assert {finding.start_routine.function for finding in findings} == {"routine_1", "routine_2"}
    assert [finding.count for finding in findings] == [2, 2]


@pytest.mark.parametrize("other", [False, True], ids=["beginning", "another way"])
def test_stacks_that_were_cut_belong_to_the_only_whole_one_that_begins_so(other):
    """Where many stacks are seen, not all are copied: then one cause must not become two findings."""
    begins = THREAD_STACK.frames[1:2] if other else THREAD_STACK.frames[:3]
    cut = Stack(begins, False, StackSource.SIGNATURE, "cut")
    stacks = [pthread_stack(number, site=99 if number < 6 else THREAD_SITE) for number in range(8)]
    lists = thread_lists(*(listed_thread(span(stack)) for stack in stacks))
    findings = judge(stacks, lists, stack_of=lambda site: cut if site == 99 else THREAD_STACK).findings
    assert sorted(finding.count for finding in findings) == ([2, 6] if other else [8])
    assert other or findings[0].stack == THREAD_STACK


# --- stack cache ------------------------------------------------------------


def test_off_the_list_in_use_is_the_cache():
    finding = only(judge([pthread_stack(1), pthread_stack(2)], READ, search=all_kept))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.STACK_CACHE, False, 2)
    assert not finding.undecided


def test_on_the_cache_list_is_the_cache_whatever_made_it():
    stack = pthread_stack(1, site=OWN_SITE)
    finding = only(judge([stack], thread_lists(stack_cache=(span(stack),), stack_cache_bytes=STACK_BYTES)))
    assert finding.verdict is Verdict.STACK_CACHE
    assert "list of cached stacks" in finding.evidence[0]


def test_too_many_for_the_cache_is_a_conflict_but_glibc_has_the_last_word():
    finding = only(judge(steadily(30, site=THREAD_SITE), READ, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.STACK_CACHE, False)
    assert any("conflicting" in line for line in finding.evidence)


def test_without_lists_a_few_stacks_may_be_the_cache():
    diagnosis = judge(steadily(3), ABSENT, search=all_kept)
    finding = only(diagnosis)
    assert (finding.verdict, finding.leak, finding.undecided) == (Verdict.STACK_CACHE, False, True)
    assert any("cannot tell" in line for line in finding.evidence)
    assert diagnosis.undecided == 3


def test_without_lists_a_stack_that_nothing_points_to_is_abandoned():
    finding = only(judge(steadily(3), ABSENT))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert finding.certainty is Certainty.PROVED


@pytest.mark.parametrize(
    ("libc", "verdict"),
    [(ABSENT, Verdict.ABANDONED_STACK), (MUSL, Verdict.NEVER_JOINED), (NO_LIBC, Verdict.ABANDONED_STACK)],
)
def test_areas_from_before_attach_that_are_shaped_like_stacks(libc: ThreadLists, verdict: Verdict):
    """Where no list says whose they are: lost, or nobody can tell."""
    area = Interval(0x7F0000000000, 0x7F0000000000 + STACK_BYTES)
    lost = only(judge([], libc, stack_shaped=[area]))
    assert (lost.verdict, lost.leak, lost.before_attach) == (verdict, True, True)
    kept = judge([], libc, stack_shaped=[area], search=all_kept)
    assert not only(kept).leak
    assert kept.undecided == (0 if libc is MUSL else 1)
    occupied = judge([], libc, stack_shaped=[area], live_stack_pointers={42: area.end - 4096})
    assert not only(occupied).leak


def test_without_lists_more_than_the_cache_holds_and_growing_is_a_leak():
    finding = only(judge(steadily(30), ABSENT, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert any("no thread lists" in line for line in finding.evidence)


def test_without_lists_a_burst_of_exited_threads_is_not_yet_a_leak():
    burst = [pthread_stack(number, started_at=40 + number / 100, exited=45) for number in range(30)]
    finding = only(judge(burst, ABSENT, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.STACK_CACHE, False)


def test_a_larger_limit_is_respected():
    roomy = replace(ABSENT, stack_cache_limit=1 << 40)
    assert not only(judge(steadily(30), roomy, search=all_kept)).leak


# --- abandoned stack --------------------------------------------------------


def test_the_reproducer_is_n_abandoned_stacks():
    """The parent maps 40960 bytes with MAP_STACK, a raw clone without CLONE_THREAD runs on it and exits."""
    finding = only(judge(steadily(7, **RAW_CLONE), READ))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.ABANDONED_STACK, True, 7)
    assert finding.size == 7 * 40960
    assert "waitpid" in finding.advice


@pytest.mark.parametrize(("tgid", "top"), [(6000, 0x1000), (0, 0)])
def test_a_raw_clone_is_reported_by_its_group_or_by_having_no_descriptor(tgid: int, top: int):
    """Even if no stack is known, and the group of a short-lived task is not."""
    finding = only(judge([pthread_stack(1, tgid=tgid, clone3=False, top=top)], READ))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    pthread = pthread_stack(1, tgid=0, clone3=False, top=0x900)
    assert only(judge([pthread], READ, search=all_kept)).verdict is Verdict.STACK_CACHE


@pytest.mark.parametrize("lists", [READ, ABSENT, MUSL, NO_LIBC])
def test_a_single_abandoned_stack_is_a_leak(lists: ThreadLists):
    finding = only(judge([pthread_stack(1, **RAW_CLONE)], lists))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)


def test_an_abandoned_stack_that_just_lost_its_owner_is_not_yet_one():
    stack = pthread_stack(1, started_at=50, exited=59.9, **RAW_CLONE)
    assert only(judge([stack], READ, search=no_search)).verdict is Verdict.JUST_EXITED


def test_a_stack_with_a_live_task_on_it_is_not_abandoned():
    stack = pthread_stack(1, **RAW_CLONE)
    finding = only(judge([stack], READ, live_stack_pointers={9: stack.mapping.start + 100}))
    assert not finding.leak
    assert any("conflicting" in line for line in finding.evidence)


def test_a_stack_that_served_before_is_perhaps_kept_for_reuse():
    stack = pthread_stack(1, made=5, started_at=30, exited=31, **RAW_CLONE)
    finding = only(judge([stack], READ, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, False)
    assert any("served before" in line for line in finding.evidence)


def test_a_pool_of_stacks_is_kept_and_does_not_grow():
    pool = [pthread_stack(n, started_at=1, exited=1.1, site=OWN_SITE, flags=0x22) for n in range(8)]
    finding = only(judge(pool, READ, search=all_kept))
    assert (finding.verdict, finding.leak, finding.undecided) == (Verdict.ABANDONED_STACK, False, False)
    assert any("workers in app_server" in line for line in finding.evidence)


def test_stacks_of_the_application_that_are_kept_and_pile_up_are_likely_a_leak():
    finding = only(judge(steadily(12, site=OWN_SITE, flags=0x22), READ, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert finding.certainty is Certainty.LIKELY


def test_reuse_is_no_question_of_the_age_that_is_asked_for():
    """A clone follows the mmap within microseconds: with --min-age 0 too, that is no second service."""
    stack = pthread_stack(1, **RAW_CLONE)
    finding = only(judge([stack], READ, min_age=0))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)


@pytest.mark.parametrize(
    "library",
    [
        # glibc, thrd_create; musl without symbols, whose clone bears its neighbour's name.
        ["__clone3", "__clone_internal", "create_thread", "__pthread_create_2_1", "__thrd_create"],
        ["memset", "pthread_create", "pthread_create"],
    ],
)
def test_the_advice_names_the_creator_of_the_threads(library: list[str]):
    frames = tuple(Frame(name) for name in [*library, "acme::start_job()", "main"])
    stack = pthread_stack(1, site=OWN_SITE)
    made = Stack(frames, True, StackSource.COPIED)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack))), stack_of=lambda _: made))
    assert "acme::start_job()" in finding.advice


HEADER = "/usr/include/c++/12/bits/std_thread.h"


@pytest.mark.parametrize(
    "wrapper",
    [
        Frame("thread<accept()::<lambda()> >", HEADER, 142, "/opt/app", inlined=True),
        Frame("spawn_unchecked<fn>", "/rustc/0a1b/library/std/src/thread/lifecycle.rs", 137, "/opt/app"),
        Frame("std::make_unique<Job>", "/usr/lib/llvm-14/include/c++/v1/memory", 9, "/opt/app"),
    ],
)
def test_what_a_library_inlined_into_the_program_creates_no_threads(wrapper: Frame):
    frames = (Frame("__clone3", module=LIBC), wrapper, Frame("accept()", "/src/a.cc", 8, "/opt/app"))
    made = Stack(frames, True, StackSource.COPIED)
    stack = pthread_stack(1, site=OWN_SITE)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack))), stack_of=lambda _: made))
    assert "threads that accept() creates" in finding.advice
    assert culprit(made) == frames[2]


def test_a_program_without_names_is_named_by_its_file_not_by_the_c_library():
    nameless = Frame(None, module="/opt/app", offset=0x1234)
    frames = (Frame("mmap64", module=LIBC), nameless, Frame("__libc_start_call_main", module=LIBC))
    made = Stack(frames, True, StackSource.COPIED)
    stack = pthread_stack(1, site=OWN_SITE)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack))), stack_of=lambda _: made))
    assert finding.advice.startswith("join the threads that app+0x1234 creates")
    assert culprit(made) == nameless


def test_large_blocks_of_malloc_are_to_be_freed_by_their_caller():
    names = ("__mmap64", "sysmalloc_mmap", "sysmalloc", "_int_malloc", "__libc_malloc")
    frames = (*(Frame(name, module=LIBC) for name in names), Frame("load_image", module="/opt/app"))
    made = Stack(frames, True, StackSource.COPIED)
    left = [orphaned(number, made=5 * number, exited=5 * number + 1, site=OWN_SITE) for number in range(11)]
    finding = only(judge(left, stack_of=lambda _: made))
    assert finding.leak
    assert "free what load_image allocates" in finding.advice
    assert any("block of malloc" in line for line in finding.evidence)


def test_a_stack_the_application_gave_a_pthread_and_never_frees():
    """pthread_attr_setstack, joined: on none of glibc's lists; the frames say who mapped it."""
    finding = only(judge([pthread_stack(1, site=OWN_SITE)], thread_lists(stack_cache_bytes=0)))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert "take_stack" in finding.advice


def test_frame_pointers_do_not_show_what_mapped_a_stack():
    """They often miss the direct caller of mmap: pthread_create may have been there."""
    walked = replace(OWN_STACK, source=StackSource.FRAME_POINTER)
    stack = pthread_stack(1, site=OWN_SITE)
    finding = only(judge([stack], READ, stack_of=lambda _: walked, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.STACK_CACHE, False)


def test_a_user_stack_whose_thread_was_never_joined():
    stack = pthread_stack(1, site=OWN_SITE, flags=0x22)
    finding = only(judge([stack], thread_lists(listed_thread(span(stack), user_stack=True))))
    assert (finding.verdict, finding.leak) == (Verdict.ABANDONED_STACK, True)
    assert "pthread_join" in finding.advice


def test_a_runtime_without_libc_must_grow_to_leak():
    few = [pthread_stack(number, flags=0x22, started_at=30 + number / 10, exited=40) for number in range(5)]
    assert not only(judge(few, NO_LIBC, search=all_kept)).leak
    assert only(judge(steadily(6, flags=0x22, size=65536), NO_LIBC, search=all_kept)).leak is False
    assert only(judge(steadily(6, flags=0x02, size=65536), NO_LIBC, search=all_kept)).leak


def test_a_stack_that_is_a_small_part_of_its_mapping_is_a_pool():
    """Go's threads run on 16 KiB pieces of a 64 MiB heap arena."""
    arena = pthread_stack(1, flags=0x22, size=64 << 20)
    run = arena.run._replace(stack=arena.mapping.start + 16384, stack_size=0)
    finding = only(judge([arena._replace(run=run)], NO_LIBC, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.HANDED_OVER, False)


# --- orphaned mapping -------------------------------------------------------


def test_workers_that_map_and_exit_all_through_the_window_leak():
    left = [orphaned(n, made, made + 0.2) for n, made in enumerate(GROWING)]
    for search, certainty in ((nothing_left, Certainty.PROVED), (all_kept, Certainty.LIKELY)):
        finding = only(judge(left, READ, search=search))
        assert (finding.verdict, finding.leak, finding.count) == (Verdict.ORPHANED_MAPPING, True, 6)
        assert finding.period == pytest.approx(10.0)
        assert finding.certainty is certainty


def test_what_is_kept_and_replaced_is_no_leak():
    """Objects that live longer than the window: all of this one stand, and as many older ones went."""
    left = [orphaned(n, made, made + 0.2) for n, made in enumerate(GROWING)]
    finding = only(judge(left, READ, search=all_kept, virt_growth=1 << 20))
    assert (finding.verdict, finding.leak) == (Verdict.HANDED_OVER, False)


def test_a_single_mapping_that_nothing_points_to_is_a_leak():
    finding = only(judge([orphaned(1)], READ))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.ORPHANED_MAPPING, True, 1)


def test_where_pointers_may_be_hidden_no_mapping_is_lost_but_a_handle_is():
    def hidden(suspects: Sequence[Suspect]) -> Search:
        return replace(nothing_left(suspects), hidden="libjvm.so compresses pointers")

    stack = pthread_stack(1)
    findings = judge([orphaned(1), stack], thread_lists(listed_thread(span(stack))), search=hidden).findings
    assert [(finding.verdict, finding.leak, finding.undecided) for finding in findings] == [
        (Verdict.NEVER_JOINED, True, False),
        (Verdict.HANDED_OVER, False, True),
    ]


@pytest.mark.parametrize("made", [[30.0], [1.0, 1.1, 1.2, 1.3, 1.4], [57.0, 57.5, 58.0, 58.5]])
def test_a_single_one_a_burst_or_the_tail_is_perhaps_handed_over(made: list[float]):
    left = [orphaned(n, when, when + 0.2) for n, when in enumerate(made)]
    finding = only(judge(left, READ, search=all_kept))
    assert (finding.verdict, finding.leak) == (Verdict.HANDED_OVER, False)
    assert any("pointers to them are kept in workers in app_server" in line for line in finding.evidence)


def test_a_short_window_is_enough_for_what_is_lost_and_not_for_what_is_kept():
    workers = [orphaned(n, n * 0.25, n * 0.25 + 0.05) for n in range(16)]
    lost = only(judge(workers, READ, report_at=at(4)))
    assert (lost.verdict, lost.leak, lost.count) == (Verdict.ORPHANED_MAPPING, True, 16)
    kept = only(judge(workers, READ, report_at=at(4), search=all_kept))
    assert (kept.verdict, kept.leak, kept.certainty) == (Verdict.HANDED_OVER, False, Certainty.POSSIBLE)


def test_sites_of_equal_frames_are_one_finding():
    same = {site: Stack((Frame("mmap"), Frame("work")), True, StackSource.COPIED) for site in (11, 12, 13)}
    workers = [orphaned(n, 10 + 20 * n, 11 + 20 * n, site=11 + n) for n in range(3)]
    finding = only(judge(workers, READ, stack_of=lambda site: same[site]))
    assert (finding.count, finding.leak) == (3, True)
    assert finding.stack.frames[1].function == "work"


def test_sites_without_frames_stay_apart():
    workers = [orphaned(n, 10 + 20 * n, 11 + 20 * n, site=11 + n) for n in range(3)]
    findings = judge(workers, READ, search=all_kept).findings
    assert [(finding.count, finding.leak) for finding in findings] == [(1, False)] * 3


@pytest.mark.parametrize(
    "caller",
    [
        Frame("os::pd_reserve_memory", module="/usr/lib/jvm/lib/server/libjvm.so"),
        Frame(None, module="/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"),
        Frame("_rjem_je_pages_map", module="/opt/app"),
        Frame("runtime.mmap", module="/opt/gopher"),
    ],
)
def test_an_allocator_maps_for_the_whole_process(caller: Frame):
    stack = Stack((Frame("mmap64", module=LIBC), caller, Frame("work")), True, StackSource.COPIED)
    workers = [orphaned(n, made, made + 0.2, site=5) for n, made in enumerate(GROWING)]
    finding = only(judge(workers, READ, stack_of=lambda _: stack))
    assert (finding.verdict, finding.leak) == (Verdict.HANDED_OVER, False)


def test_a_large_malloc_that_is_never_freed_is_no_allocators_matter():
    names = ("mmap64", "sysmalloc_mmap", "sysmalloc", "_int_malloc", "malloc")
    frames = (*(Frame(name, module=LIBC) for name in names), Frame("load", module="/opt/app"))
    workers = [orphaned(n, made, made + 0.2, site=5) for n, made in enumerate(GROWING)]
    assert only(judge(workers, READ, stack_of=lambda _: Stack(frames, True, StackSource.COPIED))).leak


def test_without_stacks_a_loaded_allocator_is_the_benefit_of_the_doubt():
    library = Vma(0x1000, 0x2000, "r-xp", 0, "08:01", 7, "/usr/lib/libjemalloc.so.2")
    workers = [orphaned(n, made, made + 0.2) for n, made in enumerate(GROWING)]
    assert not only(judge(workers, READ, vmas=Vmas([library]), search=all_kept)).leak


# --- malloc arena -----------------------------------------------------------


def arena(number: int, **changes) -> Outstanding:
    fields = {
        "made": 2.0 * number,
        "exited": 2.0 * number + 1,
        "size": HEAP_BYTES,
        "prot": 0,
        "flags": HEAP_FLAGS,
    }
    return orphaned(number, **{**fields, **changes})


def test_heaps_of_malloc_are_counted_together_and_no_leak():
    heaps = [arena(n, site=n + 20) for n in range(9)]
    finding = only(judge(heaps, READ))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.MALLOC_ARENA, False, 9)
    assert "16 arenas" in finding.evidence[0]
    assert not any("conflicting" in line for line in finding.evidence)


def test_heaps_that_come_all_through_the_window_are_not_reported_as_kept():
    """Threads that malloc, hand over, and exit: their arenas are used again, and fill heap after heap."""
    finding = only(judge([arena(n, made=5.0 * n, exited=5.0 * n + 1) for n in range(11)], READ))
    assert (finding.verdict, finding.leak) == (Verdict.MALLOC_ARENA, False)
    assert "more all through the window" in finding.evidence[0]
    assert "heap profiler" in finding.advice


def test_more_heaps_than_arenas_is_a_conflict():
    finding = only(judge([arena(n) for n in range(20)], READ))
    assert not finding.leak
    assert any("conflicting" in line for line in finding.evidence)


def test_the_limit_of_the_environment_counts():
    finding = only(judge([arena(n) for n in range(3)], READ, arena_limit=1))
    assert "1 arena here (MALLOC_ARENA_MAX)" in finding.evidence[0]
    assert any("conflicting" in line for line in finding.evidence)


def test_a_heap_whose_tail_was_given_back_is_still_one():
    heap = arena(1)
    pieces = (Interval(heap.mapping.start, heap.mapping.start + (1 << 20)),)
    trimmed = heap._replace(mapping=heap.mapping._replace(pieces=pieces))
    assert only(judge([trimmed], READ)).verdict is Verdict.MALLOC_ARENA


@pytest.mark.parametrize(
    "changes",
    [
        {"prot": 3},
        {"flags": 0x22},
        {"start": 0x600000100000},
        {"size": 2 * HEAP_BYTES},
        {"flags": 0x4001},
    ],
)
def test_what_only_readings_like_a_heap_is_judged_as_a_mapping(changes):
    assert only(judge([arena(1, **changes)], READ)).verdict is Verdict.ORPHANED_MAPPING


def test_a_region_shaped_like_a_heap_that_the_application_maps_is_none():
    own = Stack((Frame("mmap64", module=LIBC), Frame("worker", module="/opt/app")), True, StackSource.COPIED)
    finding = only(judge([arena(n, site=5) for n in range(6)], READ, stack_of=lambda _: own))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.ORPHANED_MAPPING, True, 6)


@pytest.mark.parametrize(
    "frames",
    [
        (Frame("mmap64", module=LIBC), Frame("new_heap", module=LIBC), Frame("work", module="/opt/app")),
        (Frame("mmap64", module=LIBC), Frame(None, module=LIBC), Frame("work", module="/opt/app")),
        (Frame("__mmap", module="/opt/static"), Frame("alloc_new_heap", module="/opt/static")),
    ],
)
def test_a_heap_that_malloc_maps_is_one_linked_in_or_not(frames: tuple[Frame, ...]):
    stack = Stack(frames, True, StackSource.COPIED)
    finding = only(judge([arena(1, site=5)], READ, stack_of=lambda _: stack))
    assert finding.verdict is Verdict.MALLOC_ARENA


@pytest.mark.parametrize(
    ("libc", "verdict"),
    [
        ("glibc 2.36", Verdict.ORPHANED_MAPPING),
        ("glibc 2.41", Verdict.MALLOC_ARENA),
        ("glibc 3.0", Verdict.MALLOC_ARENA),
        ("static glibc", Verdict.ORPHANED_MAPPING),
    ],
)
def test_heaps_of_later_glibc_are_without_noreserve(libc, verdict):
    assert only(judge([arena(1, flags=0x22)], replace(READ, libc=libc))).verdict is verdict


def test_musl_has_no_arenas():
    assert only(judge([arena(1)], MUSL)).verdict is Verdict.ORPHANED_MAPPING


# --- just exited, and who is no orphan --------------------------------------


def test_what_ended_with_the_process_left_nothing_behind():
    stacks = [pthread_stack(n, started_at=5, exited=50.1 + n) for n in range(3)]
    workers = [orphaned(n, 5, 50.1 + n) for n in range(3)]
    diagnosis = judge([*stacks, *workers], ABSENT, target_exited_at=at(50), report_at=REPORT)
    assert {finding.verdict for finding in diagnosis.findings} == {Verdict.JUST_EXITED}
    assert sum(finding.count for finding in diagnosis.findings) == 6


def test_mappings_of_live_or_unknown_owners_are_no_findings():
    alive = pthread_stack(1, exited=None)
    baseline = Mapping((Interval(4096, 8192),), None, None, None, None, 0)
    assert judge([alive, Outstanding(baseline, None, None, None)], READ).findings == ()


def test_leaks_come_first_then_bytes():
    leaking = [pthread_stack(n, **RAW_CLONE) for n in range(3)]
    kept = [orphaned(1, size=1 << 30), orphaned(2, size=1 << 20)]

    def mixed(suspects: Sequence[Suspect]) -> Search:
        large = [suspect for suspect in suspects if suspect.pieces[0].size >= 1 << 20]
        return replace(
            nothing_left(suspects), reach={**nothing_left(suspects).reach, **all_kept(large).reach}
        )

    findings = judge([*kept, *leaking], READ, search=mixed).findings
    assert [(f.leak, f.size) for f in findings] == [(True, 3 * 40960), (False, 1 << 30), (False, 1 << 20)]


def test_what_is_in_swap_is_counted_by_smaps():
    """A stack that was swapped out has no RSS."""
    worker = orphaned(1, size=0x3000, start=0x7F0000000000, site=5)
    smaps = b"""7f0000000000-7f0000003000 rw-p 00000000 00:00 0
Size:                 12 kB
Rss:                   0 kB
Swap:                  8 kB
SwapPss:               8 kB
VmFlags: rd wr mr mw me ac
7f0000005000-7f0000006000 rw-p 00000000 00:00 0
Rss:                   4 kB
Swap:                  4 kB
VmFlags: rd wr mr mw me ac
"""
    finding = only(judge([worker], READ, vmas=parse_smaps([smaps]), stack_of=one_place))
    assert (finding.rss, finding.swap) == (0, 8192)
    assert title([finding]).endswith("12 KiB, RSS 0 B, 8 KiB in swap")


def test_rss_is_shared_among_mappings_the_kernel_merged():
    workers = [orphaned(1, size=4096, start=0x10000, site=5), orphaned(2, size=8192, start=0x11000, site=5)]
    area = Vma(0x10000, 0x13000, "rw-p", 0, "00:00", 0, "", rss=12288, swap=6144)
    finding = only(judge(workers, READ, vmas=Vmas([area]), stack_of=one_place))
    assert [orphan.rss for orphan in finding.orphans] == [4096, 8192]
    assert [orphan.swap for orphan in finding.orphans] == [2048, 4096]


def one_place(_site: int) -> Stack:
    return Stack((Frame("work"),), True, StackSource.COPIED)


def test_the_guard_is_reported_where_it_is_an_area():
    stack = pthread_stack(1, **RAW_CLONE)
    start = stack.mapping.start
    areas = (
        Vma(start, start + 4096, "---p", 0, "00:00", 0, "", guard=True),
        Vma(start + 4096, stack.mapping.end, "rw-p", 0, "00:00", 0, ""),
    )
    assert only(judge([stack], READ, vmas=Vmas(areas))).orphans[0].guard == 4096
    assert only(judge([stack], READ)).orphans[0].guard is None


def test_a_mapping_owned_by_its_mapper_is_kept_apart_from_a_stack():
    stack = pthread_stack(1, flags=0x22, site=OWN_SITE)._replace(run=None, owned_by=OwnedBy.MAPPED_IT)
    assert only(judge([stack], READ)).verdict is Verdict.ORPHANED_MAPPING
