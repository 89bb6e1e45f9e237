# SPDX-License-Identifier: Apache-2.0
"""Which stack belongs to which mapping: copies of stacks, joined with the calls they were made at.

A mapping whose own stack was copied has that stack.  One whose stack was not copied has its signature,
which is made of the words that may be return addresses in the first bytes of the stack: it shares with the
copies of that signature the frames that were found there, and nothing is said of those further up.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, Optional, Protocol

from ebpftrace.model import NO_STACK, Frame, Stack, StackSource
from ebpftrace.stacks.copies import REGISTER_NAMES, StackCopy, Unwound, is_native

_WORD = 8
_IP_BYTES = slice(_WORD * REGISTER_NAMES.index("ip"), _WORD * REGISTER_NAMES.index("ip") + _WORD)
_MOST_WAITING_BYTES = 32 << 20
"""Copies that wait to be unwound; what comes beyond is dropped: its site is copied again."""

_MOST_CALLS = 200_000
"""Calls whose own stack is remembered; an older one falls back to its signature."""


Call = tuple[int, int]
"""One call, named by who made it, a tid, and when: unique, since a thread makes one at a time."""


NOTE_FURTHER_UP = "cut: of this call no more was recorded, and it may have another way from there on"

_MOST_WAYS = 8
"""Stacks of one signature that copies are compared with before they are unwound."""


class Resolver(Protocol):
    """Makes a named stack of a copy; see ``StackResolver``."""

    @property
    def version(self) -> int:
        """Another number when other code may lie at an address."""

    def unwind(self, copy: StackCopy) -> Unwound:
        """Return the stack, NO_STACK with a note where there is none."""

    def called(self, copy: StackCopy, frames: Sequence[Frame]) -> Optional[str]:
        """Return the function that the created thread was started with, None where that is not known."""


class Origin(NamedTuple):
    """Where a call came from: a number for its stack, equal for equal stacks, and how that is known."""

    stack: int
    """0 where there is no stack."""
    source: StackSource


_UNKNOWN = Origin(0, StackSource.NONE)


class _Way(NamedTuple):
    """The return addresses of a stack that was unwound, by which another copy is known to be the same."""

    registers: bytes
    """What of the registers must be the same: the instruction pointer."""
    missing: int
    found: Callable[[memoryview], object]
    """Gets the words of a copy at the places where return addresses were found."""
    words: object
    number: int


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
        self._called: dict[Call, str] = {}
        """What threads were started with, where that is known."""
        self._by_site: dict[int, Counter[int]] = {}
        self._certain: dict[tuple[int, int], int] = {}
        """Native frames of a stack that every call of a signature has, if it has any of them."""
        self._inherited: dict[int, Origin] = {}
        """Of any call of a site, as long as no more copies of that come in."""
        self._ways: dict[int, list[_Way]] = {}
        self._version = 0

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
            number = self._seen_before(copy, resolver)
            if number is None:
                number = self._take(copy, resolver.unwind(copy))
            if number is None:
                continue
            self._by_site.setdefault(copy.signature, Counter())[number] += 1
            self._inherited.pop(copy.signature, None)
            self._by_call[copy.tid, copy.at] = number
            if copy.argument:
                called = resolver.called(copy, self._stacks[number].frames)
                if called is not None:
                    self._called[copy.tid, copy.at] = called
            while len(self._by_call) > _MOST_CALLS:
                oldest, _ = self._by_call.popitem(last=False)
                self._called.pop(oldest, None)

    def origin(self, site: int, call: Optional[Call] = None, calls: Optional[int] = None) -> Origin:
        """Return where a call of that site (signature, 0: none) came from.

        Without a call: where all of its ``calls`` did.
        """
        own = None if call is None else self._by_call.get(call)
        if own is not None:
            return Origin(own, StackSource.COPIED)
        ways = self._by_site.get(site)
        if not ways:
            return _UNKNOWN
        if call is None and len(ways) == 1 and sum(ways.values()) == calls:
            return Origin(next(iter(ways)), StackSource.COPIED)
        inherited = self._inherited.get(site)
        if inherited is None:
            inherited = self._inherited[site] = Origin(self._shared_part(site, ways), StackSource.SIGNATURE)
        return inherited

    def called(self, call: Call) -> Optional[str]:
        """Return the function that the thread which this call created was started with, if it is known."""
        return self._called.get(call)

    def stack(self, number: int) -> Stack:
        """Return the stack of an ``Origin``."""
        return self._stacks[number]

    def _take(self, copy: StackCopy, unwound: Unwound) -> Optional[int]:
        stack, slots = unwound
        if not stack.frames:
            return None
        number = self._number(stack)
        certain = _certain(slots, copy.signed)
        known = self._certain.get((copy.signature, number), certain)
        self._certain[copy.signature, number] = min(known, certain)
        places = [slot for slot in slots[1:] if slot is not None]
        # Of code that was made at run time there may be other by now.
        if len(places) == len(slots) - 1 > 1 and all(f.module and f.module[0] != "[" for f in stack.frames):
            self._remember(copy, places, number)
        return number

    def _remember(self, copy: StackCopy, places: list[int], number: int) -> None:
        if any(place % _WORD for place in places) or max(places) + _WORD > len(copy.memory):
            return
        found = itemgetter(*(place // _WORD for place in places))
        ways = self._ways.setdefault(copy.signature, [])
        ways.append(_Way(_ip(copy), copy.missing, found, found(_words(copy)), number))
        del ways[:-_MOST_WAYS]

    def _seen_before(self, copy: StackCopy, resolver: Resolver) -> Optional[int]:
        """The stack of an earlier copy of this signature that has the same words at the same places."""
        if resolver.version != self._version:
            self._ways.clear()
            self._version = resolver.version
        ways = self._ways.get(copy.signature)
        if ways is None:
            return None
        words, ip = _words(copy), _ip(copy)
        for way in ways:
            if way.registers == ip and way.missing == copy.missing:
                with suppress(IndexError):
                    if way.found(words) == way.words:
                        return way.number
        return None

    def _number(self, stack: Stack) -> int:
        key = stack.complete, stack_key(stack)
        if key not in self._numbers:
            self._numbers[key] = len(self._stacks)
            self._stacks.append(stack)
        return self._numbers[key]

    def _shared_part(self, site: int, ways: Iterable[int]) -> int:
        """The stack of the frames that any call of a signature has."""
        numbers = [one for one in ways if not any(self._is_cut_from(one, other) for other in ways)]
        certain = min(self._certain[site, number] for number in numbers)
        first = self._stacks[numbers[0]]
        if len(numbers) == 1 and certain >= sum(map(is_native, first.frames)):
            return numbers[0]
        frames = _common(self._stacks[number].frames for number in numbers)
        frames = _innermost(frames, certain)
        note = NOTE_FURTHER_UP
        if len(numbers) > 1:
            note = f"{len(numbers)} call paths lead here and have the same signature as this call"
        return self._number(Stack(frames, False, StackSource.SIGNATURE, note))

    def _is_cut_from(self, one: int, other: int) -> bool:
        """An incomplete stack that a longer one begins with: one was unwound further, that is all."""
        stack, longer = self._stacks[one], self._stacks[other]
        return (
            not stack.complete
            and len(stack.frames) < len(longer.frames)
            and stack_key(stack) == stack_key(longer)[: len(stack_key(stack))]
        )


def _certain(slots: Sequence[Optional[int]], signed: int) -> int:
    """How many frames of a walk were found in the first ``signed`` bytes of the stack."""
    for number, slot in enumerate(slots[1:], 1):
        if slot is None or slot + _WORD > signed:
            return number
    return len(slots)


def _innermost(frames: tuple[Frame, ...], most: int) -> tuple[Frame, ...]:
    """So many native frames, with what is inlined into them."""
    native = [number for number, frame in enumerate(frames, 1) if is_native(frame)]
    return frames[: native[most - 1]] if len(native) > most else frames


def _ip(copy: StackCopy) -> bytes:
    return copy.registers[_IP_BYTES]


def _words(copy: StackCopy) -> memoryview:
    return memoryview(copy.memory)[: len(copy.memory) // _WORD * _WORD].cast("Q")


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
