# SPDX-License-Identifier: Apache-2.0
"""The owner of each mapping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.ledger.owners import assign, totals
from ebpftrace.ledger.replay import Ledger
from ebpftrace.model import (
    NO_STACK,
    Frame,
    Interval,
    Mapping,
    OwnedBy,
    Row,
    Stack,
    StackSighting,
    Thread,
    ThreadId,
    ThreadStart,
)

CREATOR = ThreadId(10, 1)


def mapping(start: int, end: int, made_at: Optional[int] = 100, since: Optional[int] = None) -> Mapping:
    mapper = None if made_at is None else CREATOR
    return Mapping((Interval(start, end),), made_at, mapper, 3, 0x20022, 7, since or made_at)


def run(
    started_at: int, stack: int, size: int = 0, tid: int = 20, exited_at: Optional[int] = None
) -> ThreadStart:
    return ThreadStart(ThreadId(tid, started_at), "worker", stack, size, exited_at, CREATOR, "main")


def known(*threads: Thread) -> dict[ThreadId, Thread]:
    main = Thread(CREATOR, "main", 10)
    return {thread.id: thread for thread in (main, *threads)}


@pytest.mark.parametrize(
    ("stack", "size", "owns"),
    [
        (1000, 64, True),
        (1999, 1, True),
        (2000, 64, False),
        (930, 64, False),
        (900, 1100, True),
        (1900, 200, False),
        (1000, 0, False),
        (1001, 0, True),
        (2000, 0, True),
        (2001, 0, False),
    ],
)
def test_a_thread_begins_at_the_top_of_what_its_clone_call_names(stack: int, size: int, owns: bool) -> None:
    [owned] = assign([mapping(1000, 2000)], [run(200, stack, size)], known())
    assert owned.owned_by is (OwnedBy.RUNS_ON_IT if owns else OwnedBy.MAPPED_IT)
    assert owned.mapper is not None
    assert owned.mapper.id == CREATOR


def test_neighbours_share_a_border_address() -> None:
    areas = [mapping(1000, 2000), mapping(2000, 3000)]
    by_clone = assign(areas, [run(200, 2000)], known())
    assert [owned.owned_by for owned in by_clone] == [OwnedBy.RUNS_ON_IT, OwnedBy.MAPPED_IT]
    by_clone3 = assign(areas, [run(200, 2000, 500)], known())
    assert [owned.owned_by for owned in by_clone3] == [OwnedBy.MAPPED_IT, OwnedBy.RUNS_ON_IT]


def test_a_cached_stack_that_is_reused_changes_owner() -> None:
    first, second = run(200, 1100, 800, exited_at=300), run(400, 1100, 800, tid=21, exited_at=500)
    for runs in ([first, second], [second, first]):
        [owned] = assign([mapping(1000, 2000)], runs, known())
        assert owned.run is second


def test_a_tid_that_is_reused_is_another_thread() -> None:
    gone, reused = run(200, 1100, 800, exited_at=300), run(400, 3100, 800)
    first, second = assign([mapping(1000, 2000), mapping(3000, 4000)], [gone, reused], known())
    assert first.owner is not None
    assert second.owner is not None
    assert (first.owner.alive, second.owner.alive) == (False, True)


def test_a_thread_older_than_the_mapping_does_not_own_it() -> None:
    [owned] = assign([mapping(1000, 2000, made_at=300)], [run(200, 1100, 800)], known())
    assert owned.owned_by is OwnedBy.MAPPED_IT


def test_a_mapping_moved_to_where_a_stack_was_stays_its_mappers() -> None:
    [owned] = assign([mapping(1000, 2000, made_at=100, since=300)], [run(200, 1100, 800)], known())
    assert owned.owned_by is OwnedBy.MAPPED_IT


def test_a_living_thread_on_a_shared_area_wins_over_a_later_one_that_exited() -> None:
    living, gone = run(200, 1100, 100), run(300, 1500, 100, tid=21, exited_at=400)
    [owned] = assign([mapping(1000, 2000)], [living, gone], known())
    assert owned.run is living


def test_baseline_has_an_owner_only_once_a_thread_runs_on_it() -> None:
    areas = [mapping(1000, 2000, None), mapping(3000, 4000, None)]
    idle, used = assign(areas, [run(50, 3100, 800)], known())
    assert (idle.owner, idle.owned_by, idle.mapper) == (None, None, None)
    assert used.owned_by is OwnedBy.RUNS_ON_IT


def test_the_guard_that_is_left_of_a_stack_is_its_threads() -> None:
    on_it = run(200, 2000, exited_at=300)
    guard = mapping(1000, 1100)._replace(made=Interval(1000, 2000), stack_users=(on_it.thread,))
    other = mapping(1500, 1900, made_at=250)
    first, second = assign([guard, other], [on_it], known())
    assert (first.owned_by, first.run) == (OwnedBy.RUNS_ON_IT, on_it)
    assert second.owned_by is OwnedBy.MAPPED_IT


def test_a_part_of_its_creators_stack_is_only_lent() -> None:
    lent = run(200, 1500, exited_at=300)._replace(creator_stack_pointer=1400)
    [owned] = assign([mapping(1000, 2000)], [lent], known())
    assert owned.owned_by is OwnedBy.MAPPED_IT
    [owned] = assign([mapping(1000, 2000)], [lent._replace(exited_at=None)], known())
    assert owned.run is not None, "while it lives, it is on it"
    [owned] = assign([mapping(1000, 2000)], [lent._replace(creator_stack_pointer=2400)], known())
    assert owned.run == lent._replace(creator_stack_pointer=2400)


def test_a_thread_seen_on_a_mapping_owns_it_if_it_was_given_to_none() -> None:
    gone = Thread(ThreadId(30, 120), "gone", 10, exited_at=400)
    living = Thread(ThreadId(31, 130), "living", 10)
    threads = known(gone, living)

    def owner(
        *sightings: StackSighting, area: Optional[Mapping] = None, runs: Sequence[ThreadStart] = ()
    ) -> tuple[int, OwnedBy]:
        [one] = assign([area or mapping(1000, 2000)], runs, threads, sightings)
        assert one.owner is not None
        assert one.owned_by is not None
        return one.owner.id.tid, one.owned_by

    last_sp = StackSighting(gone.id, 1500, 300)
    assert owner(last_sp) == (30, OwnedBy.SWITCHED_TO_IT)
    assert owner(last_sp, StackSighting(living.id, 1600, 200)) == (31, OwnedBy.SWITCHED_TO_IT)
    assert owner(StackSighting(gone.id, 2001, 300)) == (10, OwnedBy.MAPPED_IT)
    # The stack pointer of an empty stack is the first byte above it.
    assert owner(StackSighting(gone.id, 2000, 300)) == (30, OwnedBy.SWITCHED_TO_IT)
    assert owner(StackSighting(gone.id, 1000, 300)) == (10, OwnedBy.MAPPED_IT)
    assert owner(StackSighting(ThreadId(77, 1), 1500, 300)) == (10, OwnedBy.MAPPED_IT)
    assert owner(last_sp, area=mapping(1000, 2000, made_at=350)) == (10, OwnedBy.MAPPED_IT), "it came later"
    assert owner(last_sp, runs=[run(200, 1100, 800)]) == (20, OwnedBy.RUNS_ON_IT)
    [old] = assign([mapping(1000, 2000, None)], [], threads, [last_sp])
    assert old.owner is None, "of the baseline nobody knows whose it was"


@pytest.mark.parametrize("reported_by", ["run", "thread"])
def test_an_exit_counts_whichever_source_knows_it(reported_by: str) -> None:
    on_it = run(200, 1100, 800, exited_at=300 if reported_by == "run" else None)
    thread = Thread(on_it.thread, "worker", 10, exited_at=300 if reported_by == "thread" else None)
    [owned] = assign([mapping(1000, 2000)], [on_it], known(thread))
    assert owned.owner is not None
    assert owned.owner.exited_at == 300


def test_an_unknown_mapper_is_no_owner() -> None:
    [owned] = assign([mapping(1000, 2000)], [], {})
    assert (owned.owner, owned.owned_by) == (None, None)


def test_a_mapper_known_only_by_its_clone_call() -> None:
    started_at = run(50, 9000, 100, exited_at=150)
    area = mapping(1000, 2000)._replace(mapper=started_at.thread)
    [owned] = assign([area], [started_at], {})
    assert owned.owner is not None
    assert (owned.owner.id, owned.owner.exited_at, owned.owned_by) == (
        started_at.thread,
        150,
        OwnedBy.MAPPED_IT,
    )


areas = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda cuts: [
        mapping(start, end, made_at=50) for start, end in zip(sorted(cuts)[::2], sorted(cuts)[1::2])
    ]
)
some_runs = st.lists(
    st.tuples(st.integers(40, 60), st.integers(0, 62), st.integers(0, 1), st.none() | st.just(99)),
    max_size=12,
).map(
    lambda found: [
        run(started_at, stack, size, 100 + tid, gone)
        for tid, (started_at, stack, size, gone) in enumerate(found)
    ]
)


@given(areas, some_runs)
def test_assign_equals_the_nested_loop(areas: list[Mapping], runs: list[ThreadStart]) -> None:
    for owned in assign(areas, runs, known()):
        start, end = owned.mapping.start, owned.mapping.end
        on_it = [
            each
            for each in runs
            if each.thread.started_at >= 50 and start <= each.stack + each.stack_size - 1 < end
        ]
        best = max(
            on_it,
            key=lambda each: (each.exited_at is None, each.thread.started_at, each.thread.tid),
            default=None,
        )
        assert owned.run is best


@given(areas, some_runs)
def test_runs_that_the_kernel_may_drop_change_no_owner(areas: list[Mapping], runs: list[ThreadStart]) -> None:
    rows = [Row(area.start, area.end - area.start, 50, 50, CREATOR, 3, 0x20022, 7) for area in areas]
    ledger = Ledger([])
    ledger.compact(rows, 100)
    gone = ledger.leftovers(rows, [], runs, {}).runs
    kept = [each for each in runs if each not in gone]
    standing = ledger.outstanding(rows)
    assert assign(standing, kept, known()) == assign(standing, runs, known())
    assert all(each.exited_at for each in gone)
    exited = [each.stack_byte for each in kept if each.exited_at]
    assert len(set(exited)) == len(exited), "of one stack there is one"


def test_an_exited_thread_is_known_as_long_as_its_stack_is_mapped() -> None:
    rows = [Row(1000, 1000, 50, 50, CREATOR, 3, 0x20022, 7)]
    ended = run(60, 1000, 1000, exited_at=90)
    thread = Thread(ended.thread, "worker", 10, exited_at=90)

    def forgotten(rows: list[Row]) -> tuple[list[ThreadId], list[ThreadStart]]:
        ledger = Ledger([])
        ledger.compact(rows, 100)
        ledger.leftovers(rows, [thread], [ended], {})
        found = ledger.leftovers(rows, [thread], [ended], {})
        return found.threads, found.runs

    assert forgotten(rows) == ([], [])
    assert forgotten([]) == ([thread.id], [ended])


def test_totals_count_each_owner_most_bytes_first() -> None:
    areas = [mapping(1000, 2000), mapping(3000, 9000), mapping(9000, 9500), mapping(20000, 90000, None)]
    found = totals(assign(areas, [run(200, 3100, 800)], known()), known(), {}, lambda _: NO_STACK)
    assert [(total.thread.id.tid, total.mappings, total.size) for total in found] == [
        (20, 1, 6000),
        (10, 2, 1500),
    ]


def test_totals_name_the_site_with_most_bytes_and_the_growth_of_the_break() -> None:
    stacks = {site: Stack((Frame(f"site_{site}"),)) for site in (1, 2)}
    areas = [
        mapping(1000, 2000)._replace(site=1),
        mapping(3000, 5000)._replace(site=2),
        mapping(6000, 9000)._replace(site=3),
    ]
    only_brk = ThreadId(30, 5)
    threads = known(Thread(only_brk, "grower", 10))
    growth = {CREATOR: 4096, only_brk: 8192}
    found = totals(assign(areas, [], threads), threads, growth, lambda site: stacks.get(site, NO_STACK))
    assert [(total.thread.id, total.brk_growth) for total in found] == [(CREATOR, 4096), (only_brk, 8192)]
    assert [frame.function for frame in found[0].stack.frames] == ["site_2"]
    assert found[1].stack is NO_STACK
