# SPDX-License-Identifier: Apache-2.0
"""The events and stack copies that the BPF programs of the ledger send, and how their records are decoded."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Optional, Union

from ebpftrace.capture.layout import (
    CALL_EVENT,
    CALLS,
    COPY_ARGUMENT,
    COPY_HEAD,
    IMAGE_AUXV,
    IMAGE_HEAD,
    LISTED_EVENT,
    NAME_SLOT,
    PYTHON_BYTES,
    REGISTER_BYTES,
    ROW_EVENT,
    SETTLED_EVENT,
    CallEvent,
    CallKind,
    CopyHead,
    EventKind,
    ImageHead,
    ListedEvent,
    RowEvent,
    SettledEvent,
    WalkStop,
    python_frames,
    signed_bytes,
)
from ebpftrace.capture.snapshot import decode_name
from ebpftrace.ledger.events import Event, Evicted, Remapped, Unmapped
from ebpftrace.model import FailedCall, Interval, Row, ThreadId
from ebpftrace.nptl.final import Listed
from ebpftrace.procfs.files import FileKey
from ebpftrace.unwind.copies import StackCopy

_FAILED_CALL, _FAILED_ERROR = 32, 40  # bits of flags (bpf/mappings.h, call_failed)
_END_DIES = 1  # bpf/walk.h
_MINOR_BITS = 20  # include/linux/kdev_t.h


@dataclass(frozen=True)
class Executed:
    """A task executed another program: it left the address space, or (COMMAND) entered it."""

    tid: int
    at: int


@dataclass(frozen=True)
class CodeMapped:
    """Executable memory was mapped: a library was loaded, or a JIT compiler runs.

    Sent at most once in CODE_REST_NS: more may be mapped within that time.
    """

    at: int


@dataclass(frozen=True)
class ImageMapped:
    """A file was mapped with PROT_EXEC."""

    file: FileKey
    """With the path that the task sees, from its root directory."""
    interval: Interval
    offset: int
    """File offset of the first mapped byte."""
    tid: int
    at: int


@dataclass(frozen=True)
class ImageExecuted:
    """A task began to execute a program; comes before ``Executed``."""

    file: FileKey
    tid: int
    auxv: dict[int, int]
    """The begin of its auxiliary vector: values by type (getauxval(3))."""
    at: int


@dataclass(frozen=True)
class Settled:
    """The address space of a followed process got a number (``sizing.Needs.settle_ns`` says when)."""

    tgid: int
    image: int
    """The process that executed its program: itself, or the ancestor that forked it."""
    name: str
    started_at: int
    """When it was forked, or executed its program."""
    at: int
    parent: Optional[int] = None
    """The nearest ancestor with a number; None if the user named the process."""


@dataclass(frozen=True)
class ListedAtEnd:
    """A thread on glibc's lists at the end of an address space, read in one ``walk``."""

    walk: int
    thread: Listed


@dataclass(frozen=True)
class Walked:
    """A walk along the lists of an address space at its end, which may have failed.

    Before Linux 6.10 a failing exec sends it, too: only a walk before ``Executed`` counts.
    """

    walk: int
    complete: bool
    why: str
    """Why the walk is not complete."""
    sent: int
    """Number of ``ListedAtEnd`` of this walk."""
    dies: bool
    """The process ends; otherwise it executes another program."""
    ended_at: int
    """When the first sign of the end was seen."""


@dataclass(frozen=True)
class Awaited:
    """A thread that ended with its process had waited for this futex."""

    address: int


KernelEvent = Union[
    Event,
    FailedCall,
    Executed,
    CodeMapped,
    ImageMapped,
    ImageExecuted,
    ListedAtEnd,
    Walked,
    Awaited,
    Settled,
]


_STOPS = {
    WalkStop.COMPLETE: "",
    WalkStop.CHANGED: "glibc's thread lists changed while they were read, or are broken",
    WalkStop.TOO_LONG: "glibc's thread lists are too long to be read in a dying process",
    WalkStop.NO_LIST: "no glibc was known to be in the process, or its thread lists could not be read",
}


def decode_event(record: memoryview) -> tuple[int, KernelEvent]:
    """Return the address space and the event of a ``struct event_t``."""
    call = CallEvent(*CALL_EVENT.unpack(record))
    event: KernelEvent
    if call.kind == EventKind.UNMAPPED:
        event = Unmapped(Interval(call.start, call.start + call.length), call.at)
    elif call.kind == EventKind.EVICTED:
        row = RowEvent(*ROW_EVENT.unpack(record))
        mapper = ThreadId(row.tid, row.mapper_started_at)
        event = Evicted(
            Row(row.start, row.length, row.since, row.made_at, mapper, row.prot, row.flags, row.site)
        )
    elif call.kind == EventKind.MOVE:
        event = Remapped(
            old=Interval(call.start, call.start + call.length),
            new=Interval(call.new_start, call.new_start + call.new_length),
            at=call.at,
            # The kernel's clock for BPF may step back (ktime_get_mono_fast_ns); a call does not.
            done_at=max(call.done_at, call.at + 1),
        )
    elif call.kind == EventKind.FAILED:
        event = FailedCall(
            call=CALLS[call.flags >> _FAILED_CALL & 0xFF],
            error=call.flags >> _FAILED_ERROR,
            start=call.start,
            length=call.length,
            new=Interval(call.new_start, call.new_start + call.new_length),
            flags=call.flags & 0xFFFFFFFF,
            tid=call.tid,
            at=call.at,
        )
    elif call.kind == EventKind.EXEC:
        event = Executed(call.tid, call.at)
    elif call.kind == EventKind.SETTLED:
        settled = SettledEvent(*SETTLED_EVENT.unpack(record))
        name = decode_name(settled.name.partition(b"\0")[0])
        event = Settled(
            settled.tgid, settled.image, name, settled.started_at, settled.at, settled.parent or None
        )
    elif call.kind == EventKind.LISTED:
        listed = ListedEvent(*LISTED_EVENT.unpack(record))
        event = ListedAtEnd(listed.place >> 1, _listed(listed))
    elif call.kind == EventKind.WALKED:
        stop = WalkStop(call.new_start)
        complete = stop is WalkStop.COMPLETE
        dies = call.flags == _END_DIES
        event = Walked(call.new_length, complete, _STOPS[stop], call.length, dies, call.at)
    elif call.kind == EventKind.AWAITED:
        event = Awaited(call.start)
    else:
        event = CodeMapped(call.at)
    return call.space, event


def decode_image(record: memoryview) -> tuple[int, Union[ImageExecuted, ImageMapped]]:
    """Return the address space and the event of a ``struct image_t``."""
    head = ImageHead(*IMAGE_HEAD.unpack_from(record))
    device = f"{head.device >> _MINOR_BITS:02x}:{head.device & (1 << _MINOR_BITS) - 1:02x}"
    names = bytes(record[IMAGE_HEAD.size + IMAGE_AUXV.size :])
    file = FileKey(device, head.inode, image_path(names))
    if head.is_program:
        words = IMAGE_AUXV.unpack_from(record, IMAGE_HEAD.size)
        return head.space, ImageExecuted(file, head.tid, dict(zip(words[::2], words[1::2])), head.at)
    area = Interval(head.start, head.start + head.length)
    return head.space, ImageMapped(file, area, head.offset, head.tid, head.at)


def decode_copy(record: memoryview) -> tuple[int, CallKind, StackCopy]:
    """Return the address space, the call and the stack of a ``struct copy_t``."""
    head = CopyHead(*COPY_HEAD.unpack_from(record))
    first = COPY_HEAD.size + COPY_ARGUMENT.size
    registers = first + PYTHON_BYTES
    memory = registers + REGISTER_BYTES[platform.machine()]
    python, has_more_python = python_frames(record, first, head.python_count)
    call = CallKind(head.call)
    copy = StackCopy(
        signature=head.site,
        at=head.at,
        tid=head.tid,
        registers=bytes(record[registers:memory]),
        memory=bytes(record[memory : memory + head.size]),
        truncated=bool(head.is_cut),
        python=python,
        has_more_python=has_more_python,
        missing=head.missing,
        signed=signed_bytes(call),
        argument=COPY_ARGUMENT.unpack_from(record, COPY_HEAD.size) if head.has_argument else (),
    )
    return head.space, call, copy


def _listed(event: ListedEvent) -> Listed:
    return Listed(
        descriptor=event.descriptor,
        join=event.join,
        start_routine=event.start_routine,
        block=event.block,
        block_size=event.block_size,
        tid=event.thread_tid,
        cancelhandling=event.cancelhandling,
        setxid=event.setxid,
        user_stack=bool(event.place & 1),
    )


def image_path(slots: bytes) -> str:
    """Return the path in the name slots of ``struct image_t``, as /proc/PID/maps would print it."""
    names = [slots[at : slots.index(0, at)] for at in range(0, len(slots), NAME_SLOT)]
    path = b"/" + b"/".join(name for name in reversed(names) if name)
    return path.replace(b"\n", b"\\012").decode("utf-8", "surrogateescape")
