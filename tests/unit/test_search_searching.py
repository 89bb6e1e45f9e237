# SPDX-License-Identifier: Apache-2.0
"""The whole search on synthetic memory, compared with reachability by a plain loop."""

from __future__ import annotations

import struct
import time
from dataclasses import replace
from typing import NamedTuple, Optional
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.model import (
    Holder,
    Interval,
    ListedThread,
    ReadState,
    Search,
    Suspect,
    ThreadLists,
    Vma,
    Where,
)
from ebpftrace.search import searching
from ebpftrace.search.areas import Areas
from ebpftrace.search.presence import Present
from ebpftrace.search.runs import Runs, intersection, no_runs, runs_of
from ebpftrace.search.searching import Searching
from ebpftrace.search.threads import Moment, ThreadPlace
from ebpftrace.vmas import Vmas

PAGE = 4096
BASE = 0x7F12_0000_0000
DESCRIPTOR = 2368
"""Bytes from a descriptor to the end of its stack."""
RED_ZONE = 128


class Scene(NamedTuple):
    """An address space: what lies where, two pages each, and one between."""

    globals: Interval
    heap: Interval
    live: Interval
    dead: Interval
    cached: Interval
    handles: list[Interval]
    mappings: list[Interval]
    reservation: Interval
    """Around the last of the mappings."""

    @property
    def parts(self) -> list[Interval]:
        return [*self[:5], *self.handles, *self.mappings]


def scene() -> Scene:
    parts = [Interval(BASE + 3 * PAGE * at, BASE + 3 * PAGE * at + 2 * PAGE) for at in range(11)]
    reservation = Interval(parts[10].start - PAGE // 2, parts[10].end + PAGE)
    return Scene(*parts[:5], parts[5:8], parts[8:11], reservation)


SCENE = scene()
STACK_POINTER = SCENE.live.start + PAGE + 512
SUSPECTS = [
    *(Suspect((stack,), stack.end - DESCRIPTOR) for stack in SCENE.handles),
    *(Suspect((piece,)) for piece in SCENE.mappings[:2]),
    Suspect((SCENE.mappings[2],), None, SCENE.reservation),
]
VALUES = [
    value
    for suspect in SUSPECTS
    for value in (
        suspect.handle or suspect.pieces[0].start,
        suspect.pieces[0].start + 24,
        suspect.pieces[0].end,
        (suspect.reservation or suspect.pieces[0]).start - 1,
        (suspect.reservation or suspect.pieces[0]).end - 1,
    )
]
PLACES = st.builds(
    lambda part, offset: part.start + offset,
    st.sampled_from(SCENE.parts),
    st.one_of(
        st.integers(0, 2 * PAGE // 4 - 2).map(lambda at: 4 * at),
        st.sampled_from(
            [0, PAGE - 4, PAGE - 8, 2 * PAGE - 8, 2 * PAGE - DESCRIPTOR, 2 * PAGE - DESCRIPTOR - 4]
        ),
    ),
)
MEMORY = st.dictionaries(PLACES, st.sampled_from(VALUES), max_size=10)


class Made:
    """Stands for ``Source``."""

    no_registers = ""

    def __init__(self, memory: dict[int, int], registers: list[int], quiet: bool) -> None:
        self.content = {part: bytearray(part.size) for part in SCENE.parts}
        for address, value in memory.items():
            part = next(part for part in SCENE.parts if part.start <= address < part.end)
            struct.pack_into("<Q", self.content[part], address - part.start, value)
        self.registers = registers
        self.quiet = quiet

    def vmas(self) -> Vmas:
        vmas = Vmas()
        for part in sorted(SCENE.parts):
            is_file = part is SCENE.globals
            vmas.add(*part, Vma(0, 0, "rw-p", 0, "08:01", 7 if is_file else 0, "/app" if is_file else ""))
        return vmas

    def thread_lists(self, _: Vmas, earlier: ThreadLists) -> ThreadLists:
        return earlier

    def moment(self) -> Moment:
        place = ThreadPlace(1, 1, "one", STACK_POINTER, 0)
        waiting = np.zeros(1, [("tid", "<u4")]) if self.quiet else None
        pointers = np.array([STACK_POINTER], np.uint64)
        words = np.array([self.registers], np.uint64).reshape(1, -1)
        columns = [(Where.REGISTER, f"r{at}") for at in range(len(self.registers))]
        return Moment([place], pointers, pointers, words, columns, waiting)

    def kernel_words(self) -> list[tuple[str, int]]:
        return []

    def present(self, _: Areas, within: Runs) -> Present:
        return Present(intersection(runs_of(SCENE.parts), within), no_runs(), 0)

    def read_into(self, buffer: memoryview, address: int) -> int:
        part = next(part for part in SCENE.parts if part.start <= address < part.end)
        content = self.content[part][address - part.start :][: len(buffer)]
        buffer[: len(content)] = content
        return len(content)

    def require_alive(self, _: Vmas) -> None:
        pass

    def named(self, holders: list[Holder], *_: object) -> dict[Holder, Holder]:
        return {holder: holder for holder in holders}


def thread_lists() -> ThreadLists:
    def thread(stack: Interval, exited: bool) -> ListedThread:
        return ListedThread(stack.end - DESCRIPTOR, 0 if exited else 1, 1, stack, False, exited)

    threads = [thread(SCENE.dead, True), thread(SCENE.live, False)]
    threads += [thread(stack, True) for stack in SCENE.handles]
    return ThreadLists(ReadState.READ, threads=tuple(threads), stack_cache=(SCENE.cached,))


def made_search(made: Made, limit: Optional[int] = None, deadline: Optional[float] = None) -> Search:
    search = Searching(made, SUSPECTS, thread_lists(), limit, deadline, lambda _: None, time.process_time())  # type: ignore[arg-type]
    return search.run()


def refers(suspect: Suspect, value: int) -> bool:
    if suspect.handle is not None:
        return value & ~7 == suspect.handle
    ranges = [*suspect.pieces, *([suspect.reservation] if suspect.reservation else [])]
    return any(start <= value < end for start, end in ranges)


def kept(memory: dict[int, int], registers: list[int]) -> set[Suspect]:
    words = written(memory)
    found = {suspect for suspect in SUSPECTS if any(refers(suspect, value) for value in registers)}
    while True:
        more = {
            suspect
            for address, value in words.items()
            if counts(address, found)
            for suspect in SUSPECTS
            if refers(suspect, value)
        }
        if more <= found:
            return found
        found |= more


def counts(address: int, found: set[Suspect]) -> bool:
    for suspect in SUSPECTS:
        if suspect.pieces[0].start <= address < suspect.pieces[0].end:
            return suspect in found and (suspect.handle is None or address >= suspect.handle)
    for part in (SCENE.dead, SCENE.cached):
        if part.start <= address < part.end:
            return False
    return not SCENE.live.start <= address < STACK_POINTER - RED_ZONE


def written(memory: dict[int, int]) -> dict[int, int]:
    """All words at multiples of 4 as they are once everything is written: later ones overwrite."""
    made = Made(memory, [], True)
    return {
        part.start + at: struct.unpack_from("<Q", made.content[part], at)[0]
        for part in SCENE.parts
        for at in range(0, part.size - 4, 4)
    }


@settings(max_examples=60, deadline=None)
@given(MEMORY, st.lists(st.sampled_from(VALUES), max_size=2), st.booleans())
def test_what_can_be_reached_is_kept_and_nothing_else(
    memory: dict[int, int], registers: list[int], quiet: bool
) -> None:
    with patch.object(searching, "MAX_PASSES", 3), patch.object(searching, "_PAUSE", (0, 0)):
        found = made_search(Made(memory, registers, quiet))
    assert {suspect for suspect, reach in found.reach.items() if not reach.lost} == kept(memory, registers)
    assert found.reach.keys() == set(SUSPECTS)
    assert found.searches == 1 or not quiet
    for suspect, reach in found.reach.items():
        assert bool(reach.holders) != reach.lost
        for holder in reach.holders:
            value = written(memory)[holder.address] if holder.address else registers[int(holder.symbol[1:])]
            assert refers(suspect, value)
            assert not any(start <= (holder.address or 0) < end for start, end in suspect.pieces)


def test_a_quiet_pass_proves_and_few_others_do_not() -> None:
    quiet = made_search(Made({}, [], True))
    assert (quiet.complete, quiet.overlooked, quiet.searches) == (True, 0.0, 1)
    with patch.object(searching, "_MIN_CPU", 0.0), patch.object(searching, "_PAUSE", (0, 0)):
        busy = made_search(Made({}, [], False))
    assert busy.searches == searching._MIN_PASSES
    assert busy.overlooked == 0.25, "two passes over all memory"
    assert not busy.complete
    assert "overlooked" in busy.gaps[-1]
    with patch.object(searching, "_MIN_CPU", 60.0), patch.object(searching, "_PAUSE", (0, 0)):
        thorough = made_search(Made({}, [], False))
    assert thorough.complete
    assert thorough.overlooked == 0.5**searching.MAX_PASSES


def test_what_moves_between_passes_is_found() -> None:
    class Moving(Made):
        """A handle lies in the heap at every third pass only."""

        passes = 0

        def kernel_words(self) -> list[tuple[str, int]]:
            self.passes += 1
            value = SUSPECTS[0].handle if self.passes % 3 == 0 else 0
            struct.pack_into("<Q", self.content[SCENE.heap], 64, value or 0)
            return []

    with patch.object(searching, "_PAUSE", (0, 0)):
        found = made_search(Moving({}, [], False))
    assert not found.reach[SUSPECTS[0]].lost
    assert found.reach[SUSPECTS[0]].holders == (Holder(Where.MAPPING, SCENE.heap.start + 64),)


def test_a_limit_leaves_out_what_was_not_found_by_then() -> None:
    place = SCENE.globals.start + 8
    found = made_search(Made({place: SUSPECTS[3].pieces[0].start}, [], True), limit=PAGE)
    assert found.reach.keys() == {SUSPECTS[3]}
    assert not found.complete
    assert found.unsearched_bytes > 0
    assert "only 12 KiB were searched" in found.gaps[-1]


def test_a_deadline_ends_the_search() -> None:
    found = made_search(Made({}, [], False), deadline=0.0)
    assert found.reach == {}
    assert not found.complete
    assert "time" in found.gaps[-1]


def test_joined_or_unmapped_meanwhile_is_no_suspect_any_more() -> None:
    class Joining(Made):
        calls = 0

        def thread_lists(self, _: Vmas, earlier: ThreadLists) -> ThreadLists:
            self.calls += 1
            return earlier if self.calls < 2 else ThreadLists(ReadState.READ)

        def vmas(self) -> Vmas:
            if self.calls < 2:
                return super().vmas()
            return Vmas(vma for vma in super().vmas() if vma.start != SCENE.mappings[1].start)

    found = made_search(Joining({}, [], True))
    assert found.reach.keys() == {SUSPECTS[3], SUSPECTS[5]}


def test_long_lists_are_read_once_after_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller has read is good enough to begin with: a reading of them takes a second."""

    class Counting(Made):
        calls = 0

        def thread_lists(self, _: Vmas, earlier: ThreadLists) -> ThreadLists:
            self.calls += 1
            return earlier

    counting = Counting({}, [], True)
    monkeypatch.setattr("ebpftrace.search.searching._MANY_LISTED", 1)
    found = made_search(counting)
    assert counting.calls == 1
    assert found.reach == made_search(Made({}, [], True)).reach


def test_a_dead_stack_that_serves_another_thread_by_now_counts() -> None:
    class Reusing(Made):
        def moment(self) -> Moment:
            moment = super().moment()
            return moment._replace(in_use=np.array([SCENE.dead.end - DESCRIPTOR], np.uint64))

    place = SCENE.dead.start + 64
    handle = SUSPECTS[0].handle
    assert handle is not None
    assert made_search(Made({place: handle}, [], True)).reach[SUSPECTS[0]].lost
    assert not made_search(Reusing({place: handle}, [], True)).reach[SUSPECTS[0]].lost


@pytest.mark.parametrize("count", [2000])
def test_many_suspects_have_one_holder_each(count: int) -> None:
    suspects = [
        Suspect((Interval(BASE * 2 + at * PAGE, BASE * 2 + at * PAGE + PAGE),)) for at in range(count)
    ]
    made = Made({SCENE.heap.start: BASE * 2 + 5, SCENE.globals.start: BASE * 2 + 7}, [], True)
    vmas = made.vmas()
    for suspect in suspects:
        vmas.add(*suspect.pieces[0], Vma(0, 0, "rw-p", 0, "00:00", 0, ""))
    with patch.object(Made, "vmas", lambda _: vmas):
        found = Searching(
            made,  # type: ignore[arg-type]
            suspects,
            thread_lists(),
            None,
            None,
            lambda _: None,
            time.process_time(),
        ).run()
    assert [suspect for suspect, reach in found.reach.items() if not reach.lost] == suspects[:1]
    assert len(found.reach[suspects[0]].holders) == 1


def test_a_descriptor_does_not_hold_itself() -> None:
    """It begins with its own address (glibc nptl/descr.h, header.self), and counts once it is kept."""
    handle = SUSPECTS[0].handle
    assert handle is not None
    found = made_search(Made({SCENE.globals.start: handle, handle: handle, handle + 16: handle}, [], True))
    assert found.reach[SUSPECTS[0]].holders == (Holder(Where.MAPPING, SCENE.globals.start),)
    assert made_search(Made({handle: handle}, [], True)).reach[SUSPECTS[0]].lost


@pytest.mark.parametrize("state", [ReadState.READ, ReadState.UNSTABLE])
def test_what_is_joined_or_unmapped_meanwhile_is_gone(state: ReadState) -> None:
    """A list that changed under every reading tells of no join, and of a mapping nothing may be left."""

    class Freeing(Made):
        def thread_lists(self, _: Vmas, earlier: ThreadLists) -> ThreadLists:
            left = tuple(thread for thread in earlier.threads if thread.stack != SCENE.handles[0])
            return replace(earlier, state=state, threads=left)

        def vmas(self) -> Vmas:
            vmas = Vmas()
            for start, end in sorted(SCENE.parts):
                if Interval(start, end) == SCENE.mappings[1]:
                    end -= PAGE
                if Interval(start, end) != SCENE.mappings[0]:
                    vmas.add(start, end, Vma(0, 0, "rw-p", 0, "00:00", 0, ""))
            return vmas

    found = made_search(Freeing({}, [], True))
    joined = {SUSPECTS[0]} if state is ReadState.READ else set()
    assert found.gone == joined | {SUSPECTS[3]}
    assert found.reach.keys() == {*SUSPECTS} - {SUSPECTS[0], SUSPECTS[3], SUSPECTS[4]}


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_descriptor_that_a_live_thread_has_by_now_was_joined(is_listed: bool) -> None:
    """glibc gives it to the next thread; only the lists say that it is not the exited one's any more."""
    handle = SUSPECTS[0].handle
    assert handle is not None

    class Reused(Made):
        def thread_lists(self, _: Vmas, earlier: ThreadLists) -> ThreadLists:
            threads = tuple(
                one._replace(exited=one.exited and is_listed) if one.descriptor == handle else one
                for one in earlier.threads
            )
            return replace(earlier, threads=threads)

        def moment(self) -> Moment:
            return super().moment()._replace(columns=[(Where.REGISTER, "fs_base")])

    found = made_search(Reused({}, [handle], True))
    assert (SUSPECTS[0] in found.gone) != is_listed
    assert (SUSPECTS[0] in found.reach) == is_listed
