# SPDX-License-Identifier: Apache-2.0
"""A stack that is in parts is one: what glibc's books call one stack has one owner.

A stack of the baseline is two areas of /proc/PID/maps, guard and rest, and a clone call names the first.
Each thread of the JVM maps a guard zone of its own over the low end of its stack (os::pd_uncommit_memory),
after which the lowest byte that the clone call named belongs to another mapping.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from ebpftrace.diagnosis.ranges import RangeIndex
from ebpftrace.model import Interval, Mapping, Outstanding, OwnedBy


def whole_stacks(outstanding: Sequence[Outstanding], stacks: Iterable[Interval]) -> list[Outstanding]:
    """The mappings, those inside one of ``stacks`` (disjoint) joined into one.

    They all go to the thread that was put on one of them, else to the one that mapped one last.
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
        one.run.thread.born if one.run else one.mapping.made_at or 0,
    )


def _joined(mappings: Sequence[Mapping]) -> Mapping:
    """All the pieces; the call is that of the largest part, and the age that of the oldest."""
    pieces = tuple(sorted(piece for mapping in mappings for piece in mapping.pieces))
    largest = max(mappings, key=lambda mapping: mapping.size)
    times = [mapping.made_at for mapping in mappings]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return Mapping(pieces, None, None, None, None, 0)
    return largest._replace(pieces=pieces, made_at=min(known))
