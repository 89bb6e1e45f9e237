# SPDX-License-Identifier: Apache-2.0
"""The records of the call trace as events."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Union

from ebpftrace.capture.calls.layout import (
    CALL,
    CLONE_TAIL,
    CLONE_WORDS,
    EXEC_STRING_BYTES,
    EXEC_STRINGS,
    EXEC_TAIL,
    HEAD,
    MAX_VARIABLES,
    PATH_BYTES,
    READ_PARENT_TID,
    READ_PIDFD,
    STACK_TAIL,
    RecordKind,
    numbers,
)
from ebpftrace.capture.layout import PYTHON_BYTES, REGISTER_BYTES, python_frames
from ebpftrace.strace.events import CloneMemory, Ended, Event, Executed, Executes, Leaves, Returned, Text
from ebpftrace.unwind.copies import StackCopy

_SHOWN_BYTES = 32
"""Most bytes of an execve argument that are shown (strace(1), -s)."""


class CopiedStack(NamedTuple):
    """Registers and stack of a call; comes after the call's event, with the same task and time."""

    at: int
    tid: int
    tgid: int
    image: int
    """The process that executed its program: itself, or the ancestor that forked it."""
    copy: StackCopy


Recorded = Union[Event, CopiedStack]


class Decoder:
    """Converts records to events."""

    def __init__(self) -> None:
        self._names = {number: name for name, number in numbers().items()}
        self._register_bytes = REGISTER_BYTES[platform.machine()]

    def events(self, records: Iterable[memoryview]) -> Iterator[Recorded]:
        """Yield the event of each record."""
        names = self._names
        for record in records:
            if HEAD.unpack_from(record)[2] == RecordKind.STACK:
                yield self._stack(record)
                continue
            (at, tid, kind, number, entered_at, returned, lost, a, b, c, d, e, f, tgid) = CALL.unpack_from(
                record
            )
            if kind == RecordKind.RETURNED:
                yield Returned(at, tid, tgid, names[number], (a, b, c, d, e, f), returned, entered_at, lost)
            elif kind == RecordKind.CLONED:
                memory = _clone_memory(record)
                yield Returned(
                    at, tid, tgid, names[number], (a, b, c, d, e, f), returned, entered_at, lost, memory
                )
            elif kind == RecordKind.LEAVES:
                yield Leaves(at, tid, tgid, names[number], (a, b, c, d, e, f), lost)
            elif kind == RecordKind.EXECUTES:
                yield _executes(record, at, tid, tgid, (a, b, c), lost)
            elif kind == RecordKind.EXECUTED:
                yield Executed(at, tid, tgid, returned, lost)
            else:
                yield Ended(at, tid, tgid, returned, lost)

    def _stack(self, record: memoryview) -> CopiedStack:
        at, tid, _, _ = HEAD.unpack_from(record)
        size, is_cut, tgid, image, missing, count = STACK_TAIL.unpack_from(record, HEAD.size)
        first = HEAD.size + STACK_TAIL.size
        python, has_more_python = python_frames(record, first, count)
        registers = first + PYTHON_BYTES
        memory = registers + self._register_bytes
        copy = StackCopy(
            signature=0,
            at=at,
            tid=tid,
            registers=bytes(record[registers:memory]),
            memory=bytes(record[memory : memory + size]),
            truncated=bool(is_cut),
            missing=missing,
            python=python,
            has_more_python=has_more_python,
        )
        return CopiedStack(at, tid, tgid, image, copy)


def _clone_memory(record: memoryview) -> CloneMemory:
    *arguments, fetched, is_read, parent_tid, pidfd = CLONE_TAIL.unpack_from(record, CALL.size)
    return CloneMemory(
        arguments=tuple(arguments[:CLONE_WORDS]),
        fetched=fetched,
        parent_tid=parent_tid if is_read & READ_PARENT_TID else None,
        pidfd=pidfd if is_read & READ_PIDFD else None,
    )


def _executes(
    record: memoryview, at: int, tid: int, tgid: int, pointers: tuple[int, int, int], lost: int
) -> Executes:
    tail = EXEC_TAIL.unpack_from(record, CALL.size)
    string_count, is_open, variables, path_size = tail[-4:]
    first = CALL.size + EXEC_TAIL.size
    path_at = first + EXEC_STRINGS * EXEC_STRING_BYTES
    strings = []
    for index in range(min(string_count, EXEC_STRINGS)):
        begin = first + index * EXEC_STRING_BYTES
        size = tail[EXEC_STRINGS + index]
        strings.append(_text(tail[index], record[begin : begin + EXEC_STRING_BYTES], size, _SHOWN_BYTES))
    path, argv, envp = pointers
    return Executes(
        at=at,
        tid=tid,
        tgid=tgid,
        path=_text(path, record[path_at:], path_size, PATH_BYTES),
        argv=argv,
        strings=tuple(strings),
        has_more=string_count > EXEC_STRINGS,
        open_at=argv + string_count * 8 if is_open else None,
        envp=envp,
        variables=variables,
        has_more_variables=variables >= MAX_VARIABLES,
        lost=lost,
    )


def _text(pointer: int, memory: memoryview, size: int, shown: int) -> Text:
    """A string of ``size`` bytes with its NUL, negative where it could not be read."""
    if size <= 0:
        return Text(pointer, None)
    content = bytes(memory[: size - 1])
    return Text(pointer, content[:shown], is_whole=len(content) <= shown)
