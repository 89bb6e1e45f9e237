"""Do the copies of one signature tell the same story?  The signature is a hash; this is its check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ebpftrace.model import NO_STACK, Frame, Stack


@dataclass(frozen=True)
class Agreement:
    """The stacks of one signature, sorted into groups that differ."""

    groups: tuple[tuple[Stack, int], ...]
    """Each different stack with how many copies gave it, most frequent first."""

    @property
    def unanimous(self) -> bool:
        """No two copies differ."""
        return len(self.groups) <= 1

    @property
    def stack(self) -> Stack:
        """The most frequent stack; it says so where others differ.  NO_STACK where there was none."""
        if not self.groups:
            return NO_STACK
        stack, count = self.groups[0]
        total = sum(count for _, count in self.groups)
        if self.unanimous:
            return stack
        note = f"{total - count} of {total} checked copies came by another way"
        return replace(stack, note=f"{stack.note}; {note}" if stack.note else note)


def agree(stacks: Sequence[Stack]) -> Agreement:
    """Group the stacks of one signature by their physical frames.

    An incomplete stack belongs to a longer one that begins with it: the copy was just shorter.
    """
    groups: dict[tuple[object, ...], tuple[Stack, int]] = {}
    for stack in sorted(stacks, key=lambda stack: (stack.complete, len(stack.frames)), reverse=True):
        if not stack.frames:
            continue
        key = stack_key(stack)
        home = key if key in groups or stack.complete else _extension(key, list(groups))
        best, count = groups.get(home, (stack, 0))
        groups[home] = (best, count + 1)
    return Agreement(tuple(sorted(groups.values(), key=lambda group: -group[1])))


def _extension(key: tuple[object, ...], longer: Sequence[tuple[object, ...]]) -> tuple[object, ...]:
    return next((other for other in longer if other[: len(key)] == key), key)


def stack_key(stack: Stack) -> tuple[object, ...]:
    """Return what is equal for equal stacks: the places of their physical frames."""
    return tuple(_place(frame) for frame in stack.frames if not frame.inlined)


def _place(frame: Frame) -> tuple[object, ...]:
    # Two addresses in one function are two sites; a frame outside all modules has only its name.
    return (frame.module, frame.offset, frame.function if frame.module is None else None)
