"""Changes taken together: by the call, the name of the thread, and the place in the program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable, NamedTuple, Optional

from ebpftrace.growth.model import Cause, Change, How
from ebpftrace.model import Stack, Thread, ThreadId


class Names(NamedTuple):
    """Who and where, for a change."""

    thread: Callable[[ThreadId], Optional[Thread]]
    """None where the thread is not known any more."""
    place: Callable[[Change], int]
    """Number of the stack, equal for equal stacks; 0 where there is none."""
    stack: Callable[[int], Stack]
    """The stack of a number."""


class Group(NamedTuple):
    """A cause with the changes it is made of."""

    cause: Cause
    changes: tuple[Change, ...]


def group(changes: Iterable[Change], names: Names) -> list[Group]:
    """Return the causes of these changes, largest change first."""
    alike: dict[tuple[How, bool, str, int], list[Change]] = {}
    threads: dict[ThreadId, Optional[Thread]] = {}
    for change in changes:
        if change.thread is not None and change.thread not in threads:
            threads[change.thread] = names.thread(change.thread)
        thread = threads[change.thread] if change.thread is not None else None
        key = (change.how, change.before_attach, thread.name if thread else "", names.place(change))
        alike.setdefault(key, []).append(change)
    groups = [
        Group(_cause(how, before_attach, names.stack(place), of, threads), tuple(of))
        for (how, before_attach, _, place), of in alike.items()
    ]
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
