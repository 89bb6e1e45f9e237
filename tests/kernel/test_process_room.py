"""What /proc tells of real processes, each with one hazard, and of processes that go away."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable

import pytest

from ebpftrace.errors import CannotTrace
from ebpftrace.model import Vma
from ebpftrace.process.files import CannotOpen, file_key, open_mapped_file
from ebpftrace.process.maps import read_maps, read_smaps
from ebpftrace.process.memory import Memory, UnreadableError
from ebpftrace.process.procfs import ProcessGone
from ebpftrace.process.sharing import same_address_space
from ebpftrace.process.status import (
    read_exe,
    read_memory_use,
    read_target_info,
    stack_limit,
    uptime_ns,
)
from ebpftrace.process.target import open_target
from ebpftrace.process.tasks import list_tasks

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

MISSING_PAGE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = {
        .range = {.start = (unsigned long)page, .len = 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int ready = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 && ioctl(fd, UFFDIO_REGISTER, &area) == 0;
    dprintf(1, "%lu\n", ready ? (unsigned long)page : 0);
    while (read(0, api.ioctls ? (char *)&api : NULL, 1) > 0)
        ;
}
"""

MAPS_A_FILE = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def running(*command: object) -> Iterator[tuple[subprocess.Popen[bytes], bytes]]:
    """A program and its first line; it ends when its stdin is closed."""
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield process, process.stdout.readline()
        finally:
            process.kill()


def compiled(directory: Path, source: str) -> Path:
    (directory / "target.c").write_text(source)
    subprocess.run(["gcc", "-w", "-O1", "-pthread", "-o", "target", "target.c"], cwd=directory, check=True)
    return directory / "target"


@pytest.fixture
def outlived(tmp_path: Path) -> Iterator[tuple[int, int, int]]:
    """PID of a process whose leader has exited; of a CLONE_VM child of it; address of a text in it."""
    with running(compiled(tmp_path, LEADER_EXITS)) as (process, line):
        child, address = line.split()
        yield process.pid, int(child), int(address)


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
        assert memory.cstring(address) == b"a secret"
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
        open_target(2)


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


def test_deleted_replaced_and_renamed_files_are_opened_as_they_were_mapped(tmp_path: Path) -> None:
    name = tmp_path / "a\nb (deleted)"
    name.write_bytes(b"what was mapped")
    with running(sys.executable, "-c", MAPS_A_FILE, name) as (process, _):
        vma = mapping_of(process.pid, name)
        assert vma.path == str(name).replace("\n", "\\012")
        assert content(open_mapped_file(process.pid, vma)) == b"what was mapped"
        name.rename(tmp_path / "elsewhere")
        name.write_bytes(b"an impostor")
        assert content(open_mapped_file(process.pid, vma)) == b"what was mapped"
        (tmp_path / "elsewhere").unlink()
        gone = mapping_of(process.pid, tmp_path / "elsewhere")
        assert gone.path.endswith("elsewhere (deleted)")
        assert content(open_mapped_file(process.pid, gone)) == b"what was mapped"
        assert file_key(gone)[:2] == file_key(vma)[:2]


def test_without_the_exact_range_a_file_is_found_by_name_and_checked(tmp_path: Path) -> None:
    name = tmp_path / "a\nb"
    name.write_bytes(b"x" * (1 << 16))
    with running(sys.executable, "-c", MAPS_A_FILE, name) as (process, _):
        part = mapping_of(process.pid, name)
        part = Vma(part.start, part.start + 4096, part.perms, 0, part.device, part.inode, part.path)
        assert content(open_mapped_file(process.pid, part)) == b"x" * (1 << 16)
        name.unlink()
        name.write_bytes(b"an impostor")
        with pytest.raises(CannotOpen):
            open_mapped_file(process.pid, part)


def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo\x1b[2J"
    os.mkfifo(fifo)
    status = fifo.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    with pytest.raises(CannotOpen) as refusal:
        open_mapped_file(os.getpid(), Vma(4096, 8192, "r--p", 0, device, status.st_ino, str(fifo)))
    assert "\x1b" not in str(refusal.value)
    with pytest.raises(CannotOpen):
        open_mapped_file(os.getpid(), Vma(4096, 8192, "r--p", 0, "00:00", 0, ""))


def test_memory_is_read_up_to_where_it_ends() -> None:
    area = mmap.mmap(-1, 1 << 16)
    area[-10:] = b"0123456789"
    start = next(vma for vma in read_maps(os.getpid()) if vma.size == 1 << 16 and "zero" in vma.path).start
    end = start + (1 << 16)
    with Memory(os.getpid()) as memory:
        assert memory.read(end - 10, 10) == b"0123456789"
        assert memory.u32(end - 10) == int.from_bytes(b"0123", sys.byteorder)
        assert memory.u64(end - 10) == int.from_bytes(b"01234567", sys.byteorder)
        assert memory.read_partial(0, 4096) == b""
        for size in (-1, 1 << 40):
            with pytest.raises(UnreadableError):
                memory.read(start, size)
        for address in (0, -8, (1 << 63) - 4, 1 << 63, 1 << 64):
            with pytest.raises(UnreadableError):
                memory.u64(address)
        with pytest.raises(UnreadableError):
            memory.cstring(start + 65526, limit=4)
    with pytest.raises(UnreadableError):
        memory.read(start, 1)


def test_a_page_that_a_target_never_delivers_does_not_hang_the_reader(tmp_path: Path) -> None:
    with running(compiled(tmp_path, MISSING_PAGE)) as (process, line):
        if line.strip() == b"0":
            pytest.skip("this kernel has no userfaultfd")
        with Memory(process.pid) as memory, pytest.raises(UnreadableError):
            memory.read(int(line), 8)


def test_an_exec_leaves_the_memory_that_was_opened_empty() -> None:
    program = "import os; print(1, flush=True); os.read(0, 1); os.execv('/bin/cat', ['cat'])"
    with running(sys.executable, "-c", program) as (process, _):
        address = read_maps(process.pid)[0].start
        assert process.stdin is not None
        assert process.stdout is not None
        with Memory(process.pid) as memory:
            assert memory.read(address, 4) == b"\x7fELF"
            process.stdin.write(b".running cat\n")
            process.stdin.flush()
            while process.stdout.readline() != b"running cat\n":
                pass
            with pytest.raises(UnreadableError):
                memory.read(address, 4)


LOOKS: list[Callable[[int], object]] = [
    read_maps,
    read_smaps,
    list_tasks,
    same_address_space,
    read_memory_use,
    read_exe,
    read_target_info,
    uptime_ns,
    stack_limit,
    lambda pid: Memory(pid).close(),
    lambda pid: open_target(pid).close(),
    lambda pid: os.close(open_mapped_file(pid, Vma(4096, 8192, "r-xp", 0, "fe:00", 7, "/usr/lib/nowhere"))),
]


@pytest.mark.parametrize("look", LOOKS)
def test_a_process_that_is_gone_is_said_to_be_gone(look: Callable[[int], object]) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(CannotTrace, match=r"has exited|there is no process"):
        look(process.pid)


def test_processes_that_vanish_at_any_moment_never_cost_more_than_one_clear_line(tmp_path: Path) -> None:
    program = compiled(
        tmp_path, "#include <unistd.h>\nint main(int n, char **v) { usleep(atoi(v[1])); return 0; }"
    )
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for turn in range(120):
        process = subprocess.Popen([program, str(turn * 40)])
        deadline = time.monotonic() + 1
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(CannotTrace):
                LOOKS[turn % len(LOOKS)](process.pid)
        process.wait()
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def mapping_of(pid: int, name: Path) -> Vma:
    wanted = str(name).replace("\n", "\\012")
    return next(vma for vma in read_maps(pid) if vma.path.startswith(wanted))


def content(fd: int) -> bytes:
    assert stat.S_ISREG(os.fstat(fd).st_mode)
    assert not os.get_inheritable(fd)
    with os.fdopen(fd, "rb") as file:
        return file.read()


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


def said_as_nobody(look: Callable[[], object]) -> str:
    """What a look raises in a child process without privileges."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            look()
        except BaseException as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text
