# SPDX-License-Identifier: Apache-2.0
"""Which of the listed threads have exited: the second reading that makes it proof.

A descriptor is copied while the target runs, so one copy may join fields of two moments.  Two copies that say
the same do not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Callable

from ebpftrace.process.books.descriptors import Descriptor, Fate
from ebpftrace.process.books.walk import Walker

_MORE_LISTINGS = 3


def judge(
    descriptors: Iterable[Descriptor], walker: Walker, ask_who_lives: Callable[[], frozenset[int]]
) -> list[tuple[Descriptor, Fate]]:
    """The fate of each thread but the initial one, whose stack is not glibc's.

    ``ask_who_lives`` gives tids as the target numbers them; it is asked after the descriptors were read, so
    that a thread born meanwhile counts as alive.
    """
    live = ask_who_lives()
    judged = [_judge(descriptor, walker, live) for descriptor in descriptors if not descriptor.main]
    for _ in range(_MORE_LISTINGS):
        if not any(fate is Fate.UNKNOWN for _, fate in judged):
            break
        # The kernel's list of threads can miss some while others exit (fs/proc/base.c, first_tid).
        live |= ask_who_lives()
        judged = [
            _judge(descriptor, walker, live) if fate is Fate.UNKNOWN else (descriptor, fate)
            for descriptor, fate in judged
        ]
    return judged


def _judge(descriptor: Descriptor, walker: Walker, live: Collection[int]) -> tuple[Descriptor, Fate]:
    fate = walker.form.fate(descriptor, live)
    if fate is Fate.ALIVE or walker.unchanged(descriptor):
        return descriptor, fate
    return _again(descriptor, walker, live)


def _again(descriptor: Descriptor, walker: Walker, live: Collection[int]) -> tuple[Descriptor, Fate]:
    """A descriptor that changed while we looked, as it is now."""
    now = walker.read(descriptor.address + walker.link)
    if now is None or now.main:
        return descriptor, Fate.JOINED
    fate = walker.form.fate(now, live)
    if fate is Fate.EXITED and not walker.unchanged(now):
        return now, Fate.JOINED
    if fate is Fate.UNKNOWN:
        # Its thread was born after we had asked who lives.
        return now, Fate.BEING_CREATED
    return now, fate
