"""The kernels one after the other: what ran on each, and what came of it."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from vmtest import guest
from vmtest.kernels import Kernel
from vmtest.packages import NoKernel, fetch
from vmtest.selection import ENVIRONMENT, TEST_SECONDS, TESTS

ROOT = Path(__file__).resolve().parent.parent
_BOOTS = 3
"""How often a kernel is booted when its machine dies; a test that failed is not run again."""

_OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


@dataclass
class Result:
    """What came of one kernel."""

    kernel: Kernel
    verdict: str
    """"passed", "failed", or what kept it from running."""
    release: str = ""
    seconds: float = 0.0
    boots: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """Tests by outcome."""
    failed: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """It booted, and every test that ran there passed."""
        return self.verdict == "passed"


def run(
    kernels: list[Kernel], cache: Path, seconds: float, acceleration: str, say: Callable[[str], None]
) -> list[Result]:
    """Run the tests on each kernel; ``seconds`` is the limit for one machine.

    Raises guest.CannotBoot where this machine can run no guest, CalledProcessError where the
    programs to be traced do not build.
    """
    # Here, since a compiler is slow in a guest.
    subprocess.run(["make", "-s", "-C", str(ROOT / "tests" / "targets")], check=True)
    return [_run_one(kernel, cache, seconds, acceleration, say) for kernel in kernels]


def table(results: list[Result]) -> str:
    """Return the results as text, a line for each kernel."""
    rows = [("kernel", "release", "verdict", "tests", "seconds", "boots")]
    for result in results:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.counts.items()))
        figures = (counts, f"{result.seconds:.0f}", str(result.boots))
        rows.append((result.kernel.name, result.release, result.verdict, *figures))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def read_report(report: str) -> tuple[dict[str, int], list[str]]:
    """Return how many tests a JUnit report has by outcome, and the names of those that failed.

    Raises ElementTree.ParseError where it is none.
    """
    counts: dict[str, int] = {}
    failed = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        outcome = next((_OUTCOMES[child.tag] for child in case if child.tag in _OUTCOMES), "passed")
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "failed":
            failed.append(f"{case.get('classname')}.{case.get('name')}")
    return counts, failed


def _run_one(
    kernel: Kernel, cache: Path, seconds: float, acceleration: str, say: Callable[[str], None]
) -> Result:
    try:
        unpacked = fetch(kernel, cache)
    except NoKernel as error:
        say(f"{kernel.name}: NOT TESTED: {error}")
        return Result(kernel, "no kernel")
    console = cache / "consoles" / f"{kernel.name}.log"
    console.parent.mkdir(exist_ok=True)
    result = Result(kernel, "", unpacked.name)
    started = time.monotonic()
    while not result.verdict:
        result.boots += 1
        say(f"{kernel.name}: testing Linux {unpacked.name}, console in {console}")
        outcome = guest.run(unpacked, _command(), console, seconds, acceleration)
        if outcome.ending is guest.Ending.RETURNED:
            _judge(result, outcome)
        elif outcome.ending is guest.Ending.TIMED_OUT:
            result.verdict = f"no end in {seconds:.0f} s"
        elif result.boots == _BOOTS:
            result.verdict = "machine died"
        if not result.passed:
            say(console.read_text(errors="replace"))
            say(f"{kernel.name}: {result.verdict or 'the machine died, once more'}")
    result.seconds = time.monotonic() - started
    return result


def _judge(result: Result, outcome: guest.Outcome) -> None:
    try:
        result.counts, result.failed = read_report(outcome.report)
    except ElementTree.ParseError:
        result.verdict = f"no tests ran (status {outcome.status})"
        return
    ran = result.counts.get("passed", 0) + result.counts.get("failed", 0)
    result.verdict = "passed" if outcome.status == 0 and ran else "failed"


def _command() -> str:
    settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0"]
    pytest += [f"--timeout={TEST_SECONDS}", "--junitxml=/run/report.xml", *TESTS]
    return f"cd {shlex.quote(str(ROOT))} && {settings} {shlex.join(pytest)}\n"
