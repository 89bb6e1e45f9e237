"""Which of the listed threads have exited: the second reading that makes it proof.

A descriptor is copied while the target runs, so one copy may join fields of two moments.  Two copies that say
the same do not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ebpftrace.process.books.descriptors import Descriptor, Fate
from ebpftrace.process.books.walk import Walker


def judge(
    descriptors: Iterable[Descriptor], walker: Walker, live: Collection[int]
) -> list[tuple[Descriptor, Fate]]:
    """The fate of each thread but the initial one, whose stack is not glibc's.

    ``live`` are tids as the target numbers them, asked for after the descriptors were read.
    """
    judged = []
    for descriptor in descriptors:
        if descriptor.main:
            continue
        fate = walker.form.fate(descriptor, live)
        if fate is not Fate.ALIVE and not walker.unchanged(descriptor):
            descriptor, fate = _again(descriptor, walker, live)
        judged.append((descriptor, fate))
    return judged


def _again(descriptor: Descriptor, walker: Walker, live: Collection[int]) -> tuple[Descriptor, Fate]:
    """A descriptor that changed while we looked, as it is now."""
    now = walker.read(descriptor.address + walker.link)
    if now is None or now.main:
        return descriptor, Fate.JOINED
    fate = walker.form.fate(now, live)
    if fate is Fate.EXITED and not walker.unchanged(now):
        return now, Fate.JOINED
    return now, fate
