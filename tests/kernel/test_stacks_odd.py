# SPDX-License-Identifier: Apache-2.0
"""Stacks in which something is guessed easily: each is right, or cut where it must be, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Program, build
from stacks_helpers import GCC, TARGETS, catch, compile_target, matches, physical
from test_growth_command import watched

from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import NOTE_OTHER_STACK, StackResolver

pytest.importorskip("drgn")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


ODD = {
    40: ["leaf", "callback", "asm_small", "outer", "main", "..."],
    41: ["leaf", "callback", "asm_large", "outer", "main", "..."],
    42: ["leaf", "callback", "asm_pointer", "outer", "main", "..."],
    43: ["leaf", "callback", "asm_table"],
    44: ["leaf", "*", "..."],
    45: ["leaf", "on_signal", "*", "?+0x0", "faulter", "main", "..."],
    46: ["leaf", "in_context", "*"],
    47: ["leaf", "coroutine_zero"],
    48: ["leaf", "coroutine_finish", "*"],
}
"""Sites of stacks_odd.c; as in test_stacks_programs.EXPECTED."""
CUT = {43: "cut at asm_table: its code has no unwind table", 44: NOTE_OTHER_STACK}
"""Why these are cut; the others are whole."""


@pytest.mark.parametrize("options", [[], ["-g"], ["-O0"], ["-fno-omit-frame-pointer"]])
def test_stacks_that_compilers_seldom_make(engine: Engine, tmp_path: Path, options: list[str]) -> None:
    source = str(TARGETS / "stacks_odd.c")
    binary = compile_target(tmp_path / "odd", *GCC, "-fno-optimize-sibling-calls", *options, source)
    stacks = {}
    resolver = None
    for caught in catch([str(binary)], limit=32768):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        stacks[caught.site] = resolver.resolve(caught.copy)
    assert set(stacks) == set(ODD)
    for site, expected in ODD.items():
        assert matches(physical(stacks[site]), expected), (site, physical(stacks[site]))
        assert stacks[site].complete == (site not in CUT), (site, stacks[site].note)
        assert stacks[site].note.startswith(CUT.get(site, "")), (site, stacks[site].note)
        assert bool(stacks[site].note) == (site in CUT), (site, stacks[site].note)


def growth_of(program: Program) -> dict[tuple[str, ...], dict[str, Any]]:
    """What ``growth`` says of a program's mappings, by the frames of its own."""
    with watched(program.pid, "--json") as growth:
        program.run()
        summary = json.loads(growth.interrupt()[-1])
    found = {}
    for cause in summary["growth"]:
        own = [
            frame for frame in cause["stack"]["frames"] if (frame["module"] or "").endswith("/stacks_ways")
        ]
        found[tuple(frame["function"] for frame in own if not frame["inlined"])] = cause
    return found


@pytest.fixture
def ways() -> Path:
    return build("stacks_ways")


def test_a_call_is_not_given_the_stack_of_another_way(ways: Path) -> None:
    """60 calls come from ``seldom``, and 60,000 with the same signature from elsewhere."""
    program = Program(ways, "ways")
    found = growth_of(program)
    program.end()
    mapped = {frames: cause for frames, cause in found.items() if frames and frames[0] == "leaf"}
    assert sum(cause["mappings"] for cause in mapped.values()) == 60
    for frames, cause in mapped.items():
        assert "often" not in frames
        whole = frames[:1] + ("common",) * 9 + ("seldom", "main")
        assert frames == (*whole, "_start") if cause["stack"]["complete"] else frames == whole[: len(frames)]
        if not cause["stack"]["complete"]:
            assert (cause["stack"]["source"], len(frames)) == ("signature", len(frames))
            assert cause["stack"]["note"]


def test_what_lies_beyond_a_buffer_that_is_not_used_yet_is_copied(ways: Path) -> None:
    program = Program(ways, "fresh")
    found = growth_of(program)
    program.end()
    (cause,) = (cause for frames, cause in found.items() if frames[:1] == ("leaf",))
    assert cause["mappings"] == 20
    assert cause["stack"]["complete"], cause["stack"]["note"]
    assert [frames for frames in found if frames[:1] == ("leaf",)] == [
        ("leaf", "load", "with_buffer", "thread_main")
    ]
