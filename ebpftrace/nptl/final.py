# SPDX-License-Identifier: Apache-2.0
"""glibc's thread lists at the end of a process, as the BPF program read them in its dying task.

The threads that are on them then were never joined.  The BPF program must know the layout before the process
ends, perhaps before its memory could be read, so the layout is taken from the libc's file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Callable, NamedTuple, Optional

from ebpftrace.model import Interval, ListedThread, ReadState, ThreadLists
from ebpftrace.nptl.blocks import usual_block_offset
from ebpftrace.nptl.lists import (
    ROOT,
    ROOT_FIELDS,
    SYMBOLS,
    USED,
    USER,
    Lists,
    Symbols,
    UnsoundError,
)
from ebpftrace.nptl.struct_pthread import Descriptor, Format, ThreadState, join_offset, setxid_offset
from ebpftrace.nptl.symbols import Image, read_image

_JOIN_FIELDS = 1024
"""Bytes from the start of a descriptor; in every version the futex of pthread_join is among them."""
_EXITING = 1 << 4


@dataclass(frozen=True)
class LibcFile:
    """The file of a glibc, with what it takes to find and read the thread lists in any process."""

    lists: Lists
    """``used`` and ``user`` are offsets in ``_rtld_global`` if ``root`` is not 0, else link-time
    addresses."""
    root: int
    """Link-time address of libc's pointer to ``_rtld_global``; 0 if it has none."""
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
        """Link-time address of the code less its file offset; None unless there is one code segment."""
        code = [segment for segment in self.image.segments if segment.executable]
        return code[0].address - code[0].offset if len(code) == 1 else None


class Listed(NamedTuple):
    """A thread on glibc's lists at the end whose tid the kernel or the thread itself had cleared."""

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
    """Read the layout of the thread lists from a glibc's file; None if it is no glibc or lacks the symbols.

    ``static`` means that the file is a program that glibc was linked into.  ``image`` has the ``SYMBOLS`` of
    the file, if they were read before.
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
        return None  # in every glibc ``next`` is the first field of ``list_t``
    return LibcFile(Lists(version, static, image.order, layout, used, user, None, None, None), root, image)


class _Contents:
    """The bytes of a file by their link-time addresses."""

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


def final_lists(
    libc: LibcFile,
    listed: Iterable[Listed],
    awaited: Collection[int],
    had_exited: Callable[[int, Interval], Optional[bool]],
) -> ThreadLists:
    """The lists as a dying process left them, with only the threads that had exited before.

    ``awaited`` are the futexes that its threads slept at: a thread with one in its descriptor was just being
    joined.  ``had_exited`` returns what the trace knows about a descriptor and its stack; None if nothing.
    """
    form = Format(libc.lists, libc.block)
    waits = sorted(awaited)
    threads = tuple(
        ListedThread(
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
    return ThreadLists(ReadState.READ, threads=threads, libc=libc.lists.name)


def _exited(
    one: Listed,
    form: Format,
    stack: Optional[Interval],
    had_exited: Callable[[int, Interval], Optional[bool]],
) -> bool:
    """Whether the thread had exited before the process began to end, which clears the tids of all threads."""
    if form.state(_descriptor(one), ()) is not ThreadState.EXITED:
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
    """The stack of a descriptor; None if the descriptor is outside of it, so that it was misread."""
    if one.block <= one.descriptor < one.block + one.block_size:
        return Interval(one.block, one.block + one.block_size)
    return None


def _is_awaited(descriptor: int, waits: Sequence[int]) -> bool:
    position = bisect_left(waits, descriptor)
    return position < len(waits) and waits[position] < descriptor + _JOIN_FIELDS
