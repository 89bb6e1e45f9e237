#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of docs/walkthrough.md against the demo's server, so that the page can't rot.

usage: walkthrough.py check   say where a command no longer prints what the page shows
       walkthrough.py write   put what they print now into the page

A command is a block that begins with ``$ ``; the comment after it holds patterns that must be found in
what the page shows and in what is printed now.  The rest is compared as the shape of its lines, since
addresses, times, sizes and what the server's workers happen to do are never the same twice.
"""

from __future__ import annotations

import difflib
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "walkthrough.md"
SHOWN_PID = "31108"
SHOWN_DIRECTORY = "/srv"
SECONDS = "2"
ATTEMPTS = 4
_PAUSE = 5.0
"""Seconds after which other processes may have ended."""
MIN_SIMILARITY = 0.5
"""Part of the lines of a block that must have the shape they have in the page."""
_BLOCK = re.compile(
    r"```console\n\$ (?P<command>.*)\n(?P<output>(?:.*\n)*?)```\n<!-- shows\n(?P<shows>(?:.*\n)*?)-->\n"
)
_NUMBER = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|[+-]?\d[\d.,:]*")
_RESULT = re.compile(r"(\) += \S+| <unfinished \.\.\.>)$")


class Block(NamedTuple):
    """A command in the page."""

    command: str
    output: str
    shows: tuple[str, ...]


def blocks(page: str) -> list[Block]:
    """The commands of the page, in their order."""
    found = _BLOCK.finditer(page)
    return [Block(match["command"], match["output"], tuple(match["shows"].splitlines())) for match in found]


class Server:
    """The demo's server; commands that speak of SHOWN_PID mean it."""

    def __init__(self, directory: Path, process: subprocess.Popen[str]) -> None:
        self._directory = directory
        self._process = process

    def run(self, command: str) -> str:
        """What a command prints, stdout and stderr, as the page shows it.  Raises where it fails."""
        pid = str(self._process.pid)
        ended = subprocess.run(
            ["bash", "-c", re.sub(rf"\b{SHOWN_PID}\b", pid, command)],
            cwd=self._directory,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"$ {command}: status {ended.returncode}\n{ended.stdout}")
        output = re.sub(rf"\b{pid}\b", SHOWN_PID, ended.stdout).replace(str(self._directory), SHOWN_DIRECTORY)
        output = output.replace(f"{ROOT}/", "")  # where this checkout lies
        return "".join(f"{line.rstrip()}\n" for line in output.splitlines())

    def was_late(self) -> bool:
        """Whether its timer has been, since this was asked last: then it showed no period."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        return bool(select.select([pipe], [], [], 0)[0] and os.read(pipe, 1 << 16))


@contextmanager
def server() -> Iterator[Server]:
    """Start the server; it ends with the block."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        compiler = os.environ.get("CC", "cc")
        build = [compiler, "-O2", "-g", "-pthread", "-o", f"{name}/app_server", "demo/app_server.c"]
        subprocess.run(build, cwd=ROOT, check=True)
        with subprocess.Popen([f"{name}/app_server", SECONDS], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                yield Server(directory, process)
            finally:
                process.kill()


def shape(output: str) -> list[str]:
    """The lines without what differs from run to run; strace leaves some results for another line."""
    return [
        re.sub(r"\s+", " ", _NUMBER.sub("N", _RESULT.sub("", line))).strip() for line in output.splitlines()
    ]


def complaints(block: Block, printed: str) -> list[str]:
    """How what is printed differs from what the page shows."""
    differences = [
        f"{where} lacks {pattern!r}"
        for pattern in block.shows
        for where, text in (("the page", block.output), ("what is printed now", printed))
        if not re.search(pattern, text, re.MULTILINE)
    ]
    similarity = difflib.SequenceMatcher(None, shape(block.output), shape(printed), autojunk=False).ratio()
    if similarity < MIN_SIMILARITY:
        differences.append(f"only {similarity:.0%} of the lines look as in the page")
    return [f"$ {block.command}: {one}" for one in differences] + ([printed] if differences else [])


def judged(block: Block, running: Server) -> list[str]:
    """Run a command, again where the machine woke the server late; return what the page has wrong.

    ``scan`` shares its time among all processes of the machine: where others have more exited threads, it
    cannot tell of the server's, and is run again as well.
    """
    for _ in range(ATTEMPTS):
        running.was_late()
        differences = complaints(block, running.run(block.command))
        is_undecided = "cannot tell whether" in "".join(differences)
        if not differences or not (running.was_late() or is_undecided):
            break
        time.sleep(_PAUSE if is_undecided else 0)
    return differences


def missing_tool(command: str) -> str:
    """The first program of a command that this machine lacks; empty where it has all."""
    return next(
        (tool for tool in ("pidstat", "strace") if tool in command.split() and not shutil.which(tool)), ""
    )


def check() -> list[str]:
    """Run every command; return what the page has wrong."""
    found = blocks(PAGE.read_text())
    differences = [] if found else ["the page has no commands"]
    with server() as running:
        for block in found:
            tool = missing_tool(block.command)
            if tool:
                print(f"not run, {tool} is not installed: $ {block.command}", file=sys.stderr)
            else:
                differences += judged(block, running)
    return differences


def write() -> None:
    """Run every command and put what it prints into the page."""
    with server() as running:

        def renewed(match: re.Match[str]) -> str:
            before, after = match.span("output")
            start = match.start()
            return f"{match[0][: before - start]}{running.run(match['command'])}{match[0][after - start :]}"

        PAGE.write_text(_BLOCK.sub(renewed, PAGE.read_text()))


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif sys.argv[1:] == ["check"]:
        wrong = check()
        print("\n".join(wrong))
        sys.exit(1 if wrong else 0)
    else:
        sys.exit(__doc__)
