# SPDX-License-Identifier: Apache-2.0
"""Stacks of a COMMAND that has ended before the tracer reads anything of it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from harness import PATIENCE, TARGETS, build
from programs import MUSL, STATIC, STATIC_PIE, Build, compiled

from ebpftrace.capture.btf import Btf
from ebpftrace.capture.layout import IMAGE_OFFSETS
from ebpftrace.capture.tracer import Tracer
from ebpftrace.model import Report, Stack
from ebpftrace.sessions import mmap_leaks
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.unwind.engine import Engine

COUNT = 20


class Watched:
    """An observer of ``mmap_leaks.run`` that keeps the last report, and the stacks that were copied."""

    def __init__(self) -> None:
        self.stacks: Counter[Stack] = Counter()

    def attached(self, watches: Sequence[LeakWatch]) -> None: ...
    def unjoined_before(self, unjoined_before: object) -> None: ...
    def command_ended(self, end: object) -> None: ...
    def followed(self, processes: object) -> None: ...
    def progress(self, watches: Sequence[LeakWatch], tracer: Tracer, seconds_left: object) -> None: ...
    def searching(self, part: float) -> None: ...
    def reporting(self, areas: int) -> None: ...

    def report(self, report: Report, watch: LeakWatch) -> None:
        self.last = report
        stacks = watch._stacks
        for ways in stacks._by_site.values():
            for number, times in ways.items():
                self.stacks[stacks.stack(number)] += times

    def times(self, *functions: str, complete: bool = True) -> int:
        """How many stacks, complete ones unless that is not asked for, have these functions in a row."""
        found = 0
        for stack, times in self.stacks.items():
            names = [frame.function for frame in stack.frames]
            at = names.index(functions[0]) if functions[0] in names else len(names)
            found += times * (
                (stack.complete or not complete) and tuple(names[at : at + len(functions)]) == functions
            )
        return found


Run = Callable[..., Watched]


@pytest.fixture
def run_late(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs COMMAND under a tracer that reads nothing of it until it is gone."""
    follow = mmap_leaks.follow

    def follow_late(
        duration: object, interval: object, watches: Sequence[LeakWatch], *rest: object
    ) -> object:
        assert all(watch.target.wait(PATIENCE) for watch in watches)
        return follow(duration, interval, watches, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(mmap_leaks, "follow", follow_late)

    def run(*command: object) -> Watched:
        watched = Watched()
        mmap_leaks.run(mmap_leaks.Settings(command=[*map(str, command)]), watched)
        return watched

    return run


def test_what_ends_at_once_without_a_thread_needs_no_worker(
    run_late: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a quarter of a second of CPU time to start, for the stacks of the loader's own mappings."""

    def start(_: Engine) -> None:
        raise AssertionError("the unwinding worker is started")

    monkeypatch.setattr(Engine, "start", start)
    report = run_late("true").last
    assert report.calls.mmap > 0
    assert report.losses.stacks == 0
    assert report.undecided == 0


def test_no_stack_is_lost(run_late: Run) -> None:
    watched = run_late(build("short_lived"), COUNT)
    assert watched.last.losses.stacks == 0
    assert watched.last.calls.clone == COUNT
    assert watched.times("create_thread", "__pthread_create_2_1", "start_thread_here") == COUNT
    assert all(stack.complete for stack in watched.stacks)


@pytest.mark.parametrize("way", [STATIC, STATIC_PIE, MUSL], ids=lambda way: way.name)
def test_however_it_is_linked(run_late: Run, tmp_path: Path, way: Build) -> None:
    watched = run_late(compiled(tmp_path, "short_lived", way), COUNT)
    assert watched.last.losses.stacks == 0
    # Of musl's own functions a stripped library gives no names, and what called main has no unwind table:
    # such a stack may end there.  In the program all have their names.
    complete = way is not MUSL
    assert sum(watched.times(name, complete=complete) for name in ("start_thread_here", "main")) >= COUNT


def test_through_an_interpreter_of_scripts(run_late: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{build('short_lived')} {COUNT}\n")
    script.chmod(0o755)
    watched = run_late(script)
    assert watched.last.losses.stacks == 0
    assert watched.times("create_thread", "__pthread_create_2_1", "start_thread_here") == COUNT


def test_a_library_that_is_unloaded_at_once(run_late: Run, tmp_path: Path) -> None:
    plugin = tmp_path / "plug in\n.so"  # the kernel writes the newline as \012
    source = TARGETS / "stacks_plugin.c"
    subprocess.run(["gcc", "-O2", "-g", "-shared", "-fPIC", source, "-o", plugin], check=True)
    watched = run_late(build("short_lived"), COUNT, plugin)
    assert watched.last.losses.stacks == 0
    assert watched.times("plugin_inner", "plugin_entry") == COUNT


def test_this_kernel_has_all_that_executed_files_are_found_by() -> None:
    types = Btf.of_running_kernel()
    wanted: dict[str, list[str]] = {}
    for name, member in IMAGE_OFFSETS.values():
        wanted.setdefault(name, []).append(member)
    found = types.offsets(wanted)
    assert set(found) == set(IMAGE_OFFSETS.values())
    assert found["task_struct", "files"] == types.member_offset("task_struct", "files")
