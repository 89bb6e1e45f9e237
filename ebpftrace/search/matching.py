# SPDX-License-Identifier: Apache-2.0
"""Finds the words of memory that refer to a suspect, by vector operations on copies of memory.

A word counts at every address that is a multiple of 4: compilers align pointers to 8 bytes, but packed
structs (such as epoll_event) do not.  A word is compared in two halves: the upper half of every pointer into
the suspects is one of few numbers, so one comparison of all 32-bit numbers finds the candidates at both
alignments, at the cost of one comparison of all 64-bit words.

Tags are not part of an address: these are the low 3 bits, the top byte (arm64 TBI, x86 LAM), and, if the word
is a handle or points to the very start of a suspect, all 16 bits above the address, as NaN boxing and
lock-free lists use them.  For other words, ignoring those 16 bits would make a pointer of one random word in
ten million.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.search.runs import Addresses
from ebpftrace.search.suspected import Chosen, Suspected

Halves = NDArray[np.uint32]
"""Memory as 32-bit numbers, low half first (little endian, as all machines that can be traced)."""

_WORD = 8
_CHUNK_HEADER = 16
"""Bytes of malloc's header at the start of a mapping, before a large block (glibc malloc/malloc.c)."""
_HALF = 1 << 32
_MAX_GRANULES = 1 << 21
_MIN_GRANULE = 12
_MAX_LAYERS = 8
_DENSE = 16
"""If one number in this many is the upper half of a pointer, whole words are compared."""
_BITS = 48
"""Bits of an address in user space with page tables of four levels."""
_BITS_LA57 = 56
_IS_TAG_OF_TOP_BYTE = 0xFF
"""Bits 48 to 55, which no tag of the top byte touches."""


Counts = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which of the words at these positions count, whatever they point to."""


class Hits(NamedTuple):
    """Words that count and refer to suspects; each suspect at most once in one piece of memory."""

    positions: NDArray[np.int64]
    """Positions of the low half of each word, in 32-bit numbers from the start of the memory."""
    suspects: NDArray[np.int32]
    """Indices in the list of suspects."""


class _Ranges(NamedTuple):
    """Ranges that may overlap, each with a suspect that a value in it refers to."""

    starts: Addresses
    ends: Addresses
    owners: NDArray[np.int64]

    def only(self, which: NDArray[np.bool_]) -> _Ranges:
        """The chosen ranges."""
        return _Ranges(self.starts[which], self.ends[which], self.owners[which])

    def between(self, first: int, end: int) -> _Ranges:
        """The parts of the ranges between these addresses."""
        starts = np.maximum(self.starts, np.uint64(first))
        ends = np.minimum(self.ends, np.uint64(end))
        some = starts < ends
        return _Ranges(starts[some], ends[some], self.owners[some])


class _Layer:
    """Disjoint ranges, ascending, and the suspects that a value in each refers to."""

    def __init__(self, ranges: _Ranges, any_tag: bool) -> None:
        """The ranges are disjoint, except that several may be equal."""
        self.any_tag = any_tag
        self.starts, self._first, self._counts = np.unique(
            ranges.starts, return_index=True, return_counts=True
        )
        self.ends = ranges.ends[self._first]
        self._members = ranges.owners.astype(np.int32)

    def find(self, values: Addresses, tags: Halves) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Positions in ``values``, and the suspects that they refer to; each range at most once."""
        at = np.searchsorted(self.starts, values, "right") - 1
        inside = (at >= 0) & (values < self.ends[at])
        if not self.any_tag:
            inside &= (tags & np.uint32(_IS_TAG_OF_TOP_BYTE)) == 0
        chosen = np.flatnonzero(inside)
        hit, first = np.unique(at[chosen], return_index=True)
        places = chosen[first]
        counts = self._counts[hit]
        if len(counts) and counts.max() > 1:
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            return np.repeat(places, counts), self._members[np.repeat(self._first[hit], counts) + offsets]
        return places, self._members[self._first[hit]]


class _Window:
    """The ranges below or above 4 GiB, and the quick test that a word has to pass first."""

    def __init__(self, layers: Sequence[_Layer], low: bool, bits: int) -> None:
        self._layers = layers
        self._low = low
        self._bits = bits
        self._start = min(int(layer.starts[0]) for layer in layers)
        end = max(int(layer.ends[-1]) for layer in layers)
        span = end - self._start
        self._span = np.uint64(span)
        self._shift = np.uint64(max(_MIN_GRANULE, (span // _MAX_GRANULES).bit_length()))
        self._occupied = np.zeros((span >> int(self._shift)) + 1, np.bool_)
        for layer in layers:
            first, last = self._granules(layer.starts), self._granules(layer.ends - np.uint64(1))
            self._occupied[first] = self._occupied[last] = True
            long = last - first > 1
            for inside, until in zip(first[long].tolist(), last[long].tolist()):
                self._occupied[inside:until] = True
        self._mask = np.uint32((1 << (bits - 32)) - 1)
        lowest, highest = self._start, end - 1
        self._first_half = np.uint32(lowest if low else 0)
        self._half_span = np.uint32(highest - lowest if low else 0)
        self._prefix_mask, self._prefix = _common(lowest // _HALF, highest // _HALF, bits - 32)
        self._numbers = np.empty(0, np.uint32)
        self._passes = np.empty(0, np.bool_)

    def _granules(self, values: Addresses) -> NDArray[np.int64]:
        return ((values - np.uint64(self._start)) >> self._shift).astype(np.int64)

    def find(self, memory: Halves, counts: Counts) -> Optional[Hits]:
        """The words that refer to a suspect; None if there are none."""
        count = len(memory) - 1
        if len(self._numbers) < count:
            self._numbers = np.empty(count, np.uint32)
            self._passes = np.empty(count, np.bool_)
        numbers, passes = self._numbers[:count], self._passes[:count]
        if self._low:
            np.subtract(memory[:-1], self._first_half, out=numbers)
            np.less_equal(numbers, self._half_span, out=passes)
        else:
            np.bitwise_and(memory[1:], self._prefix_mask, out=numbers)
            np.equal(numbers, self._prefix, out=passes)
        found = np.count_nonzero(passes)
        if not found:
            return None
        positions = self._in_span(memory) if found * _DENSE > count else np.flatnonzero(passes)
        return self._sift(memory, positions, counts) if len(positions) else None

    def _in_span(self, memory: Halves) -> NDArray[np.int64]:
        """Positions of words between the lowest and the highest suspect, without tags.

        If many words pass the test of one half, comparing all whole words takes less time than testing each.
        """
        shift = np.uint64(64 - self._bits)
        found = []
        for offset in (0, 1):
            count = (len(memory) - offset) // 2
            words = np.ascontiguousarray(memory[offset : offset + 2 * count]).view(np.uint64) << shift
            words -= np.uint64(self._start) << shift
            found.append(np.flatnonzero(words < self._span << shift) * 2 + offset)
        return np.concatenate(found)

    def _sift(self, memory: Halves, positions: NDArray[np.int64], counts: Counts) -> Optional[Hits]:
        upper = memory[positions + 1]
        values = memory[positions].astype(np.uint64) | (upper & self._mask).astype(np.uint64) << np.uint64(32)
        distance = values - np.uint64(self._start)
        chosen = np.flatnonzero(distance < self._span)
        chosen = chosen[self._occupied[(distance[chosen] >> self._shift).astype(np.int64)]]
        if len(chosen):
            chosen = chosen[counts(positions[chosen])]
        if not len(chosen):
            return None
        positions, values = positions[chosen], values[chosen]
        tags = upper[chosen] >> np.uint32(_BITS - 32) if self._bits == _BITS else np.zeros_like(upper[chosen])
        found = [layer.find(values, tags) for layer in self._layers]
        places = np.concatenate([at for at, _ in found])
        if not len(places):
            return None
        suspects, first = np.unique(np.concatenate([owners for _, owners in found]), return_index=True)
        return Hits(positions[places[first]], suspects)


class _Narrow(_Window):
    """The window of a 32-bit process, in which a word is one 32-bit number."""

    def find(self, memory: Halves, counts: Counts) -> Optional[Hits]:
        return super().find(np.append(memory, np.uint32(0)), counts)

    def _in_span(self, memory: Halves) -> NDArray[np.int64]:
        return np.flatnonzero(memory[:-1] - self._first_half <= self._half_span)

    def _sift(self, memory: Halves, positions: NDArray[np.int64], counts: Counts) -> Optional[Hits]:
        spread = np.zeros(2 * len(positions), np.uint32)
        spread[0::2] = memory[positions]
        places = np.arange(0, len(spread), 2)
        hits = super()._sift(spread, places, lambda at: counts(positions[at // 2]))
        return None if hits is None else Hits(positions[hits.positions // 2], hits.suspects)


def all_count(positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Every word counts."""
    return np.ones(len(positions), np.bool_)


class Matcher:
    """Finds the words that refer to the wanted suspects."""

    def __init__(self, suspected: Suspected, wanted: Chosen, highest: int = (1 << 47) - 1) -> None:
        """``highest`` is the highest address of the process."""
        bits = _BITS_LA57 if highest >> 47 else _BITS
        handles = np.flatnonzero(wanted & suspected.has_handle)
        some = (wanted & ~suspected.has_handle)[suspected.owners]
        starts, ends, owners = suspected.starts[some], suspected.pointed_ends[some], suspected.owners[some]
        words = np.concatenate((suspected.handles[handles], starts, starts + np.uint64(_CHUNK_HEADER)))
        exact = _Ranges(words, words + np.uint64(_WORD), np.concatenate((handles, owners, owners)))
        reserved = wanted[suspected.reserved_owners]
        within = _Ranges(
            np.concatenate((starts, suspected.reserved_starts[reserved])),
            np.concatenate((ends, suspected.reserved_ends[reserved])),
            np.concatenate((owners, suspected.reserved_owners[reserved])),
        )
        self._windows: list[_Window] = []
        narrow = highest < _HALF
        for low, first, end in ((True, 0, _HALF), (False, _HALF, 1 << bits)):
            layers = _layers(exact.between(first, end), True) + _layers(within.between(first, end), False)
            if layers:
                self._windows.append((_Narrow if narrow and low else _Window)(layers, low, bits))

    def find(self, memory: Halves, counts: Counts = all_count) -> Optional[Hits]:
        """The words that refer to suspects; None if there are none.  The memory may have any length."""
        found = [
            hits for hits in (window.find(memory, counts) for window in self._windows) if hits is not None
        ]
        if len(found) == 2:
            return Hits(*(np.concatenate(both) for both in zip(*found)))
        return found[0] if found else None

    def find_words(self, words: Addresses, limit: int) -> dict[int, list[int]]:
        """Suspect -> positions of separate words that refer to it, at most ``limit`` for each."""
        found: dict[int, list[int]] = {}
        halves = np.ascontiguousarray(words).view(np.uint32)
        for _ in range(limit if len(halves) else 0):
            hits = self.find(halves, lambda at: at % 2 == 0)
            if hits is None:
                break
            for position, suspect in zip(hits.positions.tolist(), hits.suspects.tolist()):
                found.setdefault(suspect, []).append(position // 2)
            halves = halves.copy()
            halves[hits.positions] = halves[hits.positions + 1] = 0
        return found


def _common(first: int, last: int, bits: int) -> tuple[np.uint32, np.uint32]:
    """A mask under which all numbers from first to last are equal, and their common value."""
    mask = (1 << bits) - 1 & ~((1 << (first ^ last).bit_length()) - 1)
    return np.uint32(mask), np.uint32(first & mask)


def _layers(ranges: _Ranges, any_tag: bool) -> list[_Layer]:
    """Distribute ranges that overlap over a few layers of disjoint ones.

    Mappings do not overlap, and at most share reservations.  Only forged ranges need so many layers that the
    last one has to join them; then a pointer into one refers to all of them.
    """
    order = np.lexsort((ranges.owners, ranges.ends, ranges.starts))
    left = _Ranges(ranges.starts[order], ranges.ends[order], ranges.owners[order])
    layers: list[_Layer] = []
    while len(left.starts):
        first = np.ones(len(left.starts), np.bool_)
        first[1:] = (left.starts[1:] != left.starts[:-1]) | (left.ends[1:] != left.ends[:-1])
        number = np.cumsum(first) - 1
        if len(layers) == _MAX_LAYERS - 1:
            chosen = np.ones(len(left.starts), np.bool_)
            left = _joined(left)
        else:
            chosen = _isolated(left.starts[first], left.ends[first])[number]
        layers.append(_Layer(left.only(chosen), any_tag))
        left = left.only(~chosen)
    return layers


def _isolated(starts: Addresses, ends: Addresses) -> NDArray[np.bool_]:
    """Choose distinct, ascending ranges that do not overlap; all of them if none do."""
    isolated = np.ones(len(starts), np.bool_)
    if (starts[1:] >= ends[:-1]).all():
        return isolated
    reached = 0
    for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist())):
        isolated[at] = start >= reached
        if isolated[at]:
            reached = end
    return isolated


def _joined(ranges: _Ranges) -> _Ranges:
    """Extend each range to the union of all that it overlaps."""
    reach = np.maximum.accumulate(ranges.ends)
    begins = np.ones(len(reach), np.bool_)
    begins[1:] = ranges.starts[1:] >= reach[:-1]
    group = np.cumsum(begins) - 1
    last = np.append(np.flatnonzero(begins)[1:], len(reach)) - 1
    return _Ranges(ranges.starts[begins][group], reach[last][group], ranges.owners)
