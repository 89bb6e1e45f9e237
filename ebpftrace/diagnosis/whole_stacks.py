"""A stack that is in parts is one: what glibc's books call one stack has one owner.

A stack of the baseline is two areas of /proc/PID/maps, guard and rest.  The JVM maps its own guard zone
over the low end of a stack (os::pd_uncommit_memory), and then the clone call names that part only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ebpftrace.diagnosis.ranges import RangeIndex
from ebpftrace.model import Interval, Mapping, Outstanding


def whole_stacks(outstanding: Sequence[Outstanding], stacks: Iterable[Interval]) -> list[Outstanding]:
    """The mappings, those inside one of ``stacks`` (disjoint) joined into one.

    Only where one of them is known to be run on: its owner has them all.
    """
    index = RangeIndex((stack, stack) for stack in stacks)
    parts: dict[Interval, list[Outstanding]] = defaultdict(list)
    rest = []
    for one in outstanding:
        stack = index.at(one.mapping.start)
        if stack is not None and one.mapping.end <= stack.end:
            parts[stack].append(one)
        else:
            rest.append(one)
    for inside in parts.values():
        runners = [one for one in inside if one.run is not None and one.owner is not None]
        if len(inside) > 1 and runners:
            latest = max(runners, key=lambda one: one.run.thread.born if one.run is not None else 0)
            rest.append(replace(latest, mapping=_joined([one.mapping for one in inside])))
        else:
            rest += inside
    return rest


def _joined(mappings: Sequence[Mapping]) -> Mapping:
    """All the pieces; the call is that of the largest part, and the age that of the oldest."""
    pieces = tuple(sorted(piece for mapping in mappings for piece in mapping.pieces))
    largest = max(mappings, key=lambda mapping: mapping.size)
    times = [mapping.made_at for mapping in mappings]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return Mapping(pieces, None, None, None, None, 0)
    return largest._replace(pieces=pieces, made_at=min(known))
