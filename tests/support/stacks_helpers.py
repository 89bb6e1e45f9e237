# SPDX-License-Identifier: Apache-2.0
"""Exact copies of registers and stack at system calls, made with ptrace: in tests only.

The tool itself copies in eBPF; ptrace gives the same words (``struct user_regs_struct`` begins like
``struct pt_regs``) at a moment that a test can choose.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebpftrace.model import Stack
from ebpftrace.unwind.copies import REGISTERS_SIZE, Registers, StackCopy

GCC = ("gcc", "-O2", "-fomit-frame-pointer")
TARGETS = Path(__file__).parent.parent / "targets"
FIRST_PAGES = 0x1230
"""Length of the mapping of site 0, in pages (stacks_chain.c)."""
SYS_MMAP, SYS_CLONE, SYS_CLONE3 = 9, 56, 435

_TRACEME, _SETOPTIONS, _GETREGS, _SYSCALL = 0, 0x4200, 12, 24
_TRACESYSGOOD, _TRACEFORK, _TRACEVFORK, _TRACECLONE, _EXITKILL = 1, 2, 4, 8, 0x100000
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(frozen=True)
class Caught:
    """One system call of the target: at its entry, while the target is stopped."""

    pid: int
    call: int
    site: int
    """Number of the site in the targets' sources, -1 for a call other than a marked mmap."""
    copy: StackCopy


def physical(stack: Stack) -> list[str]:
    """Names of the physical frames; file address where there is no name."""
    return [
        f.function or f"{Path(f.module or '?').name}+{f.offset or 0:#x}"
        for f in stack.frames
        if not f.inlined
    ]


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether all of ``names`` but the innermost are these; "*" is any one frame, "..." any number."""

    def rest(n: int, p: int) -> bool:
        if p == len(pattern):
            return n == len(names)
        if pattern[p] == "...":
            return any(rest(m, p + 1) for m in range(n, len(names) + 1))
        return n < len(names) and pattern[p] in ("*", names[n]) and rest(n + 1, p + 1)

    return rest(1, 0)


def compile_target(out: Path, *command: str) -> Path:
    subprocess.run([*command, "-o", str(out)], check=True, capture_output=True, text=True)
    return out


def copy_stack(pid: int, sp: int, limit: int) -> tuple[bytes, bool]:
    """Bytes from ``sp`` up, page by page as the kernel side does it; and whether the limit ended it."""
    memory = b""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
        while len(memory) < limit:
            at = sp + len(memory)
            count = min(4096 - at % 4096, limit - len(memory))
            part = _pread(mem.fileno(), count, at)
            if not part:
                return memory, False
            memory += part
    return memory, True


def _pread(fd: int, count: int, at: int) -> bytes:
    try:
        return os.pread(fd, count, at)
    except OSError:
        return b""


def catch(
    command: Sequence[str],
    limit: int = 16384,
    calls: Sequence[int] = (SYS_MMAP,),
    stdout: int = subprocess.DEVNULL,
    every: bool = False,
) -> Generator[Caught, None, None]:
    """Run a command and yield its marked mmap calls (all of them with ``every``) and other ``calls``.

    The target is stopped while the caller looks at what was yielded.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR) if stdout == subprocess.DEVNULL else stdout, 1)
            # A process group of its own, so that waiting for it reaps nobody else's children.
            os.setpgid(0, 0)
            _libc.ptrace(_TRACEME, 0, None, None)
            os.execvp(command[0], list(command))
        finally:
            os._exit(127)
    os.waitpid(pid, 0)
    options = _TRACESYSGOOD | _TRACECLONE | _TRACEFORK | _TRACEVFORK | _EXITKILL
    _libc.ptrace(_SETOPTIONS, pid, None, options)
    _libc.ptrace(_SYSCALL, pid, None, None)
    inside: set[int] = set()
    alive = {pid}
    try:
        while True:
            tid, status = _wait(pid)
            if tid == 0:
                return
            if not os.WIFSTOPPED(status):
                alive.discard(tid)
                continue
            alive.add(tid)
            stopped = os.WSTOPSIG(status)
            deliver = 0
            if stopped == signal.SIGTRAP | 0x80:
                if tid in inside:
                    inside.discard(tid)
                else:
                    inside.add(tid)
                    caught = _look(tid, limit, calls, every)
                    if caught is not None:
                        yield caught
            elif stopped not in (signal.SIGTRAP, signal.SIGSTOP):
                deliver = stopped
            _libc.ptrace(_SYSCALL, tid, None, deliver)
    finally:
        if pid in alive:
            os.kill(pid, signal.SIGKILL)
        while _wait(pid)[0]:
            pass


def _wait(group: int) -> tuple[int, int]:
    """Next task of the group that stopped or ended; 0 when none is left."""
    try:
        return os.waitpid(-group, _WALL)
    except ChildProcessError:
        return 0, 0


def _process_of(tid: int) -> int:
    status = Path(f"/proc/{tid}/status").read_text(errors="replace")
    return int(status.split("\nTgid:", 1)[1].split(None, 1)[0])


def _look(tid: int, limit: int, calls: Sequence[int], every: bool) -> Caught | None:
    raw = ctypes.create_string_buffer(512)
    _libc.ptrace(_GETREGS, tid, None, raw)
    registers = raw.raw[:REGISTERS_SIZE]
    words = struct.unpack("<21Q", registers)
    call, length = words[15], words[13]
    if call not in calls:
        return None
    site = -1
    if call == SYS_MMAP:
        pages = length // 4096 - FIRST_PAGES
        if 0 <= pages < 64:
            site = pages
        elif not every:
            return None
    sp = Registers(words).sp
    memory, truncated = copy_stack(tid, sp, limit)
    copy = StackCopy(hash(registers), time.monotonic_ns(), tid, registers, memory, truncated)
    return Caught(_process_of(tid), call, site, copy)
