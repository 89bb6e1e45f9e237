# SPDX-License-Identifier: Apache-2.0
"""How much of the kernel's memory the tables take, whatever the machine allows its processes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness import ROOT, Target, run_tracer

from ebpftrace.capture import loader
from ebpftrace.capture.sizing import kernel_bytes
from ebpftrace.procfs.hostmemory import memory_limit
from ebpftrace.sessions import tracing
from ebpftrace.sessions.tracing import begin_loading

MAX_BYTES = 32 << 20
MEMORY = Path("/sys/fs/cgroup/memory")
"""Version 1; or the unified tree, one above."""


def charged_bytes() -> int:
    """What the kernel says that the BPF maps of this process take."""
    total = 0
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if "map_type" in lines:
            total += int(lines["memlock"])
    return total


@pytest.mark.parametrize("preallocated", [False, True])
@pytest.mark.parametrize("limit", [65_530, 1_048_576, 2_147_483_642])
@pytest.mark.parametrize("processes", [1, 10])
def test_a_small_target_takes_little_at_any_limit(
    processes: int, limit: int, preallocated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loader.this_machine
    monkeypatch.setattr(tracing, "max_map_count", lambda: limit)
    monkeypatch.setattr(loader, "this_machine", lambda: (real()[0], preallocated))
    before = charged_bytes()
    with begin_loading([os.getpid()] * processes) as loading:
        loading.wait()
        charged = charged_bytes() - before
        machine = real()[0]
        reported = kernel_bytes(loading.sizes, preallocated, machine.cpus, machine.page, platform.machine())
    assert charged <= MAX_BYTES
    assert abs(reported - charged) <= charged / 10


def test_the_programs_are_accepted_for_pages_of_64_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an arm64 kernel may have them: compiled, and checked by this kernel's verifier."""
    real = loader.this_machine
    monkeypatch.setattr(loader, "this_machine", lambda: (replace(real()[0], page=64 << 10), real()[1]))
    with begin_loading([os.getpid()]) as loading:
        loading.wait()


@contextmanager
def limited(megabytes: int) -> Iterator[Path]:
    """A control group with so much memory; ``echo $$ > cgroup.procs`` enters it."""
    place, name = (MEMORY, "memory.limit_in_bytes") if MEMORY.is_dir() else (MEMORY.parent, "memory.max")
    group = place / f"ebpftrace-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(megabytes << 20))
    except OSError as error:
        pytest.skip(f"no memory control group can be made: {error}")
    try:
        yield group
    finally:
        group.rmdir()


def run_in(group: Path, target: Target) -> subprocess.CompletedProcess[str]:
    tracer = [sys.executable, "-m", "ebpftrace", "mmap-leaks", "-p", str(target.pid), "-d", "1", "--json"]
    return subprocess.run(
        ["sh", "-c", 'echo $$ > "$0"/cgroup.procs && exec "$@"', group, *tracer],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip


def test_a_control_group_of_128_mib_is_enough() -> None:
    with limited(128) as group, Target("orphans", "kept", 3) as target:
        ended = run_in(group, target)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("{")


@pytest.mark.parametrize("megabytes", [32, 64, 96])
def test_a_smaller_one_gets_one_true_line(megabytes: int) -> None:
    with limited(megabytes) as group, Target("orphans", "kept", 3) as target:
        ended = run_in(group, target)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert f"of its {megabytes}.0 MiB" in line
    assert "--max-mappings" in line


def test_what_is_left_is_read() -> None:
    limit = memory_limit()
    assert limit is None or 0 <= limit.left <= limit.limit


def test_room_for_one_mapping_is_still_a_room() -> None:
    with Target("orphans", "kept", 3) as target:
        assert run_tracer("-p", target.pid, "-d", 1, "--max-mappings", 1).status == 0
