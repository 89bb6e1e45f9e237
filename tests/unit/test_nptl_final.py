# SPDX-License-Identifier: Apache-2.0
"""glibc's lists at the end of a process: what a dying task's memory says of who had exited."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Interval, ReadState
from ebpftrace.nptl.blocks import find_block_offset
from ebpftrace.nptl.final import LibcFile, Listed, final_lists, read_libc_file
from ebpftrace.nptl.lists import Absent, Layout, Lists, find_lists
from ebpftrace.nptl.symbols import Image, file_mappings, read_interpreter
from ebpftrace.procfs.maps import read_maps
from ebpftrace.procfs.memory import Memory

EXITING, TERMINATED = 1 << 4, 1 << 5
STACK = 1 << 16
LAYOUT = Layout(2304, 704, 0, 8, 720, 776, 1592, 1600, 1656)
LIBC = LibcFile(Lists((2, 36), False, "<", LAYOUT, 0, 0, None, None, None), 0, Image("<", (), {}))

STATES = {
    # state: (tid, cancelhandling, joined or detached field, what the trace saw, had exited)
    "exited": (0, EXITING, 0, True, True),
    "exited, nobody saw it": (0, EXITING, 0, None, True),
    "exited by a bare system call": (0, 0, 0, True, True),
    "ran, and the end cleared its number": (0, 0, 0, False, False),
    "was about to exit": (0, EXITING, 0, False, False),
    "ran, nobody knows it": (0, 0, 0, None, False),
    "being joined": (-1, EXITING, 0, True, False),
    "joined": (0, EXITING | TERMINATED, 0, True, False),
}


def listed(index: int, state: str, user_stack: bool = False, start_routine: int = 0x1000) -> Listed:
    tid, cancel, join, _, _ = STATES[state]
    block = (index + 1) * STACK
    return Listed(block + STACK - 2304, join, start_routine, block, STACK, tid, cancel, 0, user_stack)


@given(st.lists(st.tuples(st.sampled_from(sorted(STATES)), st.booleans(), st.booleans()), max_size=12))
def test_against_what_is_so(reported: list[tuple[str, bool, bool]]) -> None:
    """(state, on a stack of its own, awaited by a join) of each thread."""
    threads = [listed(index, state, own) for index, (state, own, _) in enumerate(reported)]
    seen = {one.descriptor: STATES[state][3] for one, (state, _, _) in zip(threads, reported)}
    awaited = {one.descriptor + 720 for one, (_, _, waited) in zip(threads, reported) if waited}

    def had_exited(descriptor: int, stack: Interval) -> Optional[bool]:
        assert stack.start <= descriptor < stack.end
        return seen[descriptor]

    thread_lists = final_lists(LIBC, threads, awaited, had_exited)
    assert thread_lists.state is ReadState.READ
    assert [(one.descriptor, one.user_stack, one.exited) for one in thread_lists.threads] == [
        (one.descriptor, own, True)
        for one, (state, own, waited) in zip(threads, reported)
        if STATES[state][4] and not waited
    ]


def test_the_initial_thread_is_not_among_them() -> None:
    assert not final_lists(LIBC, [listed(0, "exited", start_routine=0)], (), lambda *_: True).threads


def test_a_detached_one_that_ended_by_a_bare_system_call_is_reported_as_such() -> None:
    one = listed(0, "exited by a bare system call")
    thread_lists = final_lists(LIBC, [one._replace(join=one.descriptor)], (), lambda *_: True)
    assert [(thread.exited, thread.detached) for thread in thread_lists.threads] == [(True, True)]


def test_a_stack_that_does_not_hold_the_descriptor_is_not_believed() -> None:
    one = listed(0, "exited")._replace(block=1, block_size=1)
    assert [thread.stack for thread in final_lists(LIBC, [one], (), lambda *_: True).threads] == [None]


def test_the_file_says_what_a_process_that_has_it_says() -> None:
    """Of our own libc: heads, layout and version by its file are those in our memory."""
    vmas = read_maps(os.getpid())
    with Memory(os.getpid()) as memory:
        lists = find_lists(os.getpid(), vmas, memory)
        if isinstance(lists, Absent):
            raise AssertionError(lists.why)
        (vma,) = [vma for vma in file_mappings(vmas) if Path(vma.path).name.startswith("libc.so")]
        with Path(vma.path).open("rb") as file:
            libc = read_libc_file(file)
        assert libc is not None
        assert (libc.lists.version, libc.lists.layout) == (lists.version, lists.layout)
        base = libc.image.bias(vma)
        assert base is not None
        assert base == vma.start - vma.offset - (libc.text or 0)
        if libc.root:
            (base,) = struct.unpack("Q", memory.read(base + libc.root, 8))
        assert (base + libc.lists.used, base + libc.lists.user) == (lists.used, lists.user)
        assert find_block_offset(lists, memory) in (None, libc.block)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"no file of a libc" * 100])
def test_what_is_no_libc(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "libc.so.6"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert read_libc_file(file) is None
        assert read_interpreter(file) is None


def test_a_program_names_its_loader() -> None:
    with Path("/proc/self/exe").open("rb") as file:
        assert (read_interpreter(file) or "").startswith("/")
