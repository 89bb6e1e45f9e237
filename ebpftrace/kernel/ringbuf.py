"""Read a BPF ring buffer in bulk, in a thread, so that it does not fill up while Python is busy.

bcc calls Python back for each record, which costs more than a target needs to make one.  Here
all that has come is copied out at once; what the records mean is looked at later.
Format: Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c of the kernel.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections import deque
from collections.abc import Iterator, Sequence

_HEADER = struct.Struct("@II")
_POSITION_BYTES = 8
_BUSY = 1 << 31
_DISCARDED = 1 << 30

_IDLE_SECONDS = 0.1
_BUSY_SECONDS = 0.005
_BUSY_SHARE = 0.05
"""Share of a ring buffer that was filled between two looks, from which on it is looked at more often."""


class RingBuffer:
    """One ring buffer, and what has been copied out of it and not been read yet."""

    def __init__(self, fd: int, size: int, most_bytes: int) -> None:
        """Map the buffer of ``size`` bytes; keep at most ``most_bytes`` that wait to be read."""
        page = os.sysconf("SC_PAGE_SIZE")
        self.dropped = 0
        """Bytes that were left out because too much waited."""
        self._size = size
        self._most_bytes = most_bytes
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The kernel maps the data twice in a row: a record is contiguous wherever it begins.
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        # As words of the machine: the struct module may move a number byte by byte, and the kernel would
        # see a position half-way between two (or we one of the kernel's).
        self._consumed = memoryview(self._consumer)[:_POSITION_BYTES].cast("Q")
        self._produced = memoryview(self._producer)[:_POSITION_BYTES].cast("Q")
        self._data_at = page
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Unmap the buffer; what waits can still be read."""
        self._consumed.release()
        self._produced.release()
        self._consumer.close()
        self._producer.close()

    def drain(self) -> float:
        """Copy out what has come; return which share of the buffer it filled."""
        begin, produced = self._consumed[0], self._produced[0]
        end = self._committed(begin, produced)
        if end == begin:
            return 0.0
        if self._waiting_bytes + (end - begin) > self._most_bytes:
            self.dropped += end - begin
        else:
            at = self._data_at + begin % self._size
            self._waiting.append(self._producer[at : at + end - begin])
            self._waiting_bytes += end - begin
        self._consumed[0] = end
        return (end - begin) / self._size

    def take(self) -> Iterator[bytes]:
        """Yield what waits, in pieces of whole records with their headers."""
        while self._waiting:
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
    """A thread that drains ring buffers in time, whatever the rest of the program does."""

    def __init__(self, buffers: Sequence[RingBuffer]) -> None:
        self._buffers = buffers
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drainer", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Drain now: what was sent before this call can be taken after it."""
        with self._lock:
            for buffer in self._buffers:
                buffer.drain()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = _IDLE_SECONDS
        while not self._stopped.wait(pause):
            with self._lock:
                filled = max(buffer.drain() for buffer in self._buffers)
            pause = _BUSY_SECONDS if filled > _BUSY_SHARE else _IDLE_SECONDS
