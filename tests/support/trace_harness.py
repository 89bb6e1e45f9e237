# SPDX-License-Identifier: Apache-2.0
"""Traces of `ebpftrace trace` and of strace, normalised so that they can be compared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict

from harness import PATIENCE, ROOT

CALLS = "mmap,munmap,mremap,brk,mprotect,madvise,clone,clone3,fork,vfork,exit,exit_group,execve"
TRACE = (sys.executable, "-m", "ebpftrace", "trace")
STRACE = ("strace", "-f", "-e", f"trace={CALLS}")

_LINE = re.compile(r"(?P<tid>\d+) +(?P<rest>.*)")
_UNFINISHED = re.compile(r"(?P<begun>.*?) ?<unfinished \.\.\.>(?P<never>\) += \?)?$")
_PID_CHANGED = re.compile(r"(?P<begun>.*?) ?<pid changed to (?P<leader>\d+) \.\.\.>")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
# A task that is replaced in the midst of a call strace does not follow: the line is not ended.
_UNKNOWN_CALL = re.compile(r"\d+ +\?\?\?\((?=\d+ )")
_SIGNAL = re.compile(r"--- SIG\w+ \{.*\} ---")
_CLEARED = re.compile(r"parent_tid=\[0\](?P<rest>.* = (?P<child>task\d+))$")
_SUPERSEDED = re.compile(r"\+\+\+ superseded by execve in pid (\d+) \+\+\+")
_STARTED = re.compile(rf"(?:clone3?|v?fork)\(.* = (\d+)|{_SUPERSEDED.pattern}")
_ADDRESS = re.compile(r"0x[0-9a-f]{5,}(?P<low>[0-9a-f]{3})\b")
_TID = re.compile(r"(?<=parent_tid=\[)\d+(?=\])|(?<= = )\d+$|(?<=superseded by execve in pid )\d+")


def run(*command: object, stdin: str = "go\n") -> subprocess.CompletedProcess[str]:
    """Runs to the end."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def whole_lines(text: str) -> list[tuple[str, str]]:
    """(tid, line), with the halves of what strace had to cut joined where the call returned."""
    begun: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        match = _LINE.fullmatch(_UNKNOWN_CALL.sub("", line))
        assert match, f"no line of a trace: {line!r}"
        tid, rest = match["tid"], match["rest"]
        if _SIGNAL.fullmatch(rest):
            continue
        changed = _PID_CHANGED.fullmatch(rest)
        if changed:
            begun[changed["leader"]] = changed["begun"]
            continue
        superseded = _SUPERSEDED.fullmatch(rest)
        if superseded and superseded[1] in begun:  # where another line came between, strace tells no change
            begun[tid] = begun.pop(superseded[1])
        unfinished = _UNFINISHED.fullmatch(rest)
        resumed = _RESUMED.fullmatch(rest)
        if unfinished:
            if unfinished["never"]:  # an exit that another line came between
                lines.append((tid, f"{unfinished['begun']}) = ?"))
            else:
                begun[tid] = unfinished["begun"]
            continue
        if resumed:
            # strace -z forgets how an execve began that changed its tid.
            rest = begun.pop(tid, "execve(") + resumed["rest"]
        lines.append((tid, rest))
    lines += [(tid, f"{rest}) = ?") for tid, rest in begun.items()]
    return lines


def by_task(text: str) -> list[list[str]]:
    """The lines of each task in order, tasks in the order of their first line.

    Normalised: addresses (but whether a page begins there), tids, the spaces before the result.
    strace's lines about signals are left out.
    """
    lines = whole_lines(text)
    names: dict[str, str] = {}
    for tid, line in lines:
        names.setdefault(tid, f"task{len(names)}")
        match = _STARTED.fullmatch(line)
        if match:
            names.setdefault(match[1] or match[2], f"task{len(names)}")
    tasks: defaultdict[str, list[str]] = defaultdict(list)
    for tid, line in lines:
        line = re.sub(r" += ", " = ", line)
        line = _ADDRESS.sub(lambda m: "ADDRESS" if m["low"] == "000" else "ADDRESS+", line)
        if line.startswith(("clone3(", "execve(")):
            # They point into the stack, whose random place makes one in some hundred begin a page.
            line = line.replace("ADDRESS+", "ADDRESS")
        line = _TID.sub(lambda m: names.get(m[0], m[0]), line)
        # The thread's exit clears its number where clone put it: strace may look before or after.
        line = _CLEARED.sub(r"parent_tid=[\g<child>]\g<rest>", line)
        tasks[tid].append(line)
    return list(tasks.values())
