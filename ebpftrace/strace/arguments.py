# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call, between the parentheses; one function for each call."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Callable, Optional

from ebpftrace import callflags
from ebpftrace.callflags import (
    CLONE_CHILD_CLEARTID,
    CLONE_CHILD_SETTID,
    CLONE_INTO_CGROUP,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_SETTLS,
)
from ebpftrace.strace.events import CloneMemory, Executes, Returned
from ebpftrace.strace.values import address, advice, has_failed, hexadecimal, signed_32, text
from ebpftrace.syscall_numbers import CLONE_ARGS_SIZE_VER0

_INT_MAX = 0x7FFFFFFF

_prot = lru_cache(maxsize=1024)(callflags.prot)
_map_flags = lru_cache(maxsize=1024)(callflags.map_flags)
_clone_flags = lru_cache(maxsize=1024)(callflags.clone_flags)
_clone3_flags = lru_cache(maxsize=1024)(callflags.clone3_flags)
_remap_flags = lru_cache(maxsize=1024)(callflags.mremap_flags)


def arguments(call: Returned) -> str:
    """The arguments of any call but execve, after which the memory with the arguments is gone."""
    return _FORMATTERS[call.name](call)


def exit_status(status: int) -> str:
    """The argument of exit and exit_group."""
    return str(signed_32(status))


def executed(call: Executes) -> str:
    """The arguments of execve: path, argv, and the number of variables in envp."""
    return f"{text(call.path)}, {_argv(call)}, {_envp(call)}"


def _argv(call: Executes) -> str:
    if not call.argv or (call.open_at is not None and not call.strings):
        return address(call.argv)
    shown = [text(string) for string in call.strings]
    if call.has_more:
        shown.append("...")
    elif call.open_at is not None:
        shown.append(f"... /* {address(call.open_at)} */")
    return f"[{', '.join(shown)}]"


def _envp(call: Executes) -> str:
    if not call.envp or call.variables < 0:
        return address(call.envp)
    plural = "" if call.variables == 1 else "s"
    least = ">= " if call.has_more_variables else ""
    return f"{address(call.envp)} /* {least}{call.variables} var{plural} */"


def _mmap(call: Returned) -> str:
    start, length, prot, flag, fd, offset = call.arguments
    file = f"{signed_32(fd)}, {hexadecimal(offset)}"
    return f"{address(start)}, {length}, {_prot(prot)}, {_map_flags(flag)}, {file}"


def _munmap(call: Returned) -> str:
    return f"{address(call.arguments[0])}, {call.arguments[1]}"


def _mprotect(call: Returned) -> str:
    return f"{address(call.arguments[0])}, {call.arguments[1]}, {_prot(call.arguments[2])}"


def _madvise(call: Returned) -> str:
    return f"{address(call.arguments[0])}, {call.arguments[1]}, {advice(call.arguments[2])}"


def _mremap(call: Returned) -> str:
    start, old, new, flag, target, _ = call.arguments
    moved = f", {address(target)}" if callflags.names_new_address(flag) else ""
    return f"{address(start)}, {old}, {new}, {_remap_flags(flag)}{moved}"


def _brk(call: Returned) -> str:
    return address(call.arguments[0])


def _fork(_: Returned) -> str:
    return ""


def _clone(call: Returned) -> str:
    flag, stack, parent_tid = call.arguments[:3]
    # arch/x86/Kconfig lacks CLONE_BACKWARDS, which arm64 has (kernel/fork.c).
    child_tid, tls = call.arguments[3:5] if platform.machine() == "x86_64" else call.arguments[4:2:-1]
    parts = [f"child_stack={address(stack)}", f"flags={_clone_flags(flag)}"]
    if flag & (CLONE_PARENT_SETTID | CLONE_PIDFD):
        parts.append(f"parent_tid={_number_left(call, flag, parent_tid)}")
    if flag & CLONE_SETTLS:
        parts.append(f"tls={address(tls)}")
    if flag & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID):
        parts.append(f"child_tidptr={address(child_tid)}")
    return ", ".join(parts)


def _number_left(call: Returned, flag: int, pointer: int) -> str:
    """The number that the call wrote to ``parent_tid``, as ``[1234]``; the pointer if it wrote none."""
    if call.clone is None or has_failed(call.returned):
        return address(pointer)
    left = call.clone.parent_tid if flag & CLONE_PARENT_SETTID else call.clone.pidfd
    return address(pointer) if left is None else f"[{left}]"


def _clone3(call: Returned) -> str:
    pointer, size = call.arguments[:2]
    memory = call.clone
    if memory is None or memory.fetched < CLONE_ARGS_SIZE_VER0:
        return f"{address(pointer)}, {size}"
    left = "" if has_failed(call.returned) else _left_by_clone3(memory)
    return f"{{{', '.join(_clone3_fields(memory))}}}{left}, {size}"


def _clone3_fields(memory: CloneMemory) -> list[str]:
    flag, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, tids, tid_count, cgroup = (
        memory.arguments
    )
    fields: list[Optional[str]] = [
        f"flags={_clone3_flags(flag)}",
        f"pidfd={address(pidfd)}" if flag & CLONE_PIDFD else None,
        f"child_tid={address(child_tid)}" if flag & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID) else None,
        f"parent_tid={address(parent_tid)}" if flag & CLONE_PARENT_SETTID else None,
        f"exit_signal={callflags.signal_name(exit_signal) if exit_signal < _INT_MAX else exit_signal}",
        f"stack={address(stack)}",
        f"stack_size={hexadecimal(stack_size)}",
        f"tls={address(tls)}" if flag & CLONE_SETTLS else None,
        f"set_tid={address(tids)}, set_tid_size={tid_count}" if tids or tid_count else None,
        f"cgroup={cgroup}" if cgroup or flag & CLONE_INTO_CGROUP else None,
    ]
    return [field for field in fields if field is not None]


def _left_by_clone3(memory: CloneMemory) -> str:
    flag, pidfd, _, parent_tid = memory.arguments[:4]
    left = []
    if flag & CLONE_PIDFD:
        left.append(f"pidfd={address(pidfd) if memory.pidfd is None else f'[{memory.pidfd}]'}")
    if flag & CLONE_PARENT_SETTID:
        left.append(
            f"parent_tid={address(parent_tid) if memory.parent_tid is None else f'[{memory.parent_tid}]'}"
        )
    return f" => {{{', '.join(left)}}}" if left else ""


_FORMATTERS: dict[str, Callable[[Returned], str]] = {
    "mmap": _mmap,
    "munmap": _munmap,
    "mremap": _mremap,
    "mprotect": _mprotect,
    "madvise": _madvise,
    "brk": _brk,
    "clone": _clone,
    "clone3": _clone3,
    "fork": _fork,
    "vfork": _fork,
}
