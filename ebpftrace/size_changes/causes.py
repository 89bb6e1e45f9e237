# SPDX-License-Identifier: Apache-2.0
"""Changes grouped by call, name of the thread, and place in the program, and their periods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from ebpftrace.diagnosis.timeseries import keeps_growing, period, waves
from ebpftrace.model import Stack, Thread, ThreadId
from ebpftrace.size_changes.model import Cause, Change, How, Regular


class Place(NamedTuple):
    """The place in the program that made a change."""

    stack: int
    """Number of the stack, equal for equal stacks; 0 where there is none."""
    copied: bool = True
    """The stack was copied at this call, or at all calls of the change."""


class Names(NamedTuple):
    """Functions that find the thread and the place of a change."""

    thread: Callable[[ThreadId], Optional[Thread]]
    """None where the thread is not known any more."""
    place: Callable[[Change], Place]
    stack: Callable[[int], Stack]
    """Finds a stack by its number."""


class Group(NamedTuple):
    """A cause with its changes."""

    cause: Cause
    changes: tuple[Change, ...]


def group(changes: Iterable[Change], names: Names) -> list[Group]:
    """Return the causes of these changes, largest change first."""
    similar: dict[tuple[How, bool, str, int], list[Change]] = {}
    copied: Counter[object] = Counter()
    threads: dict[ThreadId, Optional[Thread]] = {}
    for change in changes:
        if change.thread is not None and change.thread not in threads:
            threads[change.thread] = names.thread(change.thread)
        thread = threads[change.thread] if change.thread is not None else None
        place = names.place(change)
        key = (change.how, change.before_attach, thread.name if thread else "", place.stack)
        similar.setdefault(key, []).append(change)
        copied[key] += place.copied
    groups = []
    for key, of in similar.items():
        how, before_attach, _, number = key
        stack = names.stack(number).seen_for(copied[key], len(of))
        groups.append(Group(_cause(how, before_attach, stack, of, threads), tuple(of)))
    return sorted(groups, key=lambda each: (-abs(each.cause.size), each.cause.how.value))


def _cause(
    how: How,
    before_attach: bool,
    stack: Stack,
    changes: list[Change],
    threads: dict[ThreadId, Optional[Thread]],
) -> Cause:
    ids = dict.fromkeys(change.thread for change in changes if change.thread is not None)
    known = (threads[thread] for thread in ids)
    return Cause(
        how=how,
        size=sum(change.size for change in changes),
        mappings=0 if how is How.BRK or before_attach else len(changes),
        threads=tuple(thread for thread in known if thread is not None),
        stack=stack,
        before_attach=before_attach,
    )


def regular(times: Iterable[int], size: int, start: int, end: int) -> Optional[Regular]:
    """Return the period of growth by ``size`` bytes that came at ``times`` in the window [start, end], ns.

    None if it shrank, is irregular, or came in one burst, as at a start-up or when a cache fills.
    """
    ordered = sorted(times)
    if size <= 0 or not keeps_growing(ordered, start, end):
        return None
    seconds = period(ordered)
    if seconds is None:
        return None
    from statistics import median  # see ``period``

    # The median, as a busy machine may skip a wave and bring two at once after that.
    events = median(map(len, waves(ordered)))
    return Regular(period=seconds, step=round(size * events / len(ordered)))
