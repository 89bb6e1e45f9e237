# SPDX-License-Identifier: Apache-2.0
"""Readers of /proc, which contains a target's names, and of the perf map that a target writes.

Not here: numbers that the kernel alone writes (``syscall``, ``statm``, ``limits``, ``fdinfo``), in files
where no byte is the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from ebpftrace.procfs.files import file_key
from ebpftrace.procfs.hostmemory import parse_meminfo
from ebpftrace.procfs.maps import parse_maps, parse_smaps
from ebpftrace.procfs.tasks import parse_stat
from ebpftrace.procfs.tunables import arena_limit, tunable
from ebpftrace.unwind.perfmap import PerfMap
from ebpftrace.vmas import Vmas
from fuzz.reader import Reader

_SEED_BYTES = 4096
_ENVIRONMENT = b"A=1\0GLIBC_TUNABLES=glibc.malloc.arena_max=0x10:glibc.rtld.nns=4\0MALLOC_ARENA_MAX=2\0"
_PERF_MAP = b"7f0000001000 40 LazyCompile:~f /a.js:1\n0x7f0000001020 0x10 py::g:/b.py\n"


def _own(*names: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [Path("/proc/self", name).read_bytes()[:_SEED_BYTES] for name in names]


def _mappings(parse: Callable[[Sequence[bytes]], Vmas]) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        vmas = parse((data,))
        assert list(vmas) == list(parse([data[at : at + 7] for at in range(0, len(data), 7)])), (
            "cut elsewhere"
        )
        edges = [edge for vma in vmas for edge in (vma.start, vma.end)]
        assert edges == sorted(edges), "not ascending and disjoint"
        return [file_key(vma) for vma in vmas]

    return read


def _tunables(data: bytes) -> object:
    return (arena_limit(data), tunable(data, b"glibc.pthread.stack_cache_size")) != (None, None)


def _perf_map(data: bytes) -> object:
    names = PerfMap(data)
    for address in range(0x7F0000001000, 0x7F0000001100, 16):
        found = names.find(address)
        assert found is None or found.start <= address < found.end
    return len(names)


READERS = (
    Reader("maps", _mappings(parse_maps), _own("maps")),
    Reader("smaps", _mappings(parse_smaps), _own("smaps")),
    Reader("stat", lambda data: parse_stat(1, data), _own("stat"), (ValueError,)),
    Reader("environ", _tunables, lambda: [_ENVIRONMENT]),
    Reader("meminfo", parse_meminfo, lambda: [Path("/proc/meminfo").read_bytes()]),
    Reader("perf-map", _perf_map, lambda: [_PERF_MAP]),
)
