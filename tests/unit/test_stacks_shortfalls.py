# SPDX-License-Identifier: Apache-2.0
"""Warnings about stacks are printed once, and are limited."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from ebpftrace.procfs.files import FileKey
from ebpftrace.text import size
from ebpftrace.unwind import stack_warnings as warnings_module
from ebpftrace.unwind.copies import REGISTERS_SIZE, Pc, StackCopy, WaitingBytes
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.modules import CodeRange, Layout
from ebpftrace.unwind.resolve import StackResolver
from ebpftrace.unwind.sites import SiteStacks
from ebpftrace.unwind.stack_warnings import Bare, StackWarnings, debug_package


def test_nothing_is_reported_of_whole_stacks() -> None:
    assert StackWarnings().notes() == []


def test_files_are_reported_by_reason_and_named_up_to_a_few() -> None:
    lacks = StackWarnings()
    for number in range(1003):
        for _ in range(2):
            lacks.no_names(f"/lib/{number}", "odd")
    lacks.no_names("/lib/0", "other")
    assert lacks.notes() == [
        "no function names in /lib/0, /lib/1, /lib/2 and 1,000 more: odd",
        "no function names in /lib/0: other",
    ]


def test_what_a_target_makes_without_end_is_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings_module, "_MAX_FILES", 5)
    monkeypatch.setattr(warnings_module, "_MAX_PERF_MAPS", 5)
    lacks = StackWarnings()
    for number in range(100):
        lacks.no_names("/" + "x" * 4000 + str(number), "odd")
        lacks.perf_map(number, f"perf map {number} not read")
    notes = lacks.notes()
    assert len(notes) == 6
    assert max(map(len, notes)) < 400


def test_only_the_last_reading_of_a_perf_map_is_reported() -> None:
    lacks = StackWarnings()
    lacks.perf_map(1, "perf map a not read")
    lacks.perf_map(2, "perf map b not read")
    lacks.perf_map(1, "")
    assert lacks.notes() == ["perf map b not read"]


def test_copies_that_wait_too_long_are_reported() -> None:
    stacks = SiteStacks()
    for number in range(60):
        stacks.add(StackCopy(number, number, 1, bytes(REGISTERS_SIZE), bytes(1 << 20)))
    assert stacks.waiting == 32
    (note,) = StackWarnings().notes(stacks.dropped_bytes)
    assert note.startswith(f"{size(28 << 20)} of stack copies dropped")


def test_copies_of_all_processes_together_wait_in_bounded_memory() -> None:
    together = WaitingBytes(40 << 20)
    first, second = SiteStacks(together), SiteStacks(together)
    for number in range(60):
        for stacks in (first, second):
            stacks.add(StackCopy(number, number, 1, bytes(REGISTERS_SIZE), bytes(1 << 20)))
    assert (first.waiting, second.waiting) == (20, 20)
    assert first.dropped_bytes == 40 << 20
    # One of them has ended.
    first.forget_waiting()
    assert together.used == 20 << 20
    second.add(StackCopy(1, 1, 1, bytes(REGISTERS_SIZE), bytes(1 << 20)))
    assert second.waiting == 21


def test_frames_in_files_of_no_use_are_reported(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    with Engine() as engine, StackResolver(os.getpid(), engine) as resolver:
        assert engine.files.add(FileKey("0:0", 1, "/a"), lambda: os.open(text, os.O_RDONLY)) is None
        layout = Layout((CodeRange(0x1000, 0x2000, "/a", None, 0x1000, 0),))
        for _ in range(2):
            resolver._frames([Pc(0x1008, True)], layout)
        assert resolver.stack_warnings.notes() == ["no function names in /a: no ELF file that can be read"]


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def bare(path: Path, build_id: Optional[bytes] = None) -> Bare:
    status = path.stat()
    return Bare(str(path), build_id, status.st_dev, status.st_ino)


def test_the_package_that_would_name_functions_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = (
        'case "$3" in *libc.so.6) echo "libc6:amd64: $3";; *lib?.so) echo "one, two: $3";; *) exit 1;; esac'
    )
    program(tmp_path, "dpkg-query", listing)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    lacking = StackWarnings()
    for number, name in enumerate(("libc.so.6", "libx.so", "own")):
        (tmp_path / name).touch()
        lacking.bare(bare(tmp_path / name, b"\xab" if name == "own" else None), 9 - number, was_asked=False)
    assert lacking.notes() == [
        "functions without names for want of debug information: libc.so.6 (libc6-dbg), libx.so (one-dbgsym), "
        "own (build id ab); install it, or fetch it with --debuginfod"
    ]


def test_a_file_of_another_root_is_no_package_of_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "dpkg-query", 'echo "libc6:amd64: $3"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "libc.so.6").touch()
    other = bare(tmp_path / "libc.so.6")._replace(inode=1)
    lacking = StackWarnings()
    lacking.bare(other, 1, was_asked=True)
    assert lacking.notes() == [
        "functions without names for want of debug information: libc.so.6 (no build id); install it"
    ]


def test_packages_of_rpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "rpm", "echo glibc")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "libc.so.6").touch()
    status = (tmp_path / "libc.so.6").stat()
    found = debug_package(str(tmp_path / "libc.so.6"), status.st_dev, status.st_ino)
    assert found == "glibc-debuginfo"
