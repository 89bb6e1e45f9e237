# SPDX-License-Identifier: Apache-2.0
"""Of living owners: mappings that nothing points into any more, and threads that pile up."""

from __future__ import annotations

import pytest
from diagnosis_scenes import (
    LIBC,
    MAIN,
    READ,
    THREAD_SITE,
    all_kept,
    at,
    judge,
    nothing_left,
    only,
    pthread_stack,
)

from ebpftrace.diagnosis.evidence import no_search
from ebpftrace.model import (
    Certainty,
    Frame,
    Interval,
    Mapping,
    Outstanding,
    OwnedBy,
    Stack,
    StackSource,
    Verdict,
)

OWN = Stack((Frame("mmap64", module=LIBC), Frame("load", module="/opt/app")), True, StackSource.COPIED)
SITE = 5


def mapped(number: int, made: float = 10.0, prot: int = 3, flags: int = 0x22) -> Outstanding:
    """A mapping of the main thread, which lives."""
    start = 0x600000000000 + number * (1 << 30)
    mapping = Mapping((Interval(start, start + (1 << 20)),), at(made), MAIN.id, prot, flags, SITE)
    return Outstanding(mapping, MAIN, OwnedBy.MAPPED_IT, MAIN)


def findings(mappings: list[Outstanding], **changes: object):
    return judge(mappings, READ, **{"stack_of": lambda _: OWN, **changes}).findings


def test_two_of_one_place_that_nothing_points_into_are_likely_a_leak():
    (finding,) = findings([mapped(1), mapped(2)])
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.LOST_MAPPING, True, 2)
    assert finding.certainty is Certainty.LIKELY
    assert "load" in finding.advice


def test_a_single_one_says_nothing():
    assert findings([mapped(1)]) == ()


@pytest.mark.parametrize("search", [all_kept, no_search])
def test_what_is_kept_or_was_not_searched_for_is_in_use(search):
    assert findings([mapped(1), mapped(2)], search=search) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"prot": 0},  # a reservation
        {"flags": 0x32},  # laid into one
        {"flags": 0x20022},  # a stack
        {"flags": 0x122},  # one that grows down
        {"flags": 0x2},  # a private file
        {"made": 59.9},  # made a moment ago
    ],
)
def test_what_needs_no_pointer_is_not_lost(changes):
    assert findings([mapped(1, **changes), mapped(2, **changes)]) == ()


def test_an_allocators_pointers_may_be_in_a_form_of_its_own():
    frames = (Frame("mmap64", module=LIBC), Frame("je_pages_map", module="/opt/app"), Frame("work"))
    assert findings([mapped(1), mapped(2)], stack_of=lambda _: Stack(frames, True, StackSource.COPIED)) == ()


def test_shared_memory_is_lost_like_any():
    (finding,) = findings([mapped(1, flags=0x1), mapped(2, flags=0x1)])
    assert finding.verdict is Verdict.LOST_MAPPING


# --- threads -------------------------------------------------------------------


def living(starts: list[float]):
    return [
        pthread_stack(n, started_at=started_at, exited=None, site=THREAD_SITE)
        for n, started_at in enumerate(starts)
    ]


STEADY = [5.0 * n for n in range(12)]


def test_threads_that_are_created_and_never_end_pile_up():
    waits = {5000 + n: "futex" for n in range(9)}
    finding = only(judge(living(STEADY), READ, thread_growth=12, thread_waits=waits))
    assert (finding.verdict, finding.leak, finding.count) == (Verdict.GROWING_THREADS, True, 12)
    assert finding.certainty is Certainty.LIKELY
    assert finding.period == pytest.approx(5.0)
    assert any("9 in futex, 3 running" in line for line in finding.evidence)


def test_a_pool_that_fills_and_stays_is_not_called_anything():
    assert judge(living([1.0 + n / 10 for n in range(32)]), READ, thread_growth=32).findings == ()


def test_threads_that_replace_others_do_not_pile_up():
    assert judge(living(STEADY), READ, thread_growth=0).findings == ()


def test_a_short_window_is_reported_and_not_called_a_leak():
    starts = [0.25 * n for n in range(16)]
    finding = only(judge(living(starts), READ, thread_growth=16, report_at=at(4)))
    assert (finding.verdict, finding.leak) == (Verdict.GROWING_THREADS, False)
    assert finding.certainty is Certainty.POSSIBLE


def test_stacks_of_live_threads_are_never_searched_for():
    asked = []

    def search(suspects):
        asked.extend(suspects)
        return nothing_left(suspects)

    judge(living(STEADY), READ, thread_growth=12, search=search)
    assert asked == []
