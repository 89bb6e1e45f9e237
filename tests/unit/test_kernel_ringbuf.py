# SPDX-License-Identifier: Apache-2.0
"""The ring buffer reader, on a memfd that is laid out as the kernel lays a BPF ring buffer out."""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.capture.ringbuf import Drainer, RingBuffer, record_size, records

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = 4 * PAGE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Kernel:
    """The producer: what kernel/bpf/ringbuf.c does on reserve and submit."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ringbuf")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.memory = mmap.mmap(self.fd, 2 * PAGE + 2 * SIZE)
        self.produced = 0

    def consumed(self) -> int:
        return int(struct.unpack_from("=Q", self.memory)[0])

    def send(self, payload: bytes, flags: int = 0) -> bool:
        size = record_size(len(payload))
        if self.produced + size - self.consumed() > SIZE:
            return False
        data = struct.pack("=II", len(payload) | flags, 0) + payload
        for offset, byte in enumerate(data):
            at = (self.produced + offset) % SIZE
            for mirror in (0, SIZE):  # the kernel maps the same pages twice
                self.memory[2 * PAGE + mirror + at] = byte
        self.produced += size
        struct.pack_into("=Q", self.memory, PAGE, self.produced)
        return True

    def finish(self, position: int, length: int) -> None:
        for mirror in (0, SIZE):
            struct.pack_into("=I", self.memory, 2 * PAGE + mirror + position % SIZE, length)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.memory.close()
    os.close(kernel.fd)


def read(buffer: RingBuffer) -> list[bytes]:
    buffer.drain()
    return [bytes(record) for piece in buffer.take() for record in records(piece)]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans(), st.booleans()), max_size=120))
def test_every_record_comes_once_and_in_order(steps: list[tuple[bytes, bool, bool]]) -> None:
    kernel = Kernel()
    buffer = RingBuffer(kernel.fd, SIZE, 1 << 20)
    sent: list[bytes] = []
    got: list[bytes] = []
    for payload, discarded, read_now in steps:
        if kernel.send(payload, DISCARDED if discarded else 0) and not discarded:
            sent.append(payload)
        if read_now:
            got += read(buffer)
    got += read(buffer)
    assert got == sent
    assert kernel.consumed() == kernel.produced
    buffer.close()
    os.close(kernel.fd)


def test_a_record_that_is_not_finished_stops_the_reader(kernel: Kernel) -> None:
    buffer = RingBuffer(kernel.fd, SIZE, 1 << 20)
    kernel.send(b"first")
    unfinished = kernel.produced
    kernel.send(b"second", BUSY)
    kernel.send(b"third")
    assert read(buffer) == [b"first"]
    kernel.finish(unfinished, len(b"second"))
    assert read(buffer) == [b"second", b"third"]
    buffer.close()


def test_who_drains_now_waits_for_a_record_that_is_being_written(kernel: Kernel) -> None:
    buffer = RingBuffer(kernel.fd, SIZE, 1 << 20)
    kernel.send(b"first")
    unfinished = kernel.produced
    kernel.send(b"second", BUSY)
    kernel.send(b"third")
    buffer.drain()
    writer = threading.Thread(target=kernel.finish, args=(unfinished, len(b"second")))
    writer.start()
    buffer.drain_all()
    assert kernel.consumed() == kernel.produced
    writer.join()
    got = [bytes(record) for piece in buffer.take() for record in records(piece)]
    assert got == [b"first", b"second", b"third"]
    kernel.send(b"never finished", BUSY)
    buffer.drain_all()
    assert kernel.consumed() < kernel.produced
    buffer.close()


def test_what_waits_is_bounded_and_the_rest_is_counted(kernel: Kernel) -> None:
    buffer = RingBuffer(kernel.fd, SIZE, most_bytes=record_size(8))
    kernel.send(b"a" * 8)
    buffer.drain()
    kernel.send(b"b" * 8)
    buffer.drain()
    assert buffer.dropped == record_size(8)
    assert read(buffer) == [b"a" * 8]
    kernel.send(b"c" * 8)
    assert read(buffer) == [b"c" * 8]
    buffer.close()


def test_what_waits_is_counted_right_while_one_thread_drains_and_another_takes(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that is off for good would have everything dropped in the end."""
    drainers: list[threading.Thread] = []

    class Piece(bytes):
        """Has something drained while it is measured, as another thread may at any moment."""

        def __len__(self) -> int:
            if not drainers:
                drainers.append(threading.Thread(target=buffer.drain))
                drainers[0].start()
                drainers[0].join(0.5)  # it may have to wait for us
            return super().__len__()

    class Memory(mmap.mmap):
        def __getitem__(self, key: slice) -> bytes:  # type: ignore[override]
            return Piece(super().__getitem__(key))

    with monkeypatch.context() as patched:
        patched.setattr(mmap, "mmap", Memory)
        buffer = RingBuffer(kernel.fd, SIZE, most_bytes=2 * record_size(8))
    kernel.send(b"a" * 8)
    buffer.drain()
    kernel.send(b"b" * 8)
    got = [bytes(record) for piece in buffer.take() for record in records(piece)]
    drainers[0].join()
    got += [bytes(record) for piece in buffer.take() for record in records(piece)]
    for _ in range(3):
        kernel.send(b"c" * 8)
        buffer.drain()
    assert buffer.dropped == record_size(8), "two fit"
    got += [bytes(record) for piece in buffer.take() for record in records(piece)]
    assert got == [b"a" * 8, b"b" * 8, b"c" * 8, b"c" * 8]
    buffer.close()


@pytest.fixture
def waker() -> Iterator[tuple[int, int]]:
    pipe = os.pipe()
    yield pipe
    for fd in pipe:
        os.close(fd)


def test_the_drainer_drains_when_woken(kernel: Kernel, waker: tuple[int, int]) -> None:
    buffer = RingBuffer(kernel.fd, SIZE, 1 << 20)
    drainer = Drainer([buffer], [waker[0]])
    unannounced = 0
    for number in range(1000):  # ten times what the buffer holds
        payload = struct.pack("=I", number) * 40
        while not kernel.send(payload):
            os.sched_yield()
        unannounced += record_size(len(payload))
        if unannounced >= SIZE // 4:
            os.write(waker[1], b"!")
            unannounced = 0
    drainer.drain()
    drainer.stop()
    assert [struct.unpack_from("=I", record)[0] for record in read(buffer)] == list(range(1000))
    buffer.close()


def test_the_drainer_reports_when_it_was_woken(kernel: Kernel, waker: tuple[int, int]) -> None:
    buffer = RingBuffer(kernel.fd, SIZE, 1 << 20)
    drainer = Drainer([buffer], [waker[0]])
    for round_ in range(3):
        kernel.send(b"%d" % round_)
        assert select.select([drainer], [], [], 0) == ([], [], []), "nobody has woken it"
        os.write(waker[1], b"!")
        assert select.select([drainer], [], [], 60) == ([drainer], [], [])
        assert kernel.consumed() == kernel.produced
        drainer.drain()
        assert select.select([drainer], [], [], 0) == ([], [], []), "it was listened to"
    drainer.stop()
    assert read(buffer) == [b"0", b"1", b"2"]
    buffer.close()
