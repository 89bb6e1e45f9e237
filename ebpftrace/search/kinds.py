# SPDX-License-Identifier: Apache-2.0
"""What kinds of memory there are, by the names that the kernel gives to mappings."""

from __future__ import annotations

STACK = "[stack]"
KERNELS_OWN = ("[vvar", "[vdso]", "[vsyscall]", "[uprobes]", "[vectors]", "[sigpage]")
MEMORY_FILES = ("/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "/anon_hugepage", "/dev/hugepages/")
"""What the kernel calls shared memory (mm/shmem.c, ipc/shm.c, fs/hugetlbfs/inode.c).

Any file may be named so, which does no harm.
"""
RINGS = ("anon_inode:[io_uring]", "/[aio]")
"""Rings that the kernel shares with the process (io_uring/memmap.c, fs/aio.c)."""
