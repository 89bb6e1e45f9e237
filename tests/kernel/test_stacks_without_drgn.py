# SPDX-License-Identifier: Apache-2.0
"""drgn missing or unusable: everything else works, stacks are frame-pointer stacks, and it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Target, leaks, no_losses, traced
from stacks_helpers import GCC, TARGETS, catch, compile_target, physical

from ebpftrace.installation import DRGN
from ebpftrace.model import StackSource
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver

REMEDY = f"pip install '{DRGN}'"
PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def no_drgn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For processes started from here on, and the unwinding workers of this one."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "drgn.py").write_text('raise ImportError("libc of another kind")\n')
    monkeypatch.setenv("PYTHONPATH", str(broken))
    monkeypatch.syspath_prepend(str(broken))


@pytest.mark.usefixtures("no_drgn")
def test_the_report_has_frame_pointer_stacks_and_says_how_to_get_better_ones() -> None:
    with Target("siblings", 3) as target, traced(target, "--min-age", 0) as tracer:
        target.run()
        result = tracer.interrupt()
    report = result.report
    assert result.status == 0
    assert no_losses(report)
    assert sum(finding["count"] for finding in leaks(report)) == 6
    for finding in leaks(report):
        stack = finding["stack"]
        assert stack["source"] == "frame-pointer"
        assert not stack["complete"]
        assert "libc of another kind" in stack["note"]
        assert REMEDY in stack["note"]
        assert "clone" in stack["frames"][0]["function"]


@pytest.mark.usefixtures("no_drgn")
@pytest.mark.parametrize("keeps", [True, False])
def test_frame_pointers_are_followed_as_far_as_they_go(keeps: bool, tmp_path: Path) -> None:
    options = ["-fno-omit-frame-pointer"] if keeps else []
    source = str(TARGETS / "stacks_chain.c")
    binary = compile_target(tmp_path / "chain", *GCC, *options, source, "-pthread", "-ldl")
    with Engine() as engine:
        stacks = {}
        resolver = None
        for caught in catch([str(binary)]):
            resolver = resolver or StackResolver(caught.pid, engine)
            stacks[caught.site] = resolver.resolve(caught.copy)
    assert all(stack.source is StackSource.FRAME_POINTER for stack in stacks.values())
    assert all(not stack.complete and REMEDY in stack.note for stack in stacks.values())
    names = physical(stacks[0])
    assert "mmap" in names[0]
    # mmap itself has no frame: its direct caller is never seen.
    assert "leaf" not in names
    assert (names[1:4] == ["middle", "outer", "main"]) == keeps


def test_the_remedy_is_what_the_package_asks_for() -> None:
    assert f'"{DRGN};' in PROJECT.read_text()
