# SPDX-License-Identifier: Apache-2.0
"""Assigns stacks to mappings: joins the copies of stacks with the calls at which they were made.

A mapping whose own stack was copied has that stack.  For any other mapping only the signature of the stack is
known, a hash over possible return addresses in its first bytes: it has the frames in this part that are
common to the copies with the same signature, and frames further up are unknown.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, Optional, Protocol

from ebpftrace.model import NO_STACK, Frame, Stack, StackSource
from ebpftrace.unwind.copies import (
    AARCH64_ADDRESS,
    AARCH64_REGISTERS_SIZE,
    IN_LINK_REGISTER,
    REGISTER_NAMES,
    StackCopy,
    Unwound,
    WaitingBytes,
    is_native,
)

_WORD = 8
_IP_BYTES = slice(_WORD * REGISTER_NAMES.index("ip"), _WORD * REGISTER_NAMES.index("ip") + _WORD)
_X30_BYTES, _PC_BYTES = slice(_WORD * 30, _WORD * 31), slice(_WORD * 32, _WORD * 33)
"""Of aarch64."""
_MAX_WAITING_BYTES = 32 << 20
"""Limit of copies of one process that wait to be unwound; further ones are dropped, and their site is copied
again."""

_FEW = 16
"""Copies at the start of a program, when the loader maps a few libraries and malloc moves the break."""

_MAX_CALLS = 200_000
"""Limit of calls whose own stack is remembered; for older ones there is the signature."""


Call = tuple[int, int]
"""One call, identified by tid and time, because a thread makes one call at a time."""


NOTE_FURTHER_UP = "cut: of this call no more was recorded, and it may have another way from there on"

_MAX_WAYS = 8
"""Stacks of one signature that copies are compared with before they are unwound."""


class Resolver(Protocol):
    """Turns a copy into a named stack; see ``StackResolver``."""

    @property
    def version(self) -> int:
        """A number that changes when other code may be at an address."""

    def unwind(self, copy: StackCopy) -> Unwound:
        """Return the stack, or NO_STACK with a note."""

    def called(self, copy: StackCopy, frames: Sequence[Frame]) -> Optional[str]:
        """Return the function that the created thread was started with; None if unknown."""


class StackOrigin(NamedTuple):
    """The number of a call's stack, equal for equal stacks, and the source of this knowledge."""

    stack: int
    """0 if there is no stack."""
    source: StackSource


_UNKNOWN = StackOrigin(0, StackSource.NONE)


class _Way(NamedTuple):
    """The return addresses of a stack that was unwound, by which copies of the same stack are recognized."""

    registers: bytes
    """The registers that must be equal: the instruction pointer, and a link register."""
    missing: int
    found: Callable[[memoryview], object]
    """Returns the words of a copy at the positions where return addresses were found."""
    words: object
    number: int


class SiteStacks:
    """The stacks of one address space, as copies come in."""

    def __init__(self, all_waiting: Optional[WaitingBytes] = None) -> None:
        """``all_waiting`` is shared with other address spaces."""
        self._all_waiting = all_waiting or WaitingBytes(_MAX_WAITING_BYTES)
        self.has_begun = False
        """``work`` has been called for at least one copy."""
        self.dropped_bytes = 0
        """Bytes of copies that were dropped because too many waited."""
        self._waiting: deque[StackCopy] = deque()
        self._waiting_bytes = 0
        self._stacks: list[Stack] = [NO_STACK]
        self._numbers: dict[object, int] = {}
        self._by_call: OrderedDict[Call, int] = OrderedDict()
        self._called: dict[Call, str] = {}
        """The functions that threads were started with, if known."""
        self._by_site: dict[int, Counter[int]] = {}
        self._certain: dict[tuple[int, int], int] = {}
        """Number of native frames that every call with this signature and stack has in common."""
        self._inherited: dict[int, StackOrigin] = {}
        """The origin for calls of a site without a copy, valid until the next copy of that site."""
        self._ways: dict[int, list[_Way]] = {}
        self._version = 0

    def add(self, copy: StackCopy) -> None:
        """Add a copy, which ``work`` unwinds."""
        size, together = len(copy.memory), self._all_waiting
        if self._waiting_bytes + size > _MAX_WAITING_BYTES or together.used + size > together.most:
            self.dropped_bytes += size
            return
        self._waiting.append(copy)
        self._count_waiting(size)

    def _count_waiting(self, added: int) -> None:
        self._waiting_bytes += added
        self._all_waiting.used += added

    def forget_waiting(self) -> None:
        """Forget the copies that wait: nobody asks for their stacks any more."""
        self._waiting.clear()
        self._count_waiting(-self._waiting_bytes)

    @property
    def has_little(self) -> bool:
        """Whether nothing was unwound yet, and only copies as from the start of any program wait."""
        return (
            not self.has_begun and len(self._waiting) <= _FEW and not any(one.python for one in self._waiting)
        )

    @property
    def waiting(self) -> int:
        """Number of copies that wait to be unwound."""
        return len(self._waiting)

    def work(self, resolver: Resolver, most: Optional[int] = None) -> None:
        """Unwind waiting copies, at most ``most``."""
        self.has_begun |= bool(self._waiting)
        while self._waiting and (most is None or most > 0):
            copy = self._waiting.popleft()
            self._count_waiting(-len(copy.memory))
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
            while len(self._by_call) > _MAX_CALLS:
                oldest, _ = self._by_call.popitem(last=False)
                self._called.pop(oldest, None)

    def origin(self, site: int, call: Optional[Call] = None, calls: Optional[int] = None) -> StackOrigin:
        """Return the origin of a call of that site (a signature, 0 for none).

        Without a call, return the common origin of all its ``calls``.
        """
        own = None if call is None else self._by_call.get(call)
        if own is not None:
            return StackOrigin(own, StackSource.COPIED)
        ways = self._by_site.get(site)
        if not ways:
            return _UNKNOWN
        if call is None and len(ways) == 1 and sum(ways.values()) == calls:
            return StackOrigin(next(iter(ways)), StackSource.COPIED)
        inherited = self._inherited.get(site)
        if inherited is None:
            inherited = self._inherited[site] = StackOrigin(
                self._shared_part(site, ways), StackSource.SIGNATURE
            )
        return inherited

    def called(self, call: Call) -> Optional[str]:
        """Return the function that the thread which this call created was started with, if it is known."""
        return self._called.get(call)

    def stack(self, number: int) -> Stack:
        """Return the stack of an ``StackOrigin``."""
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
        # Code that was generated at run time may have been replaced by now.
        if len(places) == len(slots) - 1 > 1 and all(f.module and f.module[0] != "[" for f in stack.frames):
            self._remember(copy, places, number)
        return number

    def _remember(self, copy: StackCopy, places: list[int], number: int) -> None:
        places = [place for place in places if place != IN_LINK_REGISTER]
        if any(place % _WORD for place in places) or max(places) + _WORD > len(copy.memory):
            return
        numbers = [place // _WORD for place in places]
        found = _without_signatures(numbers) if _is_aarch64(copy) else itemgetter(*numbers)
        ways = self._ways.setdefault(copy.signature, [])
        ways.append(_Way(_link_and_ip(copy), copy.missing, found, found(_words(copy)), number))
        del ways[:-_MAX_WAYS]

    def _seen_before(self, copy: StackCopy, resolver: Resolver) -> Optional[int]:
        """The stack of an earlier copy of this signature with the same words at the same positions."""
        if resolver.version != self._version:
            self._ways.clear()
            self._version = resolver.version
        ways = self._ways.get(copy.signature)
        if ways is None:
            return None
        words, registers = _words(copy), _link_and_ip(copy)
        for way in ways:
            if way.registers == registers and way.missing == copy.missing:
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
        """The number of the stack with the frames that all calls of a signature have."""
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
        """Whether one stack is the beginning of the other, which was merely unwound further."""
        stack, longer = self._stacks[one], self._stacks[other]
        return (
            not stack.complete
            and len(stack.frames) < len(longer.frames)
            and stack_key(stack) == stack_key(longer)[: len(stack_key(stack))]
        )


def _certain(slots: Sequence[Optional[int]], signed: int) -> int:
    """The number of frames of a walk that were found in the first ``signed`` bytes of the stack."""
    for number, slot in enumerate(slots[1:], 1):
        if slot is None or slot + _WORD > signed:
            return number
    return len(slots)


def _innermost(frames: tuple[Frame, ...], most: int) -> tuple[Frame, ...]:
    """At most this number of native frames, with the functions inlined into them."""
    native = [number for number, frame in enumerate(frames, 1) if is_native(frame)]
    return frames[: native[most - 1]] if len(native) > most else frames


def _is_aarch64(copy: StackCopy) -> bool:
    return len(copy.registers) == AARCH64_REGISTERS_SIZE


def _link_and_ip(copy: StackCopy) -> bytes:
    registers = copy.registers
    return registers[_X30_BYTES] + registers[_PC_BYTES] if _is_aarch64(copy) else registers[_IP_BYTES]


def _without_signatures(numbers: Sequence[int]) -> Callable[[memoryview], object]:
    """As itemgetter: a return address is signed with the place where it is stored, one of each thread."""
    return lambda words: [words[number] & AARCH64_ADDRESS for number in numbers]


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
    """Return a key that is equal for equal stacks: the code addresses of their physical frames."""
    return tuple(_place(frame) for frame in stack.frames if not frame.inlined)


def _place(frame: Frame) -> tuple[object, ...]:
    # Two addresses in one function are two sites.  A frame outside all modules, such as one of Python, is
    # identified by its name and line.
    named = (frame.function, frame.file, frame.line) if frame.module is None else None
    return (frame.module, frame.offset, named)
