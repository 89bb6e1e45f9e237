# SPDX-License-Identifier: Apache-2.0
"""glibc's thread lists at the end of a process, from what the kernel side read in its dying task.

Who stands on them then was never joined.  The kernel side must know how they are laid out before the process
ends, and so before anybody can look into it: that is a property of the file of the libc.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Callable, NamedTuple, Optional

from ebpftrace.model import BookedThread, Books, BooksState, Interval
from ebpftrace.process.books.blocks import usual_block_offset
from ebpftrace.process.books.descriptors import Descriptor, Fate, Format, join_offset, setxid_offset
from ebpftrace.process.books.lists import (
    ROOT,
    ROOT_FIELDS,
    SYMBOLS,
    USED,
    USER,
    Lists,
    Symbols,
    UnsoundError,
)
from ebpftrace.process.books.symbols import Image, read_image

_JOIN_FIELDS = 1024
"""Bytes from the beginning of a descriptor; what pthread_join waits at is among them in every version."""
_EXITING = 1 << 4


@dataclass(frozen=True)
class LibcFile:
    """The file of a glibc: what must be known to find and to read its thread lists in any process."""

    lists: Lists
    """``used`` and ``user`` are offsets in ``_rtld_global`` where ``root`` says where to find that, else
    addresses before relocation."""
    root: int
    """Where libc keeps the address of ``_rtld_global``, before relocation; 0: it does not."""
    image: Image

    @property
    def block(self) -> int:
        """Offset of ``stackblock`` in a descriptor."""
        return usual_block_offset(self.lists.layout)

    @property
    def join(self) -> int:
        """Offset of ``joinid`` or ``joinstate``."""
        return join_offset(self.lists)

    @property
    def setxid(self) -> int:
        """Offset of ``setxid_futex``."""
        return setxid_offset(self.lists)

    @property
    def text(self) -> Optional[int]:
        """Address before relocation less offset in the file, of its code."""
        code = [segment for segment in self.image.segments if segment.executable]
        return code[0].address - code[0].offset if len(code) == 1 else None


class Listed(NamedTuple):
    """A thread on glibc's lists at the end, whose number the kernel or the thread itself had cleared."""

    descriptor: int
    join: int
    start_routine: int
    block: int
    block_size: int
    tid: int
    cancelhandling: int
    setxid: int
    user_stack: bool


def read_libc_file(file: BinaryIO, static: bool = False, image: Optional[Image] = None) -> Optional[LibcFile]:
    """What a glibc's file says of its thread lists; None for what is none, or does not say it.

    ``static``: the file is a program that glibc was linked into.  ``image`` has the ``SYMBOLS`` of the file,
    where they were read before.
    """
    image = image or read_image(file, SYMBOLS)
    if image is None:
        return None
    symbols = Symbols(image, 0, _Contents(image, file))
    try:
        version, layout = symbols.version(), symbols.layout()
        used, user, root = symbols.address(*USED), symbols.address(*USER), 0
        if used is None or user is None:
            used, user = (symbols.offset(field) for field in ROOT_FIELDS)
            root = symbols.address(ROOT) or 0
            if not root:
                return None
    except (OSError, UnsoundError):
        return None
    if layout.next:
        return None  # no glibc has it so
    return LibcFile(Lists(version, static, image.order, layout, used, user, None, None, None), root, image)


class _Contents:
    """The bytes of a file by their addresses before relocation."""

    def __init__(self, image: Image, file: BinaryIO) -> None:
        self._image = image
        self._file = file

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address``.  Raises OSError."""
        for segment in self._image.segments:
            if segment.address <= address and address + size <= segment.address + segment.size:
                self._file.seek(segment.offset + address - segment.address)
                found = self._file.read(size)
                if len(found) == size:
                    return found
        raise OSError(f"nothing is at {address:#x}")


def final_books(
    libc: LibcFile,
    listed: Iterable[Listed],
    awaited: Collection[int],
    had_exited: Callable[[int, Interval], Optional[bool]],
) -> Books:
    """The lists as a dying process left them: with threads only that had exited before.

    ``awaited`` are the futexes that its threads slept at: who is awaited there was about to be joined.
    ``had_exited`` tells by descriptor and stack what the trace knows; None where that is nothing.
    """
    form = Format(libc.lists, libc.block)
    waits = sorted(awaited)
    threads = tuple(
        BookedThread(
            descriptor=one.descriptor,
            tid=0,
            start_routine=one.start_routine,
            stack=stack,
            user_stack=one.user_stack,
            exited=True,
            detached=form.detached(_descriptor(one)),
        )
        for one in listed
        if one.start_routine  # only the initial thread has none
        for stack in [_stack(one)]
        if _exited(one, form, stack, had_exited) and not _is_awaited(one.descriptor, waits)
    )
    return Books(BooksState.READ, threads=threads, libc=libc.lists.name)


def _exited(
    one: Listed,
    form: Format,
    stack: Optional[Interval],
    had_exited: Callable[[int, Interval], Optional[bool]],
) -> bool:
    """Whether the thread had exited when the process began to end; the end itself clears its number too."""
    if form.fate(_descriptor(one), ()) is not Fate.EXITED:
        return False
    seen = had_exited(one.descriptor, stack or Interval(one.descriptor, one.descriptor + 1))
    return bool(one.cancelhandling & _EXITING) if seen is None else seen


def _descriptor(one: Listed) -> Descriptor:
    return Descriptor(
        address=one.descriptor,
        next=0,
        prev=0,
        tid=one.tid,
        cancelhandling=one.cancelhandling,
        setxid=one.setxid,
        join=one.join,
        start_routine=one.start_routine,
        block=one.block,
        block_size=one.block_size,
    )


def _stack(one: Listed) -> Optional[Interval]:
    """The descriptor lies on the stack that it names, or it was misread."""
    if one.block <= one.descriptor < one.block + one.block_size:
        return Interval(one.block, one.block + one.block_size)
    return None


def _is_awaited(descriptor: int, waits: Sequence[int]) -> bool:
    position = bisect_left(waits, descriptor)
    return position < len(waits) and waits[position] < descriptor + _JOIN_FIELDS
