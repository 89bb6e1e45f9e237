# SPDX-License-Identifier: Apache-2.0
"""Reading the memory of a running target: /proc/PID/mem, never ptrace.

Why not process_vm_readv(2): it waits where a page belongs to a userfaultfd of the target, so a
target could hang the tracer, and after an exec it reads the new program at the old addresses.
An open /proc/PID/mem fails in both cases (kernel fs/proc/base.c, mem_rw; fs/userfaultfd.c).
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.process.procfs import require_address_space, task_dir, through_live_task

MAX_READ = 64 << 20
"""Most bytes of one read: what a target says of sizes is not to be believed."""

_ADDRESS_LIMIT = 1 << 63


class UnreadableError(CannotTrace, OSError):
    """Memory of the target could not be read: not mapped, no backing, or the target is gone.

    An ``OSError`` too, so that readers of memory need not know whose memory it is.
    """

    def __init__(self, pid: int, address: int, size: int) -> None:
        super().__init__(f"cannot read {size} bytes at {address:#x} in process {pid}")
        self.address = address
        self.size = size


class Memory:
    """The address space that a process has now; a later exec of the process leaves it empty.

    Opening raises ``ProcessGone`` or ``CannotTrace``.  Each read sees one page at one moment at best: the
    target keeps running.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = through_live_task(pid, "memory", lambda tid: _open(pid, tid))

    def __enter__(self) -> Memory:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the address space; reads fail from now on.  May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes (at most ``MAX_READ``) from ``address``; raises ``UnreadableError``."""
        content = self._pread(size, address) if 0 < size <= MAX_READ else b""
        if len(content) == size:
            return content
        content = self.read_partial(address, size)
        if len(content) != size:
            raise UnreadableError(self.pid, address, size)
        return content

    def read_partial(self, address: int, size: int) -> bytes:
        """What can be read of ``size`` bytes from ``address`` up to the first byte that cannot.

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
        """Fill the buffer from ``address`` on, up to the first byte that cannot be read; how many were."""
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
        # A forged pointer may be past what an offset can hold, where no user memory is.
        if self._fd < 0 or not 0 <= address < _ADDRESS_LIMIT - size:
            return b""
        try:
            return os.pread(self._fd, size, address)
        except OSError:
            return b""


def _open(pid: int, tid: int) -> int:
    fd = os.open(f"{task_dir(pid, tid)}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Older kernels open the memory of a task that has none, and let each read find nothing.
        require_address_space(pid, tid)
    except OSError:
        os.close(fd)
        raise
    return fd
