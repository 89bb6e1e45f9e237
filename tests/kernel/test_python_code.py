# SPDX-License-Identifier: Apache-2.0
"""Python code in stacks: the function, file and line that called, at the moment of the call."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from harness import TARGETS, Json, Program, Tracer

SCRIPT = TARGETS / "python_calls.py"
SIZE = 1 << 20
IN_SORT = [("inner", "inner"), ("by_sort.<locals>.<lambda>", "lambda"), ("by_sort", "by_sort")]
WAYS = {
    (*IN_SORT, ("first_way", "first_way"), ("work", "work 1")): 4,
    (*IN_SORT, ("second_way", "second_way"), ("work", "work 2")): 4,
    (*IN_SORT, ("second_way", "second_way"), ("work", "work 3")): 4,
    (("inner", "inner"), ("generate", "generate"), ("work", "work 4")): 1,
}
"""Function, and what stands behind its line in the script, from the caller of mmap outwards: how often."""


def interpreter(version: str) -> Path:
    """A Python of that version."""
    found = shutil.which(f"python{version}")
    told = found and subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
    )
    if not told or told.returncode:
        pytest.skip(f"Python {version} is not installed")
    return Path(told.stdout.strip())


def told(stack: Json) -> tuple[tuple[str, str], ...]:
    """The frames in the script, each with the words behind its line there that name it."""
    lines = SCRIPT.read_text().splitlines()
    frames = []
    for frame in stack["frames"]:
        if frame["file"] == str(SCRIPT):
            words = lines[frame["line"] - 1].partition("# ")[2].split(", ")
            word = next((word for word in words if word in frame["function"]), words[0])
            frames.append((frame["function"], word))
    return tuple(frames)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_way_through_python_code_is_told(version: str) -> None:
    with Program(interpreter(version), SCRIPT) as target:
        with Tracer("-p", target.pid, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        target.end()
    assert result.status == 0, result.stderr
    counted: Counter[tuple[tuple[str, str], ...]] = Counter()
    for finding in result.report["findings"]:
        if {mapping["bytes"] for mapping in finding["mappings"]} == {SIZE}:
            counted[told(finding["stack"])] += finding["count"]
            assert finding["stack"]["complete"]
    assert counted == WAYS
