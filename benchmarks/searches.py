# SPDX-License-Identifier: Apache-2.0
"""What a search for handles and pointers costs, and what it costs the process that is searched."""

from __future__ import annotations

import contextlib
import json
import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import Searched
from benchmarks.tools import ROOT, CannotRun
from ebpftrace import own_process
from ebpftrace.model import Interval, ReadState, Suspect, ThreadLists
from ebpftrace.search import search

_SECONDS = 1.0
_PROGRAM = """
import mmap, struct, sys
size, work, counter = int(sys.argv[1]) << 20, sys.argv[2] == "works", open(sys.argv[3], "r+b")
counted = mmap.mmap(counter.fileno(), 8)
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
page = b"".join(struct.pack("<4Q", 0x7f1200000000 + 64 * at, at, 1 << 62 | at * at, 0) for at in range(128))
for at in range(0, size, len(page)): memory[at : at + len(page)] = page
print("ready", flush=True)
done = 0
while work:
    for at in range(0, size // 20, 4096 * 16):
        memory[at : at + 8] = struct.pack("<Q", done)
        done += 1
    counted[:] = struct.pack("<Q", done)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Case:
    """A process to be searched: so much memory, so many suspects; it works all the time, or waits."""

    mib: int
    suspects: int
    works: bool


CASES = (
    Case(16, 100, False),
    Case(1024, 100, False),
    Case(1024, 100_000, False),
    Case(16, 100, True),
    Case(1024, 100, True),
)


def measure(case: Case, rounds: int) -> Searched:
    """Search that often for suspects that nothing refers to, and keep the cheapest in CPU time.

    Raises CannotRun, OSError, CalledProcessError.
    """
    with tempfile.NamedTemporaryFile() as counter:
        counter.truncate(8)
        with _process(case, Path(counter.name)) as pid, mmap.mmap(counter.fileno(), 8) as counted:
            return min((_search(pid, case, counted) for _ in range(rounds)), key=lambda one: one.cpu_seconds)


@contextlib.contextmanager
def _process(case: Case, counter: Path) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", _PROGRAM, str(case.mib), "works" if case.works else "waits", counter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise CannotRun(f"{case.mib} MiB could not be filled")
        yield process.pid
    finally:
        process.kill()
        process.wait()


def _search(pid: int, case: Case, counted: mmap.mmap) -> Searched:
    pace = _pace(counted, _SECONDS)
    before, began = _count(counted), time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.searches", str(pid), str(case.suspects)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    during = (_count(counted) - before) / (time.monotonic() - began)
    seconds, cpu_seconds, passes, size, most = json.loads(result)
    return Searched(
        resident_bytes=size,
        suspects=case.suspects,
        works=case.works,
        passes=passes,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        most_bytes=most,
        slowdown=pace / during if case.works and during else None,
    )


def _pace(counted: mmap.mmap, seconds: float) -> float:
    before = _count(counted)
    time.sleep(seconds)
    return (_count(counted) - before) / seconds


def _count(counted: mmap.mmap) -> int:
    return int.from_bytes(counted[:8], sys.byteorder)


def _search_once(pid: int, count: int) -> None:
    """In a process of its own: its memory is what is measured, too."""
    places = [0x7E0000000000 + at * (10 << 20) for at in range(count)]
    suspects = [Suspect((Interval(at, at + (8 << 20)),), at + (8 << 20) - 2368) for at in places]
    began = time.monotonic()
    found = search(pid, suspects, ThreadLists(ReadState.ABSENT))
    seconds = time.monotonic() - began
    most = _most_bytes()
    print(json.dumps([seconds, found.cpu_seconds, found.searches, found.bytes_searched, most]))


def _most_bytes() -> int:
    """How much memory this process had at most; ``ru_maxrss`` has the parent's maximum from before exec."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10


if __name__ == "__main__":
    # As the program does: numpy then starts no threads that spin.
    own_process.claim()
    _search_once(int(sys.argv[1]), int(sys.argv[2]))
