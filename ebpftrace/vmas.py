# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process; a leak may have made a hundred thousand that differ only in their address."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import le, lt
from typing import Union, overload

from ebpftrace.model import Vma

HEAP = "[heap]"
"""The kernel's name for memory that brk(2) made (fs/proc/task_mmu.c)."""
STACK = "[stack]"
KERNELS_OWN = ("[vvar", "[vdso]", "[vsyscall]", "[uprobes]", "[vectors]", "[sigpage]")
MEMORY_FILES = ("/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "/anon_hugepage", "/dev/hugepages/")
"""How the kernel's names of shared memory begin (mm/shmem.c, ipc/shm.c, fs/hugetlbfs/inode.c).

An ordinary file may have such a name too, which does no harm.
"""
UNSIZED = ("/SYSV", "/[aio]")
"""How the kernel's names of what shmat and io_setup map begin (ipc/shm.c, fs/aio.c): they are given no size,
and neither are shmdt and io_destroy.
"""
RINGS = ("anon_inode:[io_uring]", "/[aio]")
"""Rings that the kernel shares with the process (io_uring/memmap.c, fs/aio.c)."""


_new: Callable[[type[Vma], tuple[object, ...]], Vma] = tuple.__new__
"""``Vma._make`` without the check of the length, which takes as long as the rest."""


class Vmas(Sequence[Vma]):
    """Ascending, disjoint mappings, in a sixth of the memory that a list of ``Vma`` takes.

    For fast iteration, ``starts[i]`` and ``ends[i]`` are the addresses of mapping i, and ``kinds[i]`` has its
    other attributes.  A ``Vma`` in ``kinds`` is shared by mappings with equal attributes, so its own
    ``start`` and ``end`` are meaningless.
    """

    def __init__(self, vmas: Iterable[Vma] = ()) -> None:
        """``vmas`` are ascending, as in ``add``."""
        self.starts = array("Q")
        self.ends = array("Q")
        self.kinds: list[Vma] = []
        for vma in vmas:
            self.add(vma.start, vma.end, vma)

    def add(self, start: int, end: int, kind: Vma) -> None:
        """Add a mapping, without any part of it that is below the end of the last one.

        Such a part was listed already: the kernel continues a reading at the end of the last mapping, and if
        the next one has merged with it meanwhile, it prints the merged mapping whole.
        """
        if self.ends and start < self.ends[-1]:
            if kind.inode:
                kind = kind._replace(offset=kind.offset + self.ends[-1] - start)
            start = self.ends[-1]
        if start < end:
            self.starts.append(start)
            self.ends.append(end)
            self.kinds.append(kind)

    def extend(self, starts: Sequence[int], ends: Sequence[int], kinds: Sequence[Vma]) -> None:
        """Add mappings as ``add`` does, at once where none of them overlaps another."""
        if (
            starts
            and (not self.ends or self.ends[-1] <= starts[0])
            and all(map(lt, starts, ends))
            and all(map(le, ends, starts[1:]))
        ):
            self.starts.extend(starts)
            self.ends.extend(ends)
            self.kinds.extend(kinds)
            return
        for start, end, kind in zip(starts, ends, kinds):
            self.add(start, end, kind)

    def __len__(self) -> int:
        return len(self.kinds)

    @overload
    def __getitem__(self, index: int) -> Vma: ...

    @overload
    def __getitem__(self, index: slice) -> list[Vma]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Vma, list[Vma]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self.kinds[index]._replace(start=self.starts[index], end=self.ends[index])

    def __iter__(self) -> Iterator[Vma]:
        for start, end, kind in zip(self.starts, self.ends, self.kinds):
            yield _new(Vma, (start, end, *kind[2:]))
