# SPDX-License-Identifier: Apache-2.0
"""Changes taken together: by the call, the name of the thread, and the place in the program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from ebpftrace.growth.model import Cause, Change, How
from ebpftrace.model import Stack, Thread, ThreadId


class Place(NamedTuple):
    """Where in the program a change came from."""

    stack: int
    """Number of the stack, equal for equal stacks; 0 where there is none."""
    copied: bool = True
    """It is that of the very call, or of all calls that made up the change."""


class Names(NamedTuple):
    """Who and where, for a change."""

    thread: Callable[[ThreadId], Optional[Thread]]
    """None where the thread is not known any more."""
    place: Callable[[Change], Place]
    stack: Callable[[int], Stack]
    """The stack of a number."""


class Group(NamedTuple):
    """A cause with the changes it is made of."""

    cause: Cause
    changes: tuple[Change, ...]


def group(changes: Iterable[Change], names: Names) -> list[Group]:
    """Return the causes of these changes, largest change first."""
    alike: dict[tuple[How, bool, str, int], list[Change]] = {}
    copied: Counter[object] = Counter()
    threads: dict[ThreadId, Optional[Thread]] = {}
    for change in changes:
        if change.thread is not None and change.thread not in threads:
            threads[change.thread] = names.thread(change.thread)
        thread = threads[change.thread] if change.thread is not None else None
        place = names.place(change)
        key = (change.how, change.before_attach, thread.name if thread else "", place.stack)
        alike.setdefault(key, []).append(change)
        copied[key] += place.copied
    groups = []
    for key, of in alike.items():
        how, before_attach, _, number = key
        stack = names.stack(number).seen_for(copied[key], len(of))
        groups.append(Group(_cause(how, before_attach, stack, of, threads), tuple(of)))
    return sorted(groups, key=lambda one: (-abs(one.cause.size), one.cause.how.value))


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
