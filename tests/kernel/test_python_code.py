# SPDX-License-Identifier: Apache-2.0
"""Python code in stacks: the function, file and line that called, at the moment of the call."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, TARGETS, Json, Lines, Program, Tracer
from trace_harness import TRACE

from ebpftrace.unwind.resolve import NOTE_PYTHON_NOT_RECORDED

SCRIPT, DEEP = TARGETS / "python_calls.py", TARGETS / "python_deep.py"
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
    name = f"python{version}"
    of_pyenv = Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")
    for found in filter(None, [shutil.which(name), *of_pyenv]):
        outcome = subprocess.run(
            [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, check=False
        )
        if outcome.returncode == 0:
            return Path(outcome.stdout.strip())
    pytest.skip(f"Python {version} is not installed")


def outcome(stack: Json) -> tuple[tuple[str, str], ...]:
    """The frames in the script, each with the words behind its line there that name it."""
    lines = SCRIPT.read_text().splitlines()
    frames = []
    for frame in stack["frames"]:
        if frame["file"] == str(SCRIPT):
            words = lines[frame["line"] - 1].partition("# ")[2].split(", ")
            word = next((word for word in words if word in frame["function"]), words[0])
            frames.append((frame["function"], word))
    return tuple(frames)


def is_creation(stack: Json | None) -> bool:
    """Whether it is the stack of the call that created the script's thread."""
    return stack is not None and any(frame["function"] == "Thread.start" for frame in stack["frames"])


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_each_way_through_python_code_is_reported(version: str) -> None:
    with Program(interpreter(version), SCRIPT) as target:
        with Tracer("-p", target.pid, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        target.end()
    assert result.status == 0, result.stderr
    counted: Counter[tuple[tuple[str, str], ...]] = Counter()
    for finding in result.report["findings"]:
        if {mapping["bytes"] for mapping in finding["mappings"]} == {SIZE}:
            counted[outcome(finding["stack"])] += finding["count"]
            assert finding["stack"]["complete"]
    assert counted == WAYS
    creations = [finding["stack"] for finding in result.report["findings"] if is_creation(finding["stack"])]
    assert [outcome(stack) for stack in creations] == [(("<module>", "start"),)]


@contextmanager
def trace(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``trace -k`` of mmap calls; it has attached when the block begins."""
    command = [*TRACE, "-k", "-e", "trace=mmap", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert Lines(process.stderr).until(lambda line: "attached" in line)
        yield process


def read(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.read()


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_trace_shows_python_code(version: str) -> None:
    with Program(interpreter(version), SCRIPT) as target:
        with trace("--json", "-p", target.pid) as process:
            target.run()
            process.send_signal(signal.SIGINT)
            text = read(process)
        target.end()
    records = [json.loads(line) for line in text.splitlines()]
    counted = Counter(outcome(record["stack"]) for record in records if record.get("stack"))
    assert {way: counted[way] for way in WAYS} == WAYS


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14", "3.15"])
def test_a_stack_that_may_have_more_python_frames_than_are_recorded_says_so(version: str) -> None:
    with Program(interpreter(version), DEEP) as target:
        with Tracer("-p", target.pid, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        target.end()
    assert result.status == 0, result.stderr
    stacks = {finding["mappings"][0]["bytes"]: finding["stack"] for finding in result.report["findings"]}
    of_script = {
        size: [frame["function"] for frame in stack["frames"] if frame["file"] == str(DEEP)]
        for size, stack in stacks.items()
    }
    assert of_script[3 << 20] == 10 * ["call"] + ["<lambda>"]
    assert stacks[3 << 20]["complete"]
    assert of_script[5 << 20] == 24 * ["call"]
    assert not stacks[5 << 20]["complete"]
    assert stacks[5 << 20]["note"] == NOTE_PYTHON_NOT_RECORDED.format(count=24)
    with Program(interpreter(version), DEEP) as target:
        with trace("-p", target.pid) as process:
            target.run()
            process.send_signal(signal.SIGINT)
            text = read(process)
        target.end()
    assert f" > ({NOTE_PYTHON_NOT_RECORDED.format(count=24)})\n" in text


def test_trace_shows_python_code_of_a_command_and_of_what_it_forks(tmp_path: Path) -> None:
    script, seen = tmp_path / "forks.py", tmp_path / "seen"
    script.write_text(
        "import mmap, os, sys, time\n"
        "def child():\n"
        "    mmap.mmap(-1, 0x777000)\n"
        "if os.fork():\n"
        "    os.wait()\n"
        "else:\n"
        "    while not os.path.exists(sys.argv[1]):\n"
        "        child()\n"
        "        time.sleep(0.05)\n"
    )
    lines = []
    python = interpreter("3.11")
    with trace("--min-bytes", 0x777000, "-d", PATIENCE, "--", python, script, seen) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] == f"> {script}:3(child)":
                seen.touch()
    assert seen.exists(), lines[-40:]
    assert lines[lines.index(f"> {script}:3(child)") + 1] == f"> {script}:8(<module>)"
