# SPDX-License-Identifier: Apache-2.0
"""How much memory glibc's malloc keeps free for later: the chunks in the bins of its arenas, and their tops.

A ``struct malloc_state`` (glibc malloc/malloc.c) has 254 pointers, two for each of 127 bins: the heads of
lists of free chunks, doubly linked by ``fd`` and ``bk``.  The head of an empty one points to itself, 16 bytes
below its own words.  So an arena is recognized by its bins, whatever else a version of glibc has before them.
Before them are ``top`` and ``last_remainder``, behind them a map of 16 bytes and ``next``: all arenas are a
ring.  The target runs on while this is read, and a list is left where its links do not fit together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Optional

from ebpftrace.model import Interval, MallocFree
from ebpftrace.procfs.memory import Memory, Readable
from ebpftrace.procfs.pagemap import PresentPages
from ebpftrace.units import PAGE
from ebpftrace.vmas import HEAP, Vmas

_BINS = 127
_WORDS = 2 + 2 * _BINS + 3
_STATE = struct.Struct(f"={_WORDS}Q")
"""``top``, ``last_remainder``, the bins, the map, ``next``."""
_NEXT = 2 + 2 * _BINS + 2
_WORD = 8
_CHUNK = struct.Struct("=3Q")
"""Size with flags, ``fd``, ``bk``: from the second word of a chunk."""
_HEADER = 16
_FLAGS = 7
_MIN_CHUNK, _ALIGNMENT = 32, 16
_LEAST_EMPTY = 32
"""Bins of an arena that must be empty for it to be recognized; most are in any program."""
_MAX_DATA = 1 << 20
"""Bytes of the writable data of one file in which the main arena is searched."""
_MAX_ARENAS = 4096
_MAX_BEFORE = 256
"""Bytes of a state before its bins: 112 in 2.36."""
_PAGE = 4096
"""Bytes; as large as a state at least."""
_MAX_CHUNKS = 20_000
"""Free chunks that are read: in 0.1 s or so, the largest first."""


def free_memory(pid: int, vmas: Vmas) -> Optional[MallocFree]:
    """Read what malloc keeps free; None where its arenas are not found: another allocator, or a static one.

    Raises ``ProcessGone`` or ``CannotTrace``.
    """
    with Memory(pid) as memory:
        found = free_chunks(vmas, memory)
    if found is None:
        return None
    arenas, chunks, is_complete = found
    # The first words of a chunk, up to six, are malloc's own, and stay.
    whole = [(-(-(one.start + 6 * _WORD) // PAGE) * PAGE, one.end // PAGE * PAGE) for one in chunks]
    present = PresentPages(pid, [(start, end) for start, end in whole if start < end])
    return MallocFree(arenas, sum(one.size for one in chunks), present.count * PAGE, is_complete)


def free_chunks(vmas: Vmas, memory: Readable) -> Optional[tuple[int, list[Interval], bool]]:
    """The number of arenas, their free chunks (ascending, disjoint), and whether these are all."""
    main = next(filter(None, (_find_bins(memory, start, end) for start, end in _data(vmas))), None)
    if main is None:
        return None
    writable = Vmas(
        vma for vma in vmas if vma.perms.startswith("rw") and (vma.is_anonymous or vma.path == HEAP)
    )
    arenas, is_complete = _ring(memory, main)
    chunks: list[Interval] = []
    for _, state in arenas:
        top = _size_at(memory, state[0])
        if top:
            chunks.append(Interval(state[0], state[0] + top))
    left = _MAX_CHUNKS
    # The last bins have the largest chunks.  The first one has those that were freed just now, of any size.
    for index in (0, *range(_BINS - 1, 0, -1)):
        for bins, state in arenas:
            head = bins + 2 * _WORD * index - _HEADER
            before, at = head, state[2 + 2 * index]
            while at != head:
                if not left:
                    is_complete = False
                    break
                left -= 1
                try:
                    size, forward, back = _CHUNK.unpack(memory.read(at + _WORD, _CHUNK.size))
                except (OSError, struct.error):
                    is_complete = False
                    break
                size &= ~_FLAGS
                if back != before or at % _ALIGNMENT or size < _MIN_CHUNK or size % _ALIGNMENT:
                    is_complete = False
                    break
                chunks.append(Interval(at, at + size))
                before, at = at, forward
    return len(arenas), list(_disjoint(chunks, writable)), is_complete


def _data(vmas: Vmas) -> Iterator[tuple[int, int]]:
    """Where the variables of a file may be: its writable mappings, and what follows them without a name."""
    end = 0
    for vma in vmas:
        is_file = bool(vma.inode) and not vma.is_anonymous
        if vma.perms.startswith("rw-p") and (is_file or (vma.start == end and not vma.path)):
            yield vma.start, min(vma.end, vma.start + _MAX_DATA)
            end = vma.end


def _find_bins(memory: Readable, start: int, end: int) -> Optional[int]:
    """Address of the bins of the first arena in this range."""
    try:
        content = memory.read(start, end - start)
    except OSError:
        return None
    words = struct.unpack(f"={len(content) // _WORD}Q", content[: len(content) // _WORD * _WORD])
    own = {index for index, word in enumerate(words) if word == start + index * _WORD - _HEADER}
    for last in sorted(own):
        # The last bin is never used (largebin_index), so it is the last one that is empty.
        following = range(last + 2, last + 2 * _BINS, 2)
        if last >= 2 * _BINS and own.isdisjoint(following):
            bins = start + (last - 2 * (_BINS - 1)) * _WORD
            state = words[last - 2 * _BINS : last - 2 * _BINS + _WORDS]
            if len(state) == _WORDS and _is_state(bins, state):
                return bins
    return None


def _is_state(bins: int, state: tuple[int, ...]) -> bool:
    """Whether these are the words of an arena whose bins are here."""
    pairs = enumerate(zip(state[2 : 2 + 2 * _BINS : 2], state[3 : 3 + 2 * _BINS : 2]))
    heads = ((pair, bins + 2 * _WORD * index - _HEADER) for index, pair in pairs)
    return sum(forward == back == head for (forward, back), head in heads) >= _LEAST_EMPTY


def _ring(memory: Readable, main: int) -> tuple[list[tuple[int, tuple[int, ...]]], bool]:
    """The bins and states of all arenas, and whether the ring was followed to its end."""
    arenas: dict[int, tuple[int, ...]] = {}
    bins, first = main, 0
    while bins not in arenas and len(arenas) < _MAX_ARENAS:
        try:
            state = _STATE.unpack(memory.read(bins - 2 * _WORD, _STATE.size))
        except OSError:
            return list(arenas.items()), False
        if arenas and not _is_state(bins, state):
            return list(arenas.items()), False
        arenas[bins] = state
        # ``next`` points to the beginning of a state, which is as far from the bins in each.
        first = first or _before_bins(memory, main, state[_NEXT])
        bins = state[_NEXT] + first
    return list(arenas.items()), bins == main


def _before_bins(memory: Readable, main: int, following: int) -> int:
    """Bytes of a state before its bins, by the arena that follows the main one; it may be that one again."""
    bins = main if 0 < main - following < _MAX_BEFORE else _find_bins(memory, following, following + _PAGE)
    return max(0, (bins or 0) - following)


def _size_at(memory: Readable, chunk: int) -> int:
    try:
        (size,) = struct.unpack("=Q", memory.read(chunk + _WORD, _WORD))
    except OSError:
        return 0
    return int(size) & ~_FLAGS


def _disjoint(chunks: Iterable[Interval], writable: Vmas) -> Iterator[Interval]:
    """Those that lie in writable memory, ascending; of two that overlap, the first."""
    index, end = 0, 0
    for chunk in sorted(chunks):
        if chunk.start < end:
            continue
        while index < len(writable) and writable.ends[index] <= chunk.start:
            index += 1
        if (
            index < len(writable)
            and writable.starts[index] <= chunk.start < chunk.end <= writable.ends[index]
        ):
            end = chunk.end
            yield chunk
