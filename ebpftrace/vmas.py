# SPDX-License-Identifier: Apache-2.0
"""The mappings of a process, of which a leak may have made a hundred thousand that are alike."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Union, overload

from ebpftrace.model import Vma

HEAP = "[heap]"
"""How the kernel calls what brk(2) made (fs/proc/task_mmu.c)."""


class Vmas(Sequence[Vma]):
    """Ascending, disjoint mappings, a sixth as large as a list of them.

    ``starts``, ``ends`` and ``kinds`` are for walking through many: what each is, is told by a ``Vma``
    that may be of another one, and like it but for the addresses.
    """

    def __init__(self, vmas: Iterable[Vma] = ()) -> None:
        """``vmas`` as ``add`` wants them, one after the other."""
        self.starts = array("Q")
        self.ends = array("Q")
        self.kinds: list[Vma] = []
        for vma in vmas:
            self.add(vma.start, vma.end, vma)

    def add(self, start: int, end: int, kind: Vma) -> None:
        """Add what of a mapping lies above all others.

        The kernel lists by ends: what merges with its lower neighbour meanwhile is listed whole, although
        part of it was before.
        """
        if self.ends and start < self.ends[-1]:
            if kind.inode:
                kind = kind._replace(offset=kind.offset + self.ends[-1] - start)
            start = self.ends[-1]
        if start < end:
            self.starts.append(start)
            self.ends.append(end)
            self.kinds.append(kind)

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
            yield Vma._make((start, end, *kind[2:]))
