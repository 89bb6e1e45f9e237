# SPDX-License-Identifier: Apache-2.0
"""The memory and the mapped files of real processes, read while they run and change."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import sys
from pathlib import Path

import pytest
from process_helpers import compiled, running

from ebpftrace.model import Vma
from ebpftrace.procfs.files import CannotOpen, file_key, open_mapped_file
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.memory import Memory, UnreadableError

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
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    end = start + (1 << 16)
    with Memory(os.getpid()) as memory:
        assert memory.read(end - 10, 10) == b"0123456789"
        assert memory.read_partial(0, 4096) == b""
        for size in (-1, 1 << 40):
            with pytest.raises(UnreadableError):
                memory.read(start, size)
        for address in (0, -8, (1 << 63) - 4, 1 << 63, 1 << 64):
            with pytest.raises(UnreadableError):
                memory.read(address, 8)
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


def mapping_of(pid: int, name: Path) -> Vma:
    wanted = str(name).replace("\n", "\\012")
    return next(vma for vma in read_maps(pid) if vma.path.startswith(wanted))


def content(fd: int) -> bytes:
    assert stat.S_ISREG(os.fstat(fd).st_mode)
    assert not os.get_inheritable(fd)
    with os.fdopen(fd, "rb") as file:
        return file.read()
