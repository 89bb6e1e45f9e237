# SPDX-License-Identifier: Apache-2.0
"""What /proc tells of real processes, each with one hazard, and of processes that go away."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Callable

import pytest
from process_helpers import compiled, gone, kernel_thread, running

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.procfs.access import ProcessGone
from ebpftrace.procfs.files import open_mapped_file
from ebpftrace.procfs.maps import read_maps, read_smaps
from ebpftrace.procfs.memory import Memory
from ebpftrace.procfs.namespaces import own_pid_namespace
from ebpftrace.procfs.sharing import same_address_space
from ebpftrace.procfs.status import (
    read_exe,
    read_memory_use,
    read_target_info,
)
from ebpftrace.procfs.target import open_target
from ebpftrace.procfs.tasks import list_tasks

ROOT = Path(__file__).resolve().parents[2]
STRANGE_NAME = b"a) Z\n(\x1b[3m\xff"

LEADER_EXITS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static char stack[65536] __attribute__((aligned(16)));
static char secret[] = "a secret";

static int sharer(void *unused) { for (;;) pause(); }

static int leader_is_zombie(void)
{
    char text[512] = "";
    int fd = open("/proc/self/stat", O_RDONLY);
    ssize_t length = read(fd, text, sizeof(text) - 1);
    close(fd);
    return length > 0 && strstr(text, ") Z ") != NULL;
}

static void *outlive(void *unused)
{
    prctl(PR_SET_NAME, "a) Z\n(\x1b[3m\xff");
    while (!leader_is_zombie())
        sched_yield();
    int child = clone(sharer, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
    dprintf(1, "%d %lu\n", child, (unsigned long)secret);
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    kill(child, SIGKILL);
    _exit(0);
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, outlive, NULL);
    pthread_exit(NULL);
}
"""


@pytest.fixture
def outlived(tmp_path: Path) -> Iterator[tuple[int, int, int]]:
    """PID of a process whose leader has exited; of a CLONE_VM child of it; address of a text in it."""
    with running(compiled(tmp_path, LEADER_EXITS)) as (process, line):
        child, address = line.split()
        try:
            yield process.pid, int(child), int(address)
        finally:
            with suppress(ProcessLookupError):  # nobody's child once its parent is killed
                os.kill(int(child), signal.SIGKILL)


def test_a_process_whose_leader_has_exited_is_read_through_a_live_thread(
    outlived: tuple[int, int, int],
) -> None:
    pid, _, address = outlived
    assert Path(f"/proc/{pid}/maps").read_text() == ""
    assert any(vma.start <= address < vma.end and vma.perms == "rw-p" for vma in read_maps(pid))
    assert sum(vma.rss or 0 for vma in read_smaps(pid)) > 0
    assert sum(vma.size for vma in read_maps(pid) if vma.path != "[vsyscall]") == read_memory_use(pid).virt
    assert read_exe(pid).endswith("/target")
    with Memory(pid) as memory:
        assert memory.read(address, 9) == b"a secret\0"
    leader, worker = list_tasks(pid)
    assert leader.exited
    assert not worker.exited
    assert worker.name.encode("utf-8", "surrogateescape") == STRANGE_NAME
    assert read_target_info(pid).threads == 1
    library = next(vma for vma in read_maps(pid) if vma.inode)
    os.close(open_mapped_file(pid, library))


def test_the_target_has_exited_when_its_last_thread_has(outlived: tuple[int, int, int]) -> None:
    pid, _, _ = outlived
    with open_target(pid) as target:
        assert not target.exited
        assert target.id.tid == pid
        os.kill(pid, signal.SIGKILL)
        assert target.wait(60)
        assert target.exited
        with pytest.raises(ProcessGone):
            read_maps(pid)


def test_other_thread_groups_in_the_address_space_are_found(outlived: tuple[int, int, int]) -> None:
    pid, child, _ = outlived
    assert same_address_space(pid).tgids == (pid, child)
    assert same_address_space(child).tgids == (child, pid)
    assert same_address_space(os.getpid()).tgids == (os.getpid(),)


def test_a_thread_is_not_a_process() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(CannotTrace) as refusal:
            open_target(thread.native_id or 0)
    finally:
        stop.set()
        thread.join()
    assert refusal.value.what == f"{thread.native_id} is a thread of process {os.getpid()}, not a process"
    assert refusal.value.remedy == f"use -p {os.getpid()}"


def test_a_kernel_thread_is_refused() -> None:
    with pytest.raises(CannotTrace, match="2 is a kernel thread"):
        open_target(kernel_thread())


def test_a_zombie_is_refused_and_everything_else_says_that_it_has_exited() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(CannotTrace, match=f"zombie: it has exited, its parent {os.getpid()} has not waited"):
        open_target(process.pid)
    with pytest.raises(ProcessGone):
        read_maps(process.pid)
    assert list_tasks(process.pid)[0].exited
    process.wait()


@pytest.mark.parametrize(("machine", "words"), [(3, "runs a 32-bit program"), (62, "runs an x32 program")])
def test_a_32_bit_program_is_refused(tmp_path: Path, machine: int, words: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf32_that_pauses(machine))
    program.chmod(0o755)
    try:
        process = subprocess.Popen([program])
    except OSError:
        pytest.skip("this kernel does not run such programs")
    with process:
        try:
            with pytest.raises(CannotTrace, match=words):
                open_target(process.pid)
        finally:
            process.kill()


def test_another_users_process_is_refused_without_root() -> None:
    assert said_as_nobody(lambda: open_target(os.getppid())).startswith("not permitted to read")


def test_processes_that_cannot_be_compared_are_counted_and_the_reason_said() -> None:
    def read() -> None:
        sharers = same_address_space(os.getpid())
        raise AssertionError(f"{sharers.tgids == (os.getpid(),)} {sharers.unchecked > 0} {sharers.why}")

    assert said_as_nobody(read) == "True True kcmp: Operation not permitted"


def test_a_pid_namespace_of_our_own_is_reported_from_the_hosts() -> None:
    program = "from ebpftrace.procfs.namespaces import *; print(own_pid_namespace().initial)"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    inside = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert inside.stdout == "False\n"
    assert f"pid:[{own_pid_namespace().inode}]" == os.readlink("/proc/self/ns/pid")  # noqa: PTH115


READERS: list[Callable[[int], object]] = [
    read_maps,
    read_smaps,
    list_tasks,
    same_address_space,
    read_memory_use,
    read_exe,
    read_target_info,
    lambda pid: Memory(pid).close(),
    lambda pid: open_target(pid).close(),
    lambda pid: os.close(open_mapped_file(pid, Vma(4096, 8192, "r-xp", 0, "fe:00", 7, "/usr/lib/nowhere"))),
]


@pytest.mark.parametrize("read", READERS)
def test_a_process_that_is_gone_is_said_to_be_gone(read: Callable[[int], object]) -> None:
    with gone() as pid, pytest.raises(CannotTrace, match=r"has exited|there is no process"):
        read(pid)


def test_processes_that_vanish_at_any_moment_never_cost_more_than_one_clear_line(tmp_path: Path) -> None:
    program = compiled(
        tmp_path, "#include <unistd.h>\nint main(int n, char **v) { usleep(atoi(v[1])); return 0; }"
    )
    before = descriptors()
    for turn in range(120):
        process = subprocess.Popen([program, str(turn * 40)])
        deadline = time.monotonic() + 1
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(CannotTrace):
                READERS[turn % len(READERS)](process.pid)
        process.wait()
    assert descriptors() <= before


def descriptors() -> set[tuple[str, str]]:
    """Our open files, by number and name: what tests before this one left may be closed at any time."""
    found = set()
    for place in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this very directory
            found.add((place.name, str(place.readlink())))
    return found


def elf32_that_pauses(machine: int) -> bytes:
    """The smallest program of ELF class 32: pause(2) for ever, as i386 or as x32."""
    base = 0x10000
    wait = b"\xb8\x1d\0\0\0\xcd\x80" if machine == 3 else b"\xb8\x22\0\0\x40\x0f\x05"
    code = wait + b"\xeb" + struct.pack("b", -len(wait) - 2)
    size = 52 + 32 + len(code)
    header = struct.pack(
        "<4s12B HHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, *[0] * 9,
        2, machine, 1, base + 84, 52, 0, 0, 52, 32, 1, 0, 0, 0,
    )  # fmt: skip
    return header + struct.pack("<8I", 1, 0, base, base, size, size, 5, 4096) + code


def said_as_nobody(read: Callable[[], object]) -> str:
    """What a look raises in a child process without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            read()
        except BaseException as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text
