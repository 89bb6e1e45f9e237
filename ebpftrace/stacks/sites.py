"""Which stack belongs to which mapping: copies of stacks, joined with the calls they were made at.

A mapping whose own stack was copied has that stack.  One whose stack was not copied has its signature:
if all copies of that signature tell one story it is the mapping's too, and if they do not, only
the frames that all of them share are.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple, Optional, Protocol

from ebpftrace.model import NO_STACK, Frame, Stack, StackSource
from ebpftrace.stacks.copies import StackCopy

_MOST_WAITING_BYTES = 32 << 20
"""Copies that wait to be unwound; what comes beyond is dropped: its site is copied again."""

_MOST_CALLS = 50_000
"""Calls whose own stack is remembered; an older one falls back to its signature."""


Call = tuple[int, int]
"""One call, named by who made it, a tid, and when: unique, since a thread makes one at a time."""


class Resolver(Protocol):
    """Makes a named stack of a copy; see ``StackResolver``."""

    def resolve(self, copy: StackCopy) -> Stack:
        """Return the stack, NO_STACK with a note where there is none."""


class Origin(NamedTuple):
    """Where a call came from: a number for its stack, equal for equal stacks, and how that is known."""

    stack: int
    """0 where there is no stack."""
    source: StackSource


_UNKNOWN = Origin(0, StackSource.NONE)


class SiteStacks:
    """The stacks of one address space, as copies come in."""

    def __init__(self) -> None:
        self.dropped_bytes = 0
        """Of copies that came while too many waited."""
        self._waiting: deque[StackCopy] = deque()
        self._waiting_bytes = 0
        self._stacks: list[Stack] = [NO_STACK]
        self._numbers: dict[object, int] = {}
        self._by_call: OrderedDict[Call, int] = OrderedDict()
        self._by_site: dict[int, Counter[int]] = {}
        self._inherited: dict[int, Origin] = {}
        """Of any call of a site, as long as no more copies of that come in."""
        self._shared: dict[tuple[int, ...], int] = {}

    def add(self, copy: StackCopy) -> None:
        """Take in a copy; ``work`` unwinds it."""
        if self._waiting_bytes + len(copy.memory) > _MOST_WAITING_BYTES:
            self.dropped_bytes += len(copy.memory)
            return
        self._waiting.append(copy)
        self._waiting_bytes += len(copy.memory)

    @property
    def waiting(self) -> int:
        """Copies that wait to be unwound."""
        return len(self._waiting)

    def work(self, resolver: Resolver, most: Optional[int] = None) -> None:
        """Unwind waiting copies, at most ``most``."""
        while self._waiting and (most is None or most > 0):
            copy = self._waiting.popleft()
            self._waiting_bytes -= len(copy.memory)
            most = None if most is None else most - 1
            stack = resolver.resolve(copy)
            if not stack.frames:
                continue
            number = self._number(stack)
            self._by_site.setdefault(copy.signature, Counter())[number] += 1
            self._inherited.pop(copy.signature, None)
            self._by_call[copy.tid, copy.at] = number
            while len(self._by_call) > _MOST_CALLS:
                self._by_call.popitem(last=False)

    def origin(self, site: int, call: Optional[Call] = None) -> Origin:
        """Return where a call of that site (signature, 0: none) came from; None: any of its calls."""
        own = None if call is None else self._by_call.get(call)
        if own is not None:
            return Origin(own, StackSource.COPIED)
        inherited = self._inherited.get(site)
        if inherited is not None:
            return inherited
        ways = self._by_site.get(site)
        if not ways:
            return _UNKNOWN
        number = next(iter(ways)) if len(ways) == 1 else self._shared_part(tuple(sorted(ways)))
        inherited = self._inherited[site] = Origin(number, StackSource.SIGNATURE)
        return inherited

    def stack(self, number: int) -> Stack:
        """Return the stack of an ``Origin``."""
        return self._stacks[number]

    def _number(self, stack: Stack) -> int:
        key = stack_key(stack)
        if key not in self._numbers:
            self._numbers[key] = len(self._stacks)
            self._stacks.append(stack)
        return self._numbers[key]

    def _shared_part(self, numbers: tuple[int, ...]) -> int:
        if numbers not in self._shared:
            different = [
                one for one in numbers if not any(self._is_cut_from(one, other) for other in numbers)
            ]
            if len(different) == 1:
                self._shared[numbers] = different[0]
                return different[0]
            stacks = [self._stacks[number] for number in different]
            frames = _common(stack.frames for stack in stacks)
            note = f"{len(stacks)} ways lead here that this call's signature does not tell apart"
            self._shared[numbers] = len(self._stacks)
            self._stacks.append(replace(stacks[0], frames=frames, complete=False, note=note))
        return self._shared[numbers]

    def _is_cut_from(self, one: int, other: int) -> bool:
        """An incomplete stack that a longer one begins with: one was unwound further, that is all."""
        stack, longer = self._stacks[one], self._stacks[other]
        return (
            not stack.complete
            and len(stack.frames) < len(longer.frames)
            and stack_key(stack) == stack_key(longer)[: len(stack_key(stack))]
        )


def _common(stacks: Iterable[tuple[Frame, ...]]) -> tuple[Frame, ...]:
    """Return the innermost frames that all stacks have in common."""
    shared: list[Frame] = []
    for frames in zip(*stacks):
        if any(frame != frames[0] for frame in frames):
            break
        shared.append(frames[0])
    return tuple(shared)


def stack_key(stack: Stack) -> tuple[object, ...]:
    """Return what is equal for equal stacks: the places of their physical frames."""
    return tuple(_place(frame) for frame in stack.frames if not frame.inlined)


def _place(frame: Frame) -> tuple[object, ...]:
    # Two addresses in one function are two sites; a frame outside all modules has only its name.
    # One that is neither, such as of Python, lies at its line.
    named = (frame.function, frame.file, frame.line) if frame.module is None else None
    return (frame.module, frame.offset, named)
