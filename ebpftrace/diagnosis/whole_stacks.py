# SPDX-License-Identifier: Apache-2.0
"""Joins the parts of a stack: what glibc's thread lists call one stack has one owner.

A stack of the baseline is two areas in /proc/PID/maps, the guard and the rest, and a clone call names only
the first.  Each thread of the JVM maps a guard zone over the low end of its own stack
(os::pd_uncommit_memory), so that the lowest byte that the clone call named belongs to another mapping.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ebpftrace.diagnosis.ranges import RangeIndex
from ebpftrace.model import Interval, Mapping, Outstanding, OwnedBy


def whole_stacks(outstanding: Sequence[Outstanding], stacks: Iterable[Interval]) -> list[Outstanding]:
    """Return the mappings, with those inside one of ``stacks`` (which are disjoint) joined into one.

    The owner of the whole is the thread that was put on one of the parts, else the one that mapped a part
    last.
    """
    index = RangeIndex((stack, stack) for stack in stacks)
    if not index:
        return list(outstanding)
    parts: dict[Interval, list[Outstanding]] = defaultdict(list)
    rest = []
    for one in outstanding:
        stack = index.at(one.mapping.start)
        if stack is not None and one.mapping.end <= stack.end:
            parts[stack].append(one)
        else:
            rest.append(one)
    for inside in parts.values():
        latest = max(inside, key=_claim)
        if len(inside) > 1 and latest.owner is not None:
            joined = _joined([one.mapping for one in inside])
            rest.append(latest._replace(mapping=joined, owned_by=OwnedBy.RUNS_ON_IT))
        else:
            rest += inside
    return rest


def _claim(one: Outstanding) -> tuple[bool, bool, int]:
    return (
        one.owner is not None,
        one.run is not None,
        one.run.thread.started_at if one.run else one.mapping.made_at or 0,
    )


def _joined(mappings: Sequence[Mapping]) -> Mapping:
    """Return one mapping with all the pieces, the mmap call of the largest part and the age of the oldest."""
    pieces = tuple(sorted(piece for mapping in mappings for piece in mapping.pieces))
    largest = max(mappings, key=lambda mapping: mapping.size)
    times = [mapping.made_at for mapping in mappings]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return Mapping(pieces, None, None, None, None, 0)
    return largest._replace(pieces=pieces, made_at=min(known))
