# SPDX-License-Identifier: Apache-2.0
"""Finds the function in whose frame of a thread's stack a holder is, if that is certain.

It is certain only if the thread did not run meanwhile and the word is still there: its registers are read,
then its stack, then the registers again with its count of context switches, which must not have changed.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Holder, Suspect, Where
from ebpftrace.search.areas import Areas
from ebpftrace.search.runs import runs_of
from ebpftrace.search.source import Source
from ebpftrace.search.threads import Waiting
from ebpftrace.units import PAGE
from ebpftrace.unwind.copies import FramesOf, StackCopy

MAX_STACKS = 8
"""Threads whose stacks are unwound for one search; a finding names three holders."""
MAX_BYTES = 256 << 10
"""Bytes copied of one stack; words above have no frame."""
_WORD = struct.Struct("<Q")
_ADDRESS, _ADDRESS_LA57 = (1 << 47) - 1, (1 << 56) - 1
_LOW_TAG = 7


def with_frames(
    source: Source, areas: Areas, holders: Mapping[Holder, Sequence[Suspect]], frames_of: FramesOf
) -> dict[Holder, Holder]:
    """Map each holder whose frame is certain to the same holder with its frame.

    ``holders`` maps holders to the suspects that they refer to.
    """
    on_stacks: dict[int, list[Holder]] = {}
    for holder in holders:
        if holder.where is Where.STACK and holder.thread and holder.address is not None:
            on_stacks.setdefault(holder.thread, []).append(holder)
    chosen = sorted(on_stacks, key=lambda tid: len(on_stacks[tid]), reverse=True)[:MAX_STACKS]
    if not chosen:
        return {}
    try:
        before = source.waiting(chosen)
        copies = {tid: _copy(tid, waiting, source, areas) for tid, waiting in before.items()}
        after = source.waiting(chosen)
    except CannotTrace:
        return {}
    framed: dict[Holder, Holder] = {}
    for tid, copy in copies.items():
        if after.get(tid) != before[tid]:
            continue
        offsets = {holder: (holder.address or 0) - before[tid].stack_pointer for holder in on_stacks[tid]}
        still = [holder for holder, at in offsets.items() if _is_there(copy.memory, at, holders[holder])]
        frames = frames_of(copy, [offsets[holder] for holder in still]) if still else {}
        for holder in still:
            if offsets[holder] in frames:
                framed[holder] = holder._replace(frame=frames[offsets[holder]])
    return framed


def _copy(tid: int, waiting: Waiting, source: Source, areas: Areas) -> StackCopy:
    """Copy the stack from its pointer up to the first page that is not in memory."""
    start = waiting.stack_pointer
    page = start // PAGE * PAGE
    present = source.present(areas, runs_of([(page, page + MAX_BYTES)])).pages
    is_there = present.pieces and int(present.starts[0]) == page
    content = bytearray(int(present.ends[0]) - start if is_there else 0)
    size = source.read_into(memoryview(content), start)
    return StackCopy(
        signature=0,
        at=time.monotonic_ns(),
        tid=tid,
        registers=waiting.registers,
        memory=bytes(content[:size]),
        truncated=True,
    )


def _is_there(memory: bytes, at: int, suspects: Sequence[Suspect]) -> bool:
    """Whether the word at this offset refers to one of the suspects, by a stricter rule than the search's."""
    if not 0 <= at <= len(memory) - _WORD.size:
        return False
    (word,) = _WORD.unpack_from(memory, at)
    return any(_refers(word, suspect) for suspect in suspects)


def _refers(word: int, suspect: Suspect) -> bool:
    highest = max(piece.end for piece in suspect.pieces)
    address = word & (_ADDRESS if highest <= _ADDRESS else _ADDRESS_LA57)
    if suspect.handle is not None:
        return address & ~_LOW_TAG == suspect.handle & ~_LOW_TAG
    places = suspect.pieces if suspect.reservation is None else (*suspect.pieces, suspect.reservation)
    return any(place.start <= address < place.end for place in places)
