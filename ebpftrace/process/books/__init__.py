# SPDX-License-Identifier: Apache-2.0
"""glibc's own books: its lists of thread stacks, read from a running process.

A joinable thread that exited stays on glibc's list of stacks in use until somebody joins it
(glibc ``nptl/allocatestack.c``, ``nptl/nptl-stack.c``).  The list is therefore proof that a
thread was never joined, also for threads that exited long before anyone looked.  The process is
neither stopped nor written to.
"""

from __future__ import annotations

from ebpftrace.process.books.lists import Readable
from ebpftrace.process.books.reading import read_books

__all__ = ["Readable", "read_books"]
