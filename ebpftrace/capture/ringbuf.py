# SPDX-License-Identifier: Apache-2.0
"""Read a BPF ring buffer in bulk, in a thread, so that it does not fill up while Python is busy.

bcc calls Python back for each record, which costs more than a target needs to make one.  Here all records
that have come are copied out at once and decoded later.
Format: Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c of the kernel.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from ebpftrace.units import PAGE

_HEADER = struct.Struct("@II")
_POSITION_BYTES = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30

_MAX_RECORD_SECONDS = 0.05
"""How long to wait for the end of a record: its writer may have been preempted."""

_PIPE_BYTES = 4096
"""Bytes read at once from a pipe that only serves to wake."""


class RingBuffer:
    """One ring buffer, and the records copied out of it that have not been taken yet."""

    def __init__(self, fd: int, size: int, most_bytes: int) -> None:
        """Map the buffer of ``size`` bytes; at most ``most_bytes`` wait to be taken."""
        self.dropped = 0
        """Bytes that were dropped because too many waited."""
        self._size = size
        self._most_bytes = most_bytes
        self._consumer = mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The kernel maps the data twice in a row: a record is contiguous wherever it begins.
        self._producer = mmap.mmap(fd, PAGE + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)
        # As machine words: the struct module may copy a number byte by byte, so that the kernel, or we, would
        # see a half-written position.
        self._consumed = memoryview(self._consumer)[:_POSITION_BYTES].cast("Q")
        self._produced = memoryview(self._producer)[:_POSITION_BYTES].cast("Q")
        self._data_at = PAGE
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        """Protects the waiting records: one thread adds while another takes."""

    def close(self) -> None:
        """Unmap the buffer; the waiting records can still be taken."""
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()

    def drain(self) -> float:
        """Copy out the records that have come; return the share of the buffer that they filled."""
        begin, produced = self._consumed[0], self._produced[0]
        end = self._committed(begin, produced)
        if end == begin:
            return 0.0
        at = self._data_at + begin % self._size
        with self._lock:
            if self._waiting_bytes + (end - begin) > self._most_bytes:
                self.dropped += end - begin
            else:
                self._waiting.append(self._producer[at : at + end - begin])
                self._waiting_bytes += end - begin
        self._consumed[0] = end
        return (end - begin) / self._size

    def drain_all(self) -> None:
        """Copy out all records that have been sent by now.

        If the kernel preempts a program that is writing a record, the records behind it can't be read until
        that program runs again.
        """
        until = self._produced[0]
        deadline = time.monotonic() + _MAX_RECORD_SECONDS
        while True:
            self.drain()
            if self._consumed[0] >= until or time.monotonic() > deadline:
                return
            os.sched_yield()

    def take(self) -> Iterator[bytes]:
        """Yield the waiting records, in pieces of whole records with their headers."""
        while self._waiting:
            with self._lock:
                piece = self._waiting.popleft()
                self._waiting_bytes -= len(piece)
            yield piece

    def _committed(self, begin: int, produced: int) -> int:
        """Return where the first record begins that its producer has not finished."""
        position = begin
        while position < produced:
            (length, _) = _HEADER.unpack_from(self._producer, self._data_at + position % self._size)
            if length & _BUSY:
                break
            position += record_size(length)
        return position


def record_size(length: int) -> int:
    """Return the bytes that a record takes in the buffer, by the length in its header."""
    return ((length & ~(_BUSY | _DISCARDED)) + _HEADER.size + 7) & ~7


def records(piece: bytes) -> Iterator[memoryview]:
    """Yield the records of a piece, without their headers."""
    view = memoryview(piece)
    position = 0
    while position < len(piece):
        (length, _) = _HEADER.unpack_from(piece, position)
        if not length & _DISCARDED:
            begin = position + _HEADER.size
            yield view[begin : begin + (length & ~_BUSY)]
        position += record_size(length)


class Drainer:
    """A thread that drains ring buffers in time, whatever the rest of the program does.

    It sleeps until a BPF program wakes it, which happens before a buffer is full.
    """

    def __init__(self, buffers: Sequence[RingBuffer], wakers: Sequence[int]) -> None:
        """``wakers``: file descriptors, such as the ring buffers', that wake it (edges of EPOLLIN)."""
        self._buffers = buffers
        self._lock = threading.Lock()
        self._stop_read, self._stop_write = os.pipe2(os.O_CLOEXEC)
        self._drained_read, self._drained_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._stop_read, select.EPOLLIN)
        for waker in wakers:
            # Edges only: a buffer that is not empty is always readable, without a wake-up.
            self._epoll.register(waker, select.EPOLLIN | select.EPOLLET)
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Becomes readable when the thread was woken and has drained."""
        return self._drained_read

    def drain(self) -> None:
        """Drain now: records sent before this call can be taken after it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._drained_read, _PIPE_BYTES)
        with self._lock:
            for buffer in self._buffers:
                buffer.drain_all()

    def stop(self) -> None:
        """End the thread; nothing can be drained any more."""
        os.write(self._stop_write, b"!")
        self._thread.join()
        self._epoll.close()
        for fd in (self._stop_read, self._stop_write, self._drained_read, self._drained_write):
            os.close(fd)

    def _run(self) -> None:
        while self._stop_read not in (fd for fd, _ in self._epoll.poll()):
            with self._lock:
                for buffer in self._buffers:
                    buffer.drain()
            with contextlib.suppress(BlockingIOError):
                os.write(self._drained_write, b"!")
