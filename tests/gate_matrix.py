# SPDX-License-Identifier: Apache-2.0
"""``python tests/gate_matrix.py``: mmap-leaks as a gate beside ThreadSanitizer and valgrind's memcheck.

Prints the tables of docs/ci.md.  As root; gcc, clang and valgrind are wanted, and left out where they are
missing.  Its arguments are the parts to run: side_by_side, run_times, alone, matrix; all of them by default.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from endings import HEALTHY, LEAKING, STATUSES, Ending, endings  # noqa: E402
from harness import build, leaks  # noqa: E402

_GATE = (sys.executable, "-m", "ebpftrace", "mmap-leaks", "--fail-on-leak", "--json", "-q")
_LEAK = 3
_TSAN_STATUS = 66
_MEMCHECK_STATUS = 99
_MEMCHECK = (
    "valgrind",
    "-q",
    "--leak-check=full",
    "--errors-for-leak-kinds=definite,possible",
    f"--error-exitcode={_MEMCHECK_STATUS}",
)
_TAILS_MS = (0, 2, 50, 300, 3000)
_AT_ONCE = 60
_LONGEST_RUN = 120
_LONGEST_MATRIX = 3000
_ALONE = ("leak1", "own_stack", "joined", "at_end")
"""Bodies of the runs that each have a tracer of their own."""
_ROUNDS = 3
_LOADS = (("sorts", "8 threads that sort"), ("churn2000", "2,000 threads created and joined"))


class Run(NamedTuple):
    """How a command ended."""

    status: Optional[int]
    """As a shell tells it; None where it did not end in time."""
    stdout: str
    stderr: str
    cpu_seconds: float
    """Of the command and what it waited for."""


class Tool(NamedTuple):
    """What finds leaks, or nothing that does."""

    name: str
    command: tuple[str, ...]
    """Before the program and its arguments."""
    program: Path
    leak_status: Optional[int]


def run(command: Sequence[object], longest: float = _LONGEST_RUN, **environment: str) -> Run:
    """Run a command to its end, at most so many seconds, with its standard input closed."""
    before = os.times()
    try:
        ended = subprocess.run(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=longest,
            env={**os.environ, **environment},
            check=False,
            cwd=ROOT,
        )
    except subprocess.TimeoutExpired:
        return Run(None, "", "", 0.0)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    status = ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
    return Run(status, ended.stdout, ended.stderr, used)


@dataclass
class Score:
    """How many of how many were right."""

    right: int = 0
    total: int = 0
    wrong: str = ""
    """The first that was not."""

    def add(self, is_right: bool, what: str) -> None:
        """Take in one."""
        self.right += is_right
        self.total += 1
        if not is_right and not self.wrong:
            self.wrong = what

    def __str__(self) -> str:
        first = f" (the first wrong one: {self.wrong})" if self.wrong else ""
        return f"{self.right} of {self.total}{first}"


def matrix(directory: Path) -> list[str]:
    """All bodies, ends and tails, one tracer for each tail: lines of text."""
    leaking, healthy, ended = Score(), Score(), Score()
    lines = []
    for tail_ms in _TAILS_MS:
        place = directory / str(tail_ms)
        place.mkdir()
        lines.append(_runs_of(place, tail_ms, leaking, healthy, ended))
    return [
        *lines,
        f"- leaking: verdict, count and creating function right in {leaking}",
        f"- healthy: no leak in {healthy}",
        f"- exit status of the program right in {ended}",
    ]


def _runs_of(directory: Path, tail_ms: int, leaking: Score, healthy: Score, ended: Score) -> str:
    """All bodies and ends under one tracer; what came of the whole in a line."""
    runs, lines = {}, []
    for number, one in enumerate(endings([tail_ms])):
        name = f"p{number}"
        runs[name] = one
        (directory / name).symlink_to(build("finale"))
        command = f"{directory / name} {' '.join(one.arguments)}"
        lines.append(f"(sh -c '{command}' 2>/dev/null; echo {name} $? >>{directory}/statuses) &")
        if not (number + 1) % _AT_ONCE:
            lines.append("wait")
    script = directory / "script.sh"
    script.write_text("\n".join([*lines, "wait", "exit 0"]))
    began = time.monotonic()
    result = run([*_GATE, "--", "sh", script], _LONGEST_MATRIX)
    took = time.monotonic() - began
    reported = json.loads(result.stdout)
    found: dict[str, tuple[int, set[str], set[str]]] = {}
    for report in reported["reports"]:
        for finding in leaks(report):
            count, creators, verdicts = found.setdefault(report["target"]["comm"], (0, set(), set()))
            creators.add(creator(finding))
            verdicts.add(finding["verdict"])
            found[report["target"]["comm"]] = count + finding["count"], creators, verdicts
    statuses = dict(line.split() for line in (directory / "statuses").read_text().splitlines())
    for name, one in runs.items():
        what = f"{' '.join(one.arguments)}: {found.get(name)}"
        if one.leak is None:
            healthy.add(name not in found, what)
        else:
            right = one.leak.count, {one.leak.creator}, {one.leak.verdict}
            leaking.add(found.get(name) == right, what)
        ended.add(statuses.get(name) == str(one.status), f"{' '.join(one.arguments)}: {statuses.get(name)}")
    return (
        f"- {tail_ms} ms after the last leak: {len(runs)} runs, {len(STATUSES)} ways to end, {took:.0f} s; "
        f"gate status {result.status}, undecided {reported['undecided']}, {reported['processes']}"
    )


def creator(finding: dict[str, Any]) -> str:
    """The innermost function of the program itself."""
    frames = finding["stack"]["frames"]
    own = [frame["function"] for frame in frames if frame["module"].endswith("/finale")]
    return own[0] if own else ""


def alone(_directory: Path) -> list[str]:
    """Runs with a tracer each: the exit status of the gate."""
    score = Score()
    for number, (body, end) in enumerate((body, end) for body in _ALONE for end in STATUSES):
        one = Ending(body, _TAILS_MS[number % 4], end)
        result = run([*_GATE, "--", build("finale"), *one.arguments])
        expected = _LEAK if one.leak is not None else one.status
        score.add(result.status == expected, f"{' '.join(one.arguments)}: {result.status}")
    return [f"- {score.total} runs with a tracer each: exit status of the gate right in {score}"]


def tools(directory: Path) -> list[Tool]:
    """Those that are installed."""
    plain = build("finale")
    found = [Tool("ebpftrace", (*_GATE, "--"), plain, _LEAK)]
    for compiler in ("gcc", "clang"):
        program = directory / f"finale-{compiler}"
        source = ROOT / "tests" / "targets" / "finale.c"
        flags = ["-fsanitize=thread", "-O2", "-g", "-pthread", "-w"]
        if shutil.which(compiler) and run([compiler, *flags, "-o", program, source]).status == 0:
            found.append(Tool(f"TSan ({compiler})", (), program, _TSAN_STATUS))
    if shutil.which("valgrind"):
        found.append(Tool("memcheck", _MEMCHECK, plain, _MEMCHECK_STATUS))
    return found


def verdict(tool: Tool, one: Ending, directory: Path) -> str:
    """What the tool makes of it: a cell of the table."""
    # The program looks for the end of its threads in ways that are data races: that is not asked here.
    races = directory / "races"
    races.write_text("race:*\n")
    result = run([*tool.command, tool.program, *one.arguments], TSAN_OPTIONS=f"suppressions={races}")
    if result.status == tool.leak_status:
        return "leak"
    if result.status is None:
        return "no end"
    if result.status != one.status:
        return f"fails: {result.status}"
    return "-"


def side_by_side(directory: Path) -> list[str]:
    """Each body once, 300 ms, returns: a table."""
    installed = tools(directory)
    lines = [
        " | ".join(["| program", "truth", *(tool.name for tool in installed)]) + " |",
        "|---" * (2 + len(installed)) + "|",
    ]
    right = [[0, 0] for _ in installed]
    for body in (*LEAKING, *HEALTHY):
        one = Ending(body, 300, "return")
        cells = [verdict(tool, one, directory) for tool in installed]
        truth = f"{one.leak.count} of the child" if body == "forks" and one.leak else ""
        truth = truth or (str(one.leak.count) if one.leak is not None else "-")
        lines.append(" | ".join([f"| {body}", truth, *cells]) + " |")
        for score, cell in zip(right, cells):
            score[one.leak is None] += cell == ("-" if one.leak is None else "leak")
    for place, (what, total) in enumerate(
        (("leaks found", len(LEAKING)), ("healthy ones passed", len(HEALTHY)))
    ):
        lines.append(
            " | ".join([f"| **{what}**", str(total), *(str(score[place]) for score in right)]) + " |"
        )
    return lines


def run_times(directory: Path) -> list[str]:
    """CPU time of the program under each tool, as a multiple, and that of the tool: a table."""
    installed = tools(directory)
    lines = [
        " | ".join(["| CPU time of the program", "alone", *(tool.name for tool in installed)]) + " |",
        "|---" * (2 + len(installed)) + "|",
    ]
    for body, what in _LOADS:
        native = min(run([build("finale"), body, 0, "return"]).cpu_seconds for _ in range(_ROUNDS))
        cells = [f"{multiple(tool, body, directory) / native:.1f} x" for tool in installed]
        lines.append(" | ".join([f"| {what}", f"{native:.2f} s", *cells]) + " |")
    cells = []
    for tool in installed:
        begun = min(
            run([*tool.command, tool.program, "joined", 0, "return"]).cpu_seconds for _ in range(_ROUNDS)
        )
        cells.append(f"{begun:.2f} s")
    lines.append(" | ".join(["| a program that ends at once, tool included", "0.00 s", *cells]) + " |")
    return lines


def multiple(tool: Tool, body: str, directory: Path) -> float:
    """CPU seconds of the program itself, the least of some rounds."""
    if tool.leak_status != _LEAK:
        # It runs in the process of the program.
        return min(run([*tool.command, tool.program, body, 0, "return"]).cpu_seconds for _ in range(_ROUNDS))
    times = directory / "times"
    script = f"{tool.program} {body} 0 return; times >{times}"
    seconds = []
    for _ in range(_ROUNDS):
        run([*tool.command, "sh", "-c", script])
        children = times.read_text().splitlines()[1].split()
        seconds.append(sum(_seconds(one) for one in children))
    return min(seconds)


def _seconds(text: str) -> float:
    """Of "0m0.350000s", as times of a shell prints it."""
    minutes, _, rest = text.rstrip("s").partition("m")
    return 60 * int(minutes) + float(rest)


def machine() -> str:
    """What it was measured on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(':')[2].strip()}, {os.cpu_count()} cores, Linux {os.uname().release}"


_PARTS: dict[str, Callable[[Path], list[str]]] = {
    "side_by_side": side_by_side,
    "run_times": run_times,
    "alone": alone,
    "matrix": matrix,
}


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        print(machine(), end="\n\n", flush=True)
        for part in sys.argv[1:] or _PARTS:
            print("\n".join(_PARTS[part](directory)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
