# SPDX-License-Identifier: Apache-2.0
"""Frame pointers beside unwind tables, on the same copies: what each finds (run with -s for the figures)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from stacks_helpers import GCC, TARGETS, catch, compile_target

from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.frame_pointers import frame_pointer_walk
from ebpftrace.unwind.resolve import StackResolver

pytest.importorskip("drgn")


class ProcessStats(NamedTuple):
    """Of all stacks of a program; frames without the innermost, which is the call itself."""

    stacks: int
    complete: int
    frames: int
    by_pointer: int
    """Of ``frames``, those that frame pointers find too."""
    bogus: int
    """Frames by pointer that are in no complete stack."""
    direct_callers: int
    """Stacks whose direct caller frame pointers find."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def chain(*options: str) -> Callable[[Path], list[str]]:
    def make(directory: Path) -> list[str]:
        source = str(TARGETS / "stacks_chain.c")
        return [str(compile_target(directory / "chain", *GCC, *options, source, "-pthread", "-ldl"))]

    return make


def classes(directory: Path) -> list[str]:
    source = str(TARGETS / "stacks_classes.cpp")
    return [str(compile_target(directory / "classes", "g++", "-O2", source, "-pthread"))]


def python(_: Path) -> list[str]:
    program = shutil.which("python3", path="/usr/bin:/bin")
    if program is None:
        pytest.skip("no system python3")
    return [program, "-c", "import json, sqlite3"]


PROGRAMS = {
    "without": chain(),
    "static": chain("-static"),
    "with": chain("-fno-omit-frame-pointer"),
    "c++": classes,
    "python": python,
}


def compare(command: list[str], engine: Engine) -> ProcessStats:
    stacks = complete = frames = by_pointer = bogus = direct_callers = 0
    resolver = None
    for caught in catch(command, every=True):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        layout = resolver._history.at(None)
        walk = engine.walk(layout, caught.copy)
        assert walk is not None
        true = [pc.address for pc in walk.pcs[1:]]
        found = [pc.address for pc in frame_pointer_walk(caught.copy, layout)[1:]]
        stacks += 1
        complete += walk.complete
        frames += len(true)
        by_pointer += len(set(true) & set(found))
        bogus += len(set(found) - set(true)) if walk.complete else 0
        direct_callers += bool(true) and true[0] in found
    assert resolver is not None
    resolver.close()
    return ProcessStats(stacks, complete, frames, by_pointer, bogus, direct_callers)


@pytest.mark.parametrize("name", PROGRAMS)
def test_tables_find_what_frame_pointers_miss(name: str, tmp_path: Path, engine: Engine) -> None:
    figures = compare(PROGRAMS[name](tmp_path), engine)
    share = figures.by_pointer / figures.frames
    print(f"\n{name}: {figures}, {share:.0%} by frame pointers")
    # All but the recursion that is made too deep for a copy.
    assert figures.complete >= figures.stacks - 1
    # The C library's mmap has no frame of its own, so its caller is skipped.
    assert figures.direct_callers <= 0.1 * figures.stacks
    assert share < 0.6
