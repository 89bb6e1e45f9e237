# SPDX-License-Identifier: Apache-2.0
"""Targets that are named, shaped or timed to hurt the tool that reads them, through whole commands."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    ORPHANED,
    PATIENCE,
    ROOT,
    Program,
    Target,
    build,
    fact_areas,
    reported,
    reported_areas,
    union,
)

EBPFTRACE = (sys.executable, "-m", "ebpftrace")
EVIL = "\x1b]0;x\x07\x1b[2J\n\x9b\u202e"
BOUNDED = PATIENCE
"""Seconds that a command may take, however hostile its target and busy the machine."""


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*EBPFTRACE, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=BOUNDED,
        check=False,
    )


def assert_harmless(shown: bytes) -> None:
    """Fit for a terminal: text in UTF-8, and no control characters but line ends."""
    text = shown.decode("utf-8")
    assert "Traceback" not in text
    assert "a bug" not in text
    assert all(character == "\n" or character.isprintable() for character in text), ascii(text)


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Target]:
    """The executable's own path is hostile too."""
    program = tmp_path / f"program{EVIL}"
    shutil.copy(build("hostile"), program)
    with Program(program, tmp_path) as target:
        yield target


@pytest.mark.parametrize("form", ["text", "--json", "--folded"])
def test_mmap_leaks(evil: Program, form: str, tmp_path: Path) -> None:
    report, page, scope = tmp_path / "report", tmp_path / "page.html", tmp_path / "scope.json"
    options = ["--until-interrupt", "--min-age", 0, "-o", report, "--flamegraph", page, "--speedscope", scope]
    command = [*EBPFTRACE, "mmap-leaks", "-p", evil.pid, *options, *([] if form == "text" else [form])]
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = b""
    while b"attached\n" not in errors:
        line = process.stderr.readline()
        assert line, errors
        errors += line
    evil.run()
    process.send_signal(2)
    shown, rest = process.communicate(timeout=BOUNDED)
    assert (process.returncode, shown) == (0, b"")
    assert_harmless(errors + rest)
    for file in (report, page, scope):
        assert_harmless(file.read_bytes())
    if form == "--json":
        made = union(fact_areas(evil.facts("mapped")))
        shown_report = json.loads(report.read_text())
        assert union(reported_areas(shown_report, *ORPHANED)) == made
        names = {one["owner_name"] for one in reported(shown_report, *ORPHANED)}
        assert names == {"\x1b[2J\n\\xff\\xfe) R 1\r"}
        assert shown_report["losses"] == dict.fromkeys(shown_report["losses"], 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ("maps", "-p", "PID"),
        ("maps", "--json", "-p", "PID"),
        ("scan", "--top", "100000"),
        ("scan", "--json", "--top", "100000"),
        ("mmap-leaks", "-d", "0", "-p", "PID"),
        ("growth", "-d", "2", "-i", "1", "-p", "PID"),
    ],
    ids=" ".join,
)
def test_commands_of_one_reading(evil: Program, arguments: tuple[str, ...]) -> None:
    ended = run(*(evil.pid if word == "PID" else word for word in arguments))
    assert ended.returncode == 0, ended.stderr
    assert_harmless(ended.stdout)
    assert_harmless(ended.stderr)
    if "--json" in arguments:
        json.loads(ended.stdout)


def test_trace(tmp_path: Path) -> None:
    """A file's name as an argument, the executable's own, and a thread's."""
    program = tmp_path / f"program{EVIL}"
    shutil.copy(build("hostile"), program)
    ended = subprocess.run(
        [*EBPFTRACE, "trace", "--stack-trace", "--", program, tmp_path],
        cwd=ROOT,
        input=b"go\n",
        capture_output=True,
        timeout=BOUNDED,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert_harmless(ended.stderr)
    assert b"\x1b" not in ended.stdout
    assert b"\x07" not in ended.stdout
    assert b"mmap(" in ended.stdout


# --- a target that dies at any moment -----------------------------------------------------------


def mortal_run(arguments: tuple[str, ...], lifetime: float) -> tuple[int, bytes, bytes]:
    with Target("orphans", "kept", 1000, 1) as target:
        command = [*EBPFTRACE, *(str(target.pid) if word == "PID" else word for word in arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        target.go()
        try:
            shown, errors = process.communicate(timeout=lifetime)
        except subprocess.TimeoutExpired:
            target.process.kill()
            shown, errors = process.communicate(timeout=BOUNDED)
    return process.returncode, shown, errors


@pytest.mark.parametrize(
    ("arguments", "longest"),
    [
        (("mmap-leaks", "--json", "-q", "-d", "3", "-p", "PID"), 4.0),
        (("mmap-leaks", "--json", "-q", "-d", "0", "-p", "PID"), 2.0),
        (("growth", "-d", "3", "-i", "1", "-p", "PID"), 4.0),
        (("trace", "--stack-trace", "-d", "3", "-p", "PID"), 4.0),
        (("maps", "-p", "PID"), 1.0),
    ],
    ids=lambda value: " ".join(value[:-2]) if isinstance(value, tuple) else "",
)
def test_target_that_dies_at_any_moment(arguments: tuple[str, ...], longest: float) -> None:
    """Always a report or one clear line.  Moments are drawn at random, the same ones each time."""
    moments = random.Random(arguments[0])
    for _ in range(int(os.environ.get("EBPFTRACE_DEATHS", "6"))):
        lifetime = moments.uniform(0.0, longest)
        status, shown, errors = mortal_run(arguments, lifetime)
        note = (lifetime, status, shown[-300:], errors)
        assert b"Traceback" not in errors, note
        assert b"a bug" not in errors, note
        if status == 0:
            # Nothing was called between the beginning of a trace and the target's end.
            assert shown or (arguments[0] == "trace" and errors == b"attached\n"), note
        else:
            assert status == 1, note
            assert len(errors.splitlines()) == 1, note
            assert errors.startswith(b"ebpftrace: "), note
