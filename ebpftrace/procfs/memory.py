# SPDX-License-Identifier: Apache-2.0
"""Reads the memory of a running target through /proc/PID/mem, never by ptrace.

process_vm_readv(2) would wait for a page that belongs to a userfaultfd of the target, so a target could hang
the tracer, and after an exec it reads the new program at the old addresses.  Reading an open /proc/PID/mem
fails in both cases (kernel fs/proc/base.c, mem_rw; fs/userfaultfd.c).  And process_vm_readv pins what it
reads, so a process gets copies of its own of all pages that it has shared with its parent since fork
(mm/gup.c, gup_must_unshare; measured on 6.18: 32 of 32 MiB); /proc/PID/mem leaves them shared.
"""

from __future__ import annotations

import os
from typing import Protocol

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs.access import require_address_space, task_dir, through_live_task

MAX_READ = 64 << 20
"""Limit of bytes for one read, because sizes in the target's memory can't be trusted."""

_ADDRESS_LIMIT = 1 << 63


class Readable(Protocol):
    """Memory of the target.  ``read`` returns exactly ``size`` bytes or raises ``OSError``."""

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from ``address``."""
        ...


class UnreadableError(CannotTrace, OSError):
    """Memory of the target could not be read: it is not mapped or not backed, or the target has exited.

    It is an ``OSError`` too, so that readers of memory need not know where the memory comes from.
    """

    def __init__(self, pid: int, address: int, size: int) -> None:
        super().__init__(f"cannot read {size} bytes at {address:#x} in process {pid}")
        self.address = address
        self.size = size


class Memory:
    """The address space that a process has now; after an exec of the process it is empty.

    Opening raises ``ProcessGone`` or ``CannotTrace``.  The target keeps running, so at best the bytes of one
    page in a read are of one moment.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = through_live_task(pid, "memory", lambda tid: _open(pid, tid))

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; reads fail from now on.  May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """Read exactly ``size`` bytes, at most ``MAX_READ``, at ``address``.  Raises ``UnreadableError``."""
        # The usual case in as few steps as can be: of a hundred thousand threads each descriptor is read.
        if 0 < size <= MAX_READ and 0 <= address < _ADDRESS_LIMIT - size and self._fd >= 0:
            try:
                content = os.pread(self._fd, size, address)
            except OSError:
                content = b""
            if len(content) == size:
                return content
        content = self.read_partial(address, size)
        if len(content) != size:
            raise UnreadableError(self.pid, address, size)
        return content

    def read_partial(self, address: int, size: int) -> bytes:
        """Read up to ``size`` bytes from ``address``, as far as the first byte that is not readable.

        Raises ``UnreadableError`` only for a size outside 0..``MAX_READ``.
        """
        if not 0 <= size <= MAX_READ:
            raise UnreadableError(self.pid, address, size)
        content = bytearray()
        while len(content) < size:
            part = self._pread(size - len(content), address + len(content))
            if not part:
                break
            content += part
        return bytes(content)

    def read_into(self, buffer: memoryview, address: int) -> int:
        """Fill the buffer from ``address``, up to the first byte that is not readable; returns the count."""
        count = 0
        while count < len(buffer):
            try:
                part = os.preadv(self._fd, [buffer[count:]], address + count)
            except (OSError, OverflowError):
                break
            if not part:
                break
            count += part
        return count

    def _pread(self, size: int, address: int) -> bytes:
        # A forged pointer may exceed the range of file offsets, where there is no user memory.
        if self._fd < 0 or not 0 <= address < _ADDRESS_LIMIT - size:
            return b""
        try:
            return os.pread(self._fd, size, address)
        except OSError:
            return b""


def _open(pid: int, tid: int) -> int:
    fd = os.open(f"{task_dir(pid, tid)}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Older kernels open the memory of a task that has none, and each read then returns nothing.
        require_address_space(pid, tid)
    except OSError:
        os.close(fd)
        raise
    return fd
