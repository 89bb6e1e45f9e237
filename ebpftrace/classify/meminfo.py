# SPDX-License-Identifier: Apache-2.0
"""The lines of /proc/meminfo that deserve attention: what each means and where to look next.

All thresholds are in one table, ``RULES``.  They are set so that an ordinary host shows no line: a line is
either memory that no process accounts for, or a limit that is near.  The lines are explained in the kernel's
Documentation/filesystems/proc.rst and Documentation/mm/overcommit-accounting.rst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

Meminfo = Mapping[str, int]
"""Figures by their names in /proc/meminfo, in bytes; ``HugePages_*`` are numbers of pages."""

_TOTAL = "MemTotal"


class Rule(NamedTuple):
    """When a figure deserves attention."""

    name: str
    figure: Callable[[Meminfo], Optional[int]]
    """The figure in bytes; None if this kernel does not have it."""
    of: str
    """The line of which the threshold is a share; empty if the threshold is in bytes."""
    above: float
    """The figure is reported above this share or, for ``below`` rules, below it."""
    below: bool
    meaning: str
    next_step: str


class Attention(NamedTuple):
    """A figure that passed its threshold."""

    name: str
    value: int
    share: Optional[float]
    """Its share of ``of``."""
    of: str
    meaning: str
    next_step: str


@dataclass(frozen=True)
class HostMemory:
    """/proc/meminfo, judged."""

    meminfo: Meminfo
    attention: tuple[Attention, ...]
    judged: int
    """Rules that could be judged on this kernel."""


def _line(name: str) -> Callable[[Meminfo], Optional[int]]:
    return lambda meminfo: meminfo.get(name)


def _sum(*names: str) -> Callable[[Meminfo], Optional[int]]:
    return lambda meminfo: sum(meminfo.get(name, 0) for name in names)


def _swap_used(meminfo: Meminfo) -> Optional[int]:
    if not meminfo.get("SwapTotal"):
        return None
    return meminfo["SwapTotal"] - meminfo.get("SwapFree", 0)


def _huge_unused(meminfo: Meminfo) -> Optional[int]:
    free = meminfo.get("HugePages_Free", 0) - meminfo.get("HugePages_Rsvd", 0)
    return max(0, free) * meminfo.get("Hugepagesize", 0)


_ACCOUNTED = (
    "MemFree",
    "Buffers",
    "Cached",
    "SwapCached",
    "AnonPages",
    "Slab",
    "PageTables",
    "SecPageTables",
    "KernelStack",
    "Percpu",
    "Hugetlb",
    "Zswap",
    "Balloon",
    "GPUActive",
)


def _unaccounted(meminfo: Meminfo) -> Optional[int]:
    """Memory that is in no line of meminfo: pages that drivers and the kernel allocated directly.

    Of VmallocUsed, only what exceeds KernelStack is subtracted: it includes the kernel stacks
    (CONFIG_VMAP_STACK).
    """
    if _TOTAL not in meminfo or "AnonPages" not in meminfo:
        return None
    vmalloc = max(0, meminfo.get("VmallocUsed", 0) - meminfo.get("KernelStack", 0))
    used = sum(meminfo.get(name, 0) for name in _ACCOUNTED) + vmalloc
    return max(0, meminfo[_TOTAL] - used)


RULES: Sequence[Rule] = (
    Rule(
        "MemAvailable", _line("MemAvailable"), _TOTAL, 0.10, True,
        "what programs can still get before the host swaps or kills",
        "the processes above, by RSS",
    ),
    Rule(
        "SwapUsed", _swap_used, "SwapTotal", 0.25, False,
        "memory written out to swap: RSS is smaller than what was leaked",
        "ebpftrace maps -p PID (SWAP); grep VmSwap /proc/[0-9]*/status",
    ),
    Rule(
        "Committed_AS", _line("Committed_AS"), "CommitLimit", 1.0, False,
        "memory promised, untouched stacks included; with vm.overcommit_memory=2 mmap fails here",
        "VIRT of the processes above; sysctl vm.overcommit_memory",
    ),
    Rule(
        "SUnreclaim", _line("SUnreclaim"), _TOTAL, 0.05, False,
        "kernel objects that cannot be freed: a leak in a driver, or too many of something",
        "slabtop -s c; /proc/slabinfo",
    ),
    Rule(
        "SReclaimable", _line("SReclaimable"), _TOTAL, 0.30, False,
        "caches of file names and inodes: freed on demand, but many files were touched",
        "slabtop -s c (dentry, inode caches)",
    ),
    Rule(
        "Shmem", _line("Shmem"), _TOTAL, 0.10, False,
        "tmpfs, /dev/shm, memfd, System V segments: outlive the processes that made them",
        "df -t tmpfs; ipcs -m; lsof +L1 /dev/shm",
    ),
    Rule(
        "PageTables", _line("PageTables"), _TOTAL, 0.02, False,
        "page tables: sparse or leaked mappings, or many processes sharing much",
        "grep VmPTE /proc/[0-9]*/status",
    ),
    Rule(
        "KernelStack", _line("KernelStack"), _TOTAL, 0.01, False,
        "stacks of threads in the kernel, about 16 KiB each: too many threads",
        "threads of the processes above; ps -eo pid,nlwp,comm --sort -nlwp",
    ),
    Rule(
        "VmallocUsed", _line("VmallocUsed"), _TOTAL, 0.05, False,
        "memory the kernel and its modules mapped for themselves",
        "/proc/vmallocinfo (root), by caller",
    ),
    Rule(
        "Percpu", _line("Percpu"), _TOTAL, 0.02, False,
        "per-CPU memory: control groups that were removed but linger, BPF maps",
        "nr_dying_descendants in /sys/fs/cgroup/cgroup.stat; bpftool map",
    ),
    Rule(
        "HugePagesUnused", _huge_unused, _TOTAL, 0.02, False,
        "huge pages that are reserved and unused; nothing else can use them",
        "/proc/sys/vm/nr_hugepages; HugePages_* in /proc/meminfo",
    ),
    Rule(
        "Mlocked", _line("Mlocked"), _TOTAL, 0.10, False,
        "memory that programs locked: it is never swapped out",
        "grep VmLck /proc/[0-9]*/status",
    ),
    Rule(
        "DirtyWriteback", _sum("Dirty", "Writeback"), _TOTAL, 0.10, False,
        "file data that waits for the disks",
        "iostat -x; sysctl vm.dirty_ratio",
    ),
    Rule(
        "HardwareCorrupted", _line("HardwareCorrupted"), "", 0.0, False,
        "memory that is broken and was taken out of use",
        "dmesg; mcelog or rasdaemon",
    ),
    Rule(
        "Unaccounted", _unaccounted, _TOTAL, 0.10, False,
        "in no line of meminfo: taken by drivers (graphics, network), zram, a balloon",
        "/proc/allocinfo (Linux 6.10 or later); lsmod; zramctl",
    ),
)  # fmt: skip
"""Every threshold there is."""


def attention(meminfo: Meminfo) -> HostMemory:
    """Judge the figures; those that passed their threshold are in the order of the table."""
    found = []
    judged = 0
    for rule in RULES:
        value = rule.figure(meminfo)
        whole = meminfo.get(rule.of) if rule.of else None
        if value is None or (rule.of and not whole):
            continue
        judged += 1
        share = value / whole if whole else None
        measure = value if share is None else share
        if measure < rule.above if rule.below else measure > rule.above:
            found.append(Attention(rule.name, value, share, rule.of, rule.meaning, rule.next_step))
    return HostMemory(dict(meminfo), tuple(found), judged)
