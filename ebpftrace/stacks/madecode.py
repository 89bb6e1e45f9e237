# SPDX-License-Identifier: Apache-2.0
"""The code that a JIT compiler made, read from the process while it lives.

No file has it, and how it returns is known only from its bytes (``returns``).  They are read as they are
now, a moment later than the copy of the stack.  Code that has changed since is noticed by what it must have:
a call before each return address.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Optional

from ebpftrace.errors import CannotTrace
from ebpftrace.process.memory import Memory
from ebpftrace.stacks.copies import PAGE
from ebpftrace.stacks.modules import Layout


class MadeCode:
    """Of one process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._memory: Optional[Memory] = None

    def close(self) -> None:
        """Let go of the process."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def page(self, layout: Layout, address: int) -> bytes:
        """The page at ``address``; empty where there is no such code, or it cannot be read any more."""
        place = layout.find(address)
        if place is None or place.file is not None or place.path or address % PAGE:
            return b""
        for _ in range(2):
            with suppress(CannotTrace):
                if self._memory is None:
                    self._memory = Memory(self._pid)
                content = self._memory.read_partial(address, PAGE)
                if len(content) == PAGE:
                    return content
            # An exec leaves the address space that was opened empty.
            self.close()
        return b""
