# SPDX-License-Identifier: Apache-2.0
"""The ledger against a page-by-page model of an address space."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any, Optional

from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_model import SIZE, Page, Remap, Target, Unmap

from ebpftrace.ledger.events import Remapped, Unmapped
from ebpftrace.ledger.replay import Ledger, Leftovers
from ebpftrace.model import Interval, Mapping, Row, Thread, ThreadId, ThreadStart

THREADS = [ThreadId(tid, 1) for tid in (11, 12, 13)]

places = st.integers(0, SIZE - 1)
sizes = st.integers(1, 8)
threads = st.sampled_from(THREADS)
callers = st.none() | threads
"""None: the thread that mapped the row of the call."""
destinations = st.none() | places
rows = st.integers(0, 20)
"""Index of a row, then by how much the range differs from the row at its start and end."""
nearly = st.sampled_from([0, 0, 0, 1, 2, -1])

calls = st.one_of(
    st.tuples(st.just("mmap"), threads, places, sizes, st.booleans()),
    st.tuples(st.just("mmap"), threads, st.just(0), sizes, st.just(False)),
    st.tuples(st.just("mmap_noreplace"), threads, places, sizes),
    st.tuples(st.just("munmap"), threads, places, sizes),
    st.tuples(
        st.just("munmap_row"), callers, rows, nearly, nearly, st.sampled_from([False, False, False, True])
    ),
    st.tuples(st.just("munmap_row"), callers, rows, st.just(0), st.just(0), st.just(False)),
    st.tuples(st.just("mremap"), threads, places, st.integers(0, 8), sizes, destinations, st.booleans()),
    st.tuples(st.just("mremap_row"), callers, rows, nearly, nearly, sizes, destinations, st.booleans()),
    st.tuples(
        st.just("mremap_row"), callers, rows, st.just(0), st.just(0), sizes, destinations, st.just(False)
    ),
    st.tuples(st.just("exit"), threads),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.just("compact"), st.sampled_from([0, 0, 1, 2, 5, 20])),
    st.tuples(st.just("look")),
)
sequences = st.integers(0, 80).flatmap(lambda length: st.lists(calls, min_size=length, max_size=length))


def _areas(cuts: list[int]) -> list[Interval]:
    cuts = sorted(cuts)
    return [Interval(start, end) for start, end in zip(cuts[::2], cuts[1::2])]


baselines = st.lists(places, max_size=8, unique=True).map(_areas)


def pages_of(mappings: list[Mapping]) -> dict[int, Page]:
    pages: dict[int, Page] = {}
    for mapping in mappings:
        assert mapping.pieces
        for before, after in zip(mapping.pieces, mapping.pieces[1:]):
            assert before.end < after.start
        for piece in mapping.pieces:
            assert piece.size > 0
            for page in range(*piece):
                assert page not in pages, "two mappings overlap"
                pages[page] = Page(mapping.mapper, mapping.made_at)
    return pages


class Tracer:
    """Reads the BPF map and events as the session does, in a shuffled order."""

    def __init__(self, target: Target, shuffle: random.Random) -> None:
        self.target = target
        self.shuffle = shuffle
        self.ledger = Ledger(target.baseline_vmas())
        self.read = 0

    def rows(self) -> list[Row]:
        return self.target.ledger()

    def drain(self) -> None:
        events = self.target.sent[self.read :]
        self.read = len(self.target.sent)
        self.shuffle.shuffle(events)
        for event in events:
            self.ledger.apply(event)

    def compact(self, lag: int) -> Leftovers:
        rows = self.rows()
        self.drain()
        late = (
            call.entered for call in self.target.under_way if isinstance(call, Remap) or self.was_moved(call)
        )
        self.ledger.compact(rows, min(self.target.now - lag, *(entered - 1 for entered in late), sys.maxsize))
        return self.sweep(rows)

    def was_moved(self, unmap: Unmap) -> bool:
        """The mapping that the call unmapped in part was moved before the call returned."""
        return any(
            isinstance(event, Remapped)
            and event.at > unmap.entered
            and event.old.start < unmap.area.end
            and unmap.area.start < event.old.end
            for event in self.target.sent
        )

    def sweep(self, rows: list[Row]) -> Leftovers:
        """Rows of unmapped mappings leave the table; threads with mappings never do."""
        mappers = {row.mapper for row in rows} | {page.mapper for page in self.target.pages.values()}
        exited = [Thread(mapper, "", 1, exited_at=0) for mapper in mappers if mapper is not None]
        leftovers = self.ledger.leftovers(rows, exited, [], {})
        for row in leftovers.rows:
            if self.target.rows.get(row.start) == row:
                del self.target.rows[row.start]
            else:
                assert row in self.target.newest.values()
        moving = {call.row.mapper for call in self.target.under_way if isinstance(call, Remap) and call.row}
        moving |= {call.twin_of for call in self.target.under_way if isinstance(call, Remap) and call.twin_of}
        standing = {page.mapper for page in self.target.pages.values()} - moving
        assert standing.isdisjoint(leftovers.threads)
        return leftovers

    def pages(self) -> dict[int, Page]:
        rows = self.rows()
        self.drain()
        return pages_of(self.ledger.outstanding(rows))


def perform(targets: Sequence[Target], call: tuple[Any, ...]) -> None:
    """Make the same call in all models; the first one determines the row of the call."""
    name, *arguments = call
    if name.endswith("_row"):
        caller, which, head, tail, *arguments = arguments
        rows = targets[0].ledger()
        if not rows:
            return
        row = rows[which % len(rows)]
        start = max(row.start + head, 0)
        size = max(row.start + row.length + tail - start, 1)
        arguments = [caller or row.mapper, start, size, *arguments]
    for each in targets:
        getattr(each, name.removesuffix("_row"))(*arguments)


A_HOLE_WHERE_A_LEFTOVER_BEGAN = [
    ("mmap", THREADS[0], 0, 1, False),
    ("mmap", THREADS[0], 1, 1, False),
    ("munmap", THREADS[0], 0, 2),
    ("mmap", THREADS[0], 0, 5, False),
    ("munmap", THREADS[0], 1, 1),
    ("mremap", THREADS[0], 0, 5, 3, None, False),
]
"""The first munmap leaves the row of the second mmap behind, and the second munmap finds it."""


@settings(max_examples=400)
@example([], A_HOLE_WHERE_A_LEFTOVER_BEGAN, random.Random(0))
@given(baselines, sequences, st.randoms(use_true_random=False))
def test_ledger_equals_the_page_model(
    baseline: list[Interval], sequence: list[tuple[Any, ...]], shuffle: random.Random
) -> None:
    target, unswept = Target(baseline), Target(baseline)
    folding, waiting = Tracer(target, shuffle), Tracer(unswept, shuffle)
    for call in sequence:
        if call[0] == "compact":
            folding.compact(call[1])
        elif call[0] == "look":
            target.finish_all()
            unswept.finish_all()
            assert folding.pages() == target.pages
        else:
            perform((target, unswept), call)
    target.finish_all()
    unswept.finish_all()
    assert waiting.pages() == target.pages
    assert folding.pages() == target.pages
    folding.compact(0)
    assert folding.ledger.pending == 0
    assert folding.pages() == target.pages
    found = folding.compact(0)
    assert found.are_all
    once_more = folding.compact(0)
    assert set(once_more.rows) <= set(target.newest.values())
    assert once_more.threads == found.threads


plain_calls = st.one_of(
    *[st.tuples(st.just("mmap"), threads, places, sizes, st.booleans())] * 2,
    st.tuples(st.just("munmap"), threads, places, sizes),
    *[st.tuples(st.just("munmap_row"), callers, rows, nearly, nearly, st.just(False))] * 2,
    st.tuples(st.just("birth"), places),
    st.tuples(st.just("compact")),
)


@given(baselines, st.lists(plain_calls, max_size=60), st.randoms(use_true_random=False))
def test_a_thread_is_reported_with_what_is_left_of_the_mapping_it_began_on(
    baseline: list[Interval], sequence: list[tuple[Any, ...]], shuffle: random.Random
) -> None:
    target = Target(baseline)
    tracer = Tracer(target, shuffle)
    runs: list[ThreadStart] = []
    began_on: dict[ThreadId, Page] = {}
    for call in sequence:
        if call[0] == "compact":
            read = tracer.rows()
            tracer.drain()
            tracer.ledger.compact(read, target.now, runs)
            forgotten = tracer.ledger.leftovers(read, [], runs, {}).runs
            last_on = {(run.stack_byte, began_on[run.thread]): run for run in runs}
            needed = [run for (_, page), run in last_on.items() if page in target.pages.values()]
            assert not set(needed).intersection(forgotten), "of those on one stack, the last is not forgotten"
            continue
        if call[0] == "birth":
            target.now += 1
            thread = ThreadId(100 + len(runs), target.now)
            page = target.pages.get(call[1])
            if page is not None and page.made_at is not None:
                runs.append(ThreadStart(thread, "", call[1], 1, target.now, THREADS[0], ""))
                began_on[thread] = page
        else:
            perform((target,), call)
        target.finish_all()
    tracer.drain()
    found: dict[ThreadId, Page] = {}
    for mapping in tracer.ledger.outstanding(tracer.rows(), runs):
        on_it = {run.thread for run in runs if any(run.stack in range(*piece) for piece in mapping.pieces)}
        for thread in on_it.union(mapping.stack_users):
            if mapping.since is not None and mapping.since <= thread.started_at:
                assert thread not in found, "it began on one mapping"
                found[thread] = Page(mapping.mapper, mapping.made_at)
    standing = set(target.pages.values())
    assert found == {thread: page for thread, page in began_on.items() if page in standing}


def test_entries_too_young_to_judge_are_found_later() -> None:
    def are_all(
        rows: list[Row], threads: list[Thread], runs: list[ThreadStart], hole: Optional[Unmapped] = None
    ) -> bool:
        ledger = Ledger([])
        if hole:
            ledger.apply(hole)
        ledger.compact(rows, 100)
        ledger.leftovers(rows, threads, runs, {})
        return ledger.leftovers(rows, threads, runs, {}).are_all

    def row(since: int) -> Row:
        return Row(0x10000, 0x1000, since, since, ThreadId(1, 1), 3, 0x22, 0)

    def thread(exited_at: Optional[int]) -> Thread:
        return Thread(ThreadId(2, 1), "", 1, exited_at=exited_at)

    def run(exited_at: Optional[int]) -> ThreadStart:
        return ThreadStart(ThreadId(2, 1), "", 0x10000, 0x1000, exited_at, ThreadId(1, 1), "")

    assert are_all([row(90)], [thread(90), thread(None)], [run(90), run(None)])
    assert not are_all([row(110)], [], [])
    assert not are_all([], [thread(110)], [])
    assert not are_all([], [], [run(110)])
    assert not are_all([row(90)], [], [], Unmapped(Interval(0x10000, 0x11000), 110))
