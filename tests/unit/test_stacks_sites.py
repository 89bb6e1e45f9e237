# SPDX-License-Identifier: Apache-2.0
"""Which stack belongs to which call: its own copy first, its signature only where that is unambiguous."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Frame, Stack, StackSource
from ebpftrace.unwind.copies import AARCH64_ADDRESS, IN_LINK_REGISTER, REGISTER_NAMES, StackCopy, Unwound
from ebpftrace.unwind.sites import NOTE_FURTHER_UP, SiteStacks


def stack(*functions: str) -> Stack:
    frames = tuple(Frame(name, module="/bin/server", offset=abs(hash(name))) for name in functions)
    return Stack(frames, True, StackSource.COPIED)


WHOLE = 512
"""Bytes that a signature is made of; frame N of a stack was found in word N."""


class Reported:
    """A resolver with a given stack for each copy."""

    def __init__(self, **stacks: Stack) -> None:
        self.stacks = stacks
        self.version = 1
        self.unwound = 0

    def unwind(self, copy: StackCopy) -> Unwound:
        self.unwound += 1
        stack = self.stacks[copy.registers.decode()]
        physical = sum(not frame.inlined for frame in stack.frames)
        return Unwound(stack, (None, *range(8, 8 * physical, 8))[:physical])


def copy(signature: int, at: int, way: str, size: int = 8, tid: int = 7, signed: int = WHOLE) -> StackCopy:
    return StackCopy(signature, at, tid, way.encode(), bytes(size), signed=signed)


def names(stacks: SiteStacks, number: int) -> list[str]:
    return [frame.function or "" for frame in stacks.stack(number).frames]


def test_a_call_has_its_own_stack_or_that_of_its_signature() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a"))
    stacks.work(Reported(a=stack("mmap", "leaf", "main")))
    own = stacks.origin(1, (7, 100))
    inherited = stacks.origin(1, (7, 200))
    assert own.source is StackSource.COPIED
    assert inherited.source is StackSource.SIGNATURE
    assert own.stack == inherited.stack
    assert names(stacks, own.stack) == ["mmap", "leaf", "main"]


def test_a_call_without_a_copy_has_no_stack() -> None:
    stacks = SiteStacks()
    assert stacks.origin(5, (7, 1)).source is StackSource.NONE
    assert names(stacks, stacks.origin(0, (7, 1)).stack) == []


def test_a_signature_of_two_ways_shows_only_what_they_share() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a"))
    stacks.add(copy(1, 200, "b"))
    stacks.work(Reported(a=stack("mmap", "spawn", "left", "main"), b=stack("mmap", "spawn", "right", "main")))
    assert names(stacks, stacks.origin(1, (7, 100)).stack) == ["mmap", "spawn", "left", "main"]
    assert names(stacks, stacks.origin(1, (7, 200)).stack) == ["mmap", "spawn", "right", "main"]
    shared = stacks.stack(stacks.origin(1, (7, 300)).stack)
    assert [frame.function for frame in shared.frames] == ["mmap", "spawn"]
    assert not shared.complete
    assert "2 call paths" in shared.note


def cut(whole: Stack, frames: int) -> Stack:
    return Stack(whole.frames[:frames], False, StackSource.COPIED)


def test_a_stack_that_was_cut_is_not_another_way() -> None:
    stacks = SiteStacks()
    whole = stack("mmap", "spawn", "left", "main")
    for at, way in enumerate("abc"):
        stacks.add(copy(1, at, way))
    stacks.work(Reported(a=cut(whole, 2), b=whole, c=cut(whole, 3)))
    inherited = stacks.origin(1, (7, 300))
    assert names(stacks, inherited.stack) == ["mmap", "spawn", "left", "main"]
    assert stacks.stack(inherited.stack).complete


def test_a_complete_stack_is_not_the_beginning_of_a_longer_one() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 1, "a"))
    stacks.add(copy(1, 2, "b"))
    stacks.work(Reported(a=stack("mmap", "main"), b=stack("mmap", "main", "start")))
    assert names(stacks, stacks.origin(1, (7, 300)).stack) == ["mmap", "main"]
    assert "2 call paths" in stacks.stack(stacks.origin(1, (7, 300)).stack).note


def test_inlined_frames_do_not_make_another_stack() -> None:
    stacks = SiteStacks()
    plain = stack("mmap", "main")
    inlined = Frame("helper", module="/bin/server", offset=plain.frames[1].offset, inlined=True)
    stacks.add(copy(1, 1, "a"))
    stacks.add(copy(1, 2, "b"))
    stacks.work(
        Reported(a=plain, b=Stack((plain.frames[0], inlined, plain.frames[1]), True, StackSource.COPIED))
    )
    assert stacks.origin(1, (7, 1)).stack == stacks.origin(1, (7, 2)).stack


def test_equal_stacks_of_different_signatures_are_one() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a"))
    stacks.add(copy(2, 200, "a"))
    stacks.work(Reported(a=stack("mmap", "main")))
    assert stacks.origin(1, (7, 1)).stack == stacks.origin(2, (7, 2)).stack


def test_calls_at_one_moment_in_two_threads_are_two() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a", tid=7))
    stacks.add(copy(1, 100, "b", tid=8))
    stacks.work(Reported(a=stack("left"), b=stack("right")))
    assert names(stacks, stacks.origin(1, (7, 100)).stack) == ["left"]
    assert names(stacks, stacks.origin(1, (8, 100)).stack) == ["right"]


def test_copies_beyond_the_limit_are_dropped() -> None:
    stacks = SiteStacks()
    huge = 9 << 20
    for at in range(5):
        stacks.add(copy(at, at, "a", size=huge))
    reported = Reported(a=stack("mmap"))
    stacks.work(reported)
    sources = [stacks.origin(at, (7, at)).source for at in range(5)]
    assert sources == [StackSource.COPIED] * 3 + [StackSource.NONE] * 2  # 32 MiB hold three
    stacks.add(copy(4, 9, "a", size=huge))
    stacks.work(reported)
    assert stacks.origin(4, (7, 4)).source is StackSource.SIGNATURE


def test_work_can_be_done_in_portions() -> None:
    stacks = SiteStacks()
    for at in range(3):
        stacks.add(copy(1, at, "a"))
    reported = Reported(a=stack("mmap"))
    stacks.work(reported, most=2)
    assert stacks.origin(1, (7, 1)).source is StackSource.COPIED
    assert stacks.origin(1, (7, 2)).source is StackSource.SIGNATURE
    stacks.work(reported)
    assert stacks.origin(1, (7, 2)).source is StackSource.COPIED


def test_a_copy_that_cannot_be_unwound_gives_no_stack() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 1, "a"))
    stacks.work(Reported(a=Stack(note="unwinding failed")))
    assert stacks.origin(1, (7, 1)).source is StackSource.NONE


def test_a_call_that_was_not_copied_has_only_what_its_signature_is_made_of() -> None:
    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a", signed=24))
    stacks.work(Reported(a=stack("mmap", "spawn", "left", "main")))
    assert names(stacks, stacks.origin(1, (7, 100)).stack) == ["mmap", "spawn", "left", "main"]
    inherited = stacks.origin(1, (7, 200))
    assert inherited.source is StackSource.SIGNATURE
    shown = stacks.stack(inherited.stack)
    assert [frame.function for frame in shown.frames] == ["mmap", "spawn", "left"]
    assert (shown.complete, shown.source, shown.note) == (False, StackSource.SIGNATURE, NOTE_FURTHER_UP)


def test_a_frame_that_was_found_elsewhere_than_on_the_stack_is_of_its_call_alone() -> None:
    class InRegisters(Reported):
        def unwind(self, copy: StackCopy) -> Unwound:
            return super().unwind(copy)._replace(slots=(None, 8, None, 24))

    stacks = SiteStacks()
    stacks.add(copy(1, 100, "a"))
    stacks.work(InRegisters(a=stack("mmap", "handler", "interrupted", "main")))
    assert names(stacks, stacks.origin(1, (7, 200)).stack) == ["mmap", "handler"]


def test_all_calls_of_a_site_have_the_stack_that_each_of_them_had() -> None:
    stacks = SiteStacks()
    for at in (1, 2):
        stacks.add(copy(1, at, "a", signed=16))
    stacks.work(Reported(a=stack("brk", "malloc", "main")))
    assert stacks.origin(1, calls=2).source is StackSource.COPIED
    assert names(stacks, stacks.origin(1, calls=2).stack) == ["brk", "malloc", "main"]
    assert names(stacks, stacks.origin(1, calls=3).stack) == ["brk", "malloc"]


def same_place(at: int, *words: int, ip: int = 1) -> StackCopy:
    registers = struct.pack(
        f"<{len(REGISTER_NAMES)}Q", *(ip if name == "ip" else 0 for name in REGISTER_NAMES)
    )
    return StackCopy(1, at, 7, registers, struct.pack(f"<{len(words)}Q", *words), signed=16)


class ByWords:
    """Calls frames by the words of the copy, from the second on."""

    def __init__(self) -> None:
        self.version = 1
        self.unwound = 0

    def unwind(self, copy: StackCopy) -> Unwound:
        self.unwound += 1
        words = struct.unpack_from("<2Q", copy.memory, 8)
        return Unwound(stack("mmap", *map(str, words)), (None, 8, 16))


def test_a_copy_with_the_same_return_addresses_is_not_unwound_again() -> None:
    stacks, resolver = SiteStacks(), ByWords()
    for at, copied in enumerate(
        [same_place(1, 0, 5, 6, 9), same_place(2, 7, 5, 6, 8), same_place(3, 0, 5, 7), same_place(4, 0, 5)]
    ):
        stacks.add(copied)
        if at < 3:
            stacks.work(resolver)
    assert resolver.unwound == 2
    assert names(stacks, stacks.origin(1, (7, 2)).stack) == ["mmap", "5", "6"]
    assert names(stacks, stacks.origin(1, (7, 3)).stack) == ["mmap", "5", "7"]
    stacks = SiteStacks()
    for version in (1, 2):
        resolver.version = version
        stacks.add(same_place(version, 0, 5, 6))
        stacks.work(resolver)
    assert resolver.unwound == 4


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), min_size=1, max_size=30))
def test_no_call_is_given_a_frame_that_it_has_not(calls: list[tuple[int, int, bool]]) -> None:
    """Of calls with one signature, made of the first frame's word alone, some are copied."""
    stacks, resolver = SiteStacks(), ByWords()
    for at, (_, further, copied) in enumerate(calls):
        if copied:
            stacks.add(same_place(at, 0, 5, further))
    stacks.work(resolver)
    for at, (_, further, copied) in enumerate(calls):
        shown = names(stacks, stacks.origin(1, (7, at)).stack)
        true = ["mmap", "5", str(further)]
        assert shown == true if copied else shown == true[: len(shown)]
        assert stacks.stack(stacks.origin(1, (7, at)).stack).complete == (len(shown) == 3)


X30, PC, SIGNED = 30, 32, 0x3C << 49


def on_aarch64(at: int, link: int, *words: int, signed: int = 16) -> StackCopy:
    """A copy of a call whose first caller is in x30, the second in word 1."""
    registers = struct.pack("<35Q8x", *({X30: link, PC: 1}.get(number, 0) for number in range(35)))
    return StackCopy(1, at, 7, registers, struct.pack(f"<{len(words)}Q", *words), signed=signed)


class ByLink:
    """Calls frames by x30 and the second word of the copy, without their signatures."""

    version = 1

    def __init__(self) -> None:
        self.unwound = 0

    def unwind(self, copy: StackCopy) -> Unwound:
        self.unwound += 1
        link = struct.unpack_from("<Q", copy.registers, 8 * X30)[0]
        word = struct.unpack_from("<Q", copy.memory, 8)[0] & AARCH64_ADDRESS
        return Unwound(stack("clone", str(link), str(word)), (None, IN_LINK_REGISTER, 8))


def test_a_caller_in_the_link_register_is_common_to_all_calls_of_the_signature() -> None:
    stacks = SiteStacks()
    stacks.add(on_aarch64(1, 5, 0, 6))
    stacks.work(ByLink())
    inherited = stacks.origin(1, (7, 2))
    assert inherited.source is StackSource.SIGNATURE
    assert names(stacks, inherited.stack) == ["clone", "5", "6"]
    assert stacks.stack(inherited.stack).complete
    stacks = SiteStacks()
    stacks.add(on_aarch64(1, 5, 0, 6, signed=8))
    stacks.work(ByLink())
    assert names(stacks, stacks.origin(1, (7, 2)).stack) == ["clone", "5"]


def test_copies_whose_return_addresses_differ_by_their_signatures_are_unwound_once() -> None:
    stacks, resolver = SiteStacks(), ByLink()
    copies = [on_aarch64(1, 5, 0, 6 | SIGNED), on_aarch64(2, 5, 9, 6 | SIGNED << 1), on_aarch64(3, 4, 0, 6)]
    for copied in (*copies, on_aarch64(4, 5, 0, 7)):
        stacks.add(copied)
        stacks.work(resolver)
    assert resolver.unwound == 3
    found = [names(stacks, stacks.origin(1, (7, at)).stack)[1:] for at in range(1, 5)]
    assert found == [["5", "6"], ["5", "6"], ["4", "6"], ["5", "7"]]
