# SPDX-License-Identifier: Apache-2.0
"""Processes by name and by cgroup."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ebpftrace.errors import CannotTrace
from ebpftrace.procfs import choose

ID = "3f2a" * 16


@contextmanager
def sleeping(program: Path, *, argv0: str = "") -> Iterator[int]:
    """A copy of cat that waits for its input."""
    with subprocess.Popen(
        [argv0 or str(program)],
        executable=str(program),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"x\n"  # it has executed its program
        try:
            yield process.pid
        finally:
            process.kill()


def copied(directory: Path, name: str) -> Path:
    program = directory / name
    shutil.copy(shutil.which("cat") or "/bin/cat", program)
    return program


def test_all_that_match_are_found_by_name(tmp_path: Path) -> None:
    name = f"srv{os.getpid()}"
    program = copied(tmp_path, name)
    with sleeping(program) as first, sleeping(program) as second:
        assert choose.processes_named(name) == sorted([first, second])
        program.unlink()  # an update: /proc/PID/exe says "(deleted)"
        assert choose.processes_named(name) == sorted([first, second])


def test_names_that_the_kernel_cuts_are_reported_apart(tmp_path: Path) -> None:
    name = f"a-rather-long-name-{os.getpid()}"
    with sleeping(copied(tmp_path, name)) as pid, sleeping(copied(tmp_path, f"{name}-other")):
        assert choose.processes_named(name) == [pid]


def test_first_argument_names_too(tmp_path: Path) -> None:
    name = f"arg{os.getpid()}"
    with sleeping(copied(tmp_path, "box"), argv0=f"/usr/bin/{name}") as pid:
        assert choose.processes_named(name) == [pid]


def test_zombies_and_this_process_are_left_out(tmp_path: Path) -> None:
    program = copied(tmp_path, f"dead{os.getpid()}")
    with subprocess.Popen([str(program)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(CannotTrace, match="no process is named dead"):
            choose.processes_named(program.name)
    own = Path("/proc/self/comm").read_text().rstrip("\n")
    with suppress(CannotTrace):
        assert os.getpid() not in choose.processes_named(own)


@pytest.mark.parametrize(
    ("path", "wanted", "inside"),
    [
        ("/system.slice/nginx.service", "/system.slice/nginx.service", True),
        ("/system.slice/nginx.service/worker", "/system.slice/nginx.service/", True),
        ("/system.slice/nginx.service2", "/system.slice/nginx.service", False),
        ("/system.slice/nginx.service", "nginx.service", True),
        ("/system.slice/nginx.service", "nginx", False),
        (f"/docker/{ID}", ID[:12], True),
        (f"/system.slice/docker-{ID}.scope", ID, True),
        (f"/kubepods.slice/pod7.slice/cri-containerd-{ID}.scope", ID[:12], True),
        (f"/kubepods/besteffort/pod7/cri-o:{ID}", ID[:20], True),
        (f"/docker/{ID}", ID[:11], False),
        (f"/docker/{ID}", ID[1:20], False),
        ("/", "/", True),
        ("/a", "/", True),
    ],
)
def test_a_cgroup_is_meant_by_path_unit_or_container(path: str, wanted: str, inside: bool) -> None:
    assert choose.is_in_cgroup(path, wanted) is inside


def test_directory_of_a_cgroup_holds_those_below_it(tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    with sleeping(copied(tmp_path, "one")) as one, sleeping(copied(tmp_path, "two")) as two:
        (tmp_path / "cgroup.procs").write_text(f"{one}\n0\n")
        (below / "cgroup.procs").write_text(f"{two}\n4194305\n")
        assert choose.processes_in_cgroup(str(tmp_path)) == sorted([one, two])


def test_own_cgroup_holds_our_children(tmp_path: Path) -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = max((line.split(":", 2)[2] for line in lines), key=len)
    with sleeping(copied(tmp_path, "child")) as pid:
        assert pid in choose.processes_in_cgroup(path)


@pytest.mark.parametrize("cgroup", ["/no/such/cgroup", "no-such.service", "0" * 12, "\x1b[31m"])
def test_a_cgroup_without_processes_is_one_line(cgroup: str) -> None:
    with pytest.raises(CannotTrace, match="no process is in a cgroup") as raised:
        choose.processes_in_cgroup(cgroup)
    assert str(raised.value).isprintable()
