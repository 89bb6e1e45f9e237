# SPDX-License-Identifier: Apache-2.0
"""glibc's lists of thread stacks, read from a running process.

A joinable thread that has exited stays on glibc's list of stacks in use until it is joined
(glibc ``nptl/allocatestack.c``, ``nptl/nptl-stack.c``).  So the list proves that a thread was not
joined, even if it exited long before the list was read.  The process is neither stopped nor
written to.
"""

from __future__ import annotations

from ebpftrace.nptl.reading import read_thread_lists

__all__ = ["read_thread_lists"]
