# SPDX-License-Identifier: Apache-2.0
"""The kernels of a run: what ran on each, and what came of it."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional
from xml.etree import ElementTree

from vmtest import guest
from vmtest.foreign import unpacked
from vmtest.kernels import Kernel
from vmtest.packages import Unavailable, fetch
from vmtest.selection import EMULATED_TESTS, ENVIRONMENT, TEST_SECONDS, TESTS
from vmtest.userlands import Files, made, this_machine

_BOOTS = 3
"""How often a kernel is booted when its machine dies."""

_SHARE_OF_TESTS = 0.9
"""Of a machine's time; the rest is for boot and report."""

_OUTCOMES = {"failure": "failed", "error": "failed", "skipped": "skipped"}


@dataclass
class Result:
    """What came of one kernel."""

    kernel: Kernel
    unpacked: Optional[Path] = None
    """The kernel's directory, named by its release; None where it could not be had."""
    files: Optional[Files] = None
    """What its machine sees; None where they could not be had."""
    verdict: str = ""
    """"passed", "failed", or what kept it from running; empty until that is known."""
    seconds: float = 0.0
    boots: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """Tests by outcome."""
    failed: list[str] = field(default_factory=list)
    """As pytest names them."""
    flaky: list[str] = field(default_factory=list)
    """Those that failed, and passed in a second machine."""

    @property
    def passed(self) -> bool:
        """It booted, and every test that ran there passed."""
        return self.verdict == "passed"

    @property
    def is_missing(self) -> bool:
        """It could not be had, so it says nothing about us."""
        return self.unpacked is None or self.files is None


@dataclass(frozen=True)
class Matrix:
    """How the kernels are run."""

    cache: Path
    """Where kernels and consoles are kept."""
    seconds: float
    """Limit for one kernel; each of its machines has what is left of it."""
    acceleration: str
    """Of QEMU: "tcg" or "kvm"."""
    say: Callable[[str], None]
    """Prints progress for the user; it is called from several threads."""
    retry_failed: bool = False
    """Run what failed once more, in a second machine."""
    interrupted: threading.Event = field(default_factory=threading.Event)
    """Set once the user wants no more."""

    def run(self, kernels: list[Kernel]) -> list[Result]:
        """Run the tests on each kernel, as many at a time as there are CPUs: compilers use one each.

        Raises guest.CannotBoot where this machine can run no guest, CalledProcessError where the
        programs to be traced do not build.
        """
        results = [self._fetched(kernel) for kernel in kernels]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            try:
                return list(pool.map(self._tested, results))
            except KeyboardInterrupt:
                # The terminal's signal ends the machines too.
                self.interrupted.set()
                raise

    def _fetched(self, kernel: Kernel) -> Result:
        result = Result(kernel)
        try:
            result.unpacked = fetch(kernel, self.cache)
            result.files = self._files(kernel)
        except Unavailable as error:
            self.say(f"{kernel.name}: NOT TESTED: {error}")
            result.verdict = "not to be had"
        return result

    def _files(self, kernel: Kernel) -> Files:
        if kernel.machine != os.uname().machine:
            return unpacked(kernel, self.cache, self.say)
        return made(kernel.userland, self.cache, self.say) if kernel.userland else this_machine()

    def _tested(self, result: Result) -> Result:
        if result.is_missing:
            return result
        started = time.monotonic()
        end = started + self.seconds
        self._run(result, TESTS if result.kernel.machine == os.uname().machine else EMULATED_TESTS, end)
        if self.retry_failed and result.verdict == "failed" and result.failed:
            self.say(f"{result.kernel.name}: what failed runs once more")
            second = Result(result.kernel, result.unpacked, result.files)
            self._run(second, result.failed, end)
            result.boots += second.boots
            if second.passed and second.counts.get("passed") == len(result.failed):
                result.verdict = "passed"
                result.failed, result.flaky = [], result.failed
        result.seconds = time.monotonic() - started
        return result

    def _run(self, result: Result, tests: Sequence[str], end: float) -> None:
        assert result.unpacked is not None
        assert result.files is not None
        name = result.kernel.name
        console = self.cache / "consoles" / f"{name}.log"
        console.parent.mkdir(exist_ok=True)
        while not result.verdict:
            result.boots += 1
            seconds = max(0.0, end - time.monotonic())
            self.say(f"{name}: testing Linux {result.unpacked.name}, console in {console}")
            outcome = guest.run(
                result.unpacked,
                result.files.root,
                self._command(result.files, tests, seconds),
                console,
                seconds,
                self.acceleration,
                result.kernel.machine,
                result.kernel.cpu,
            )
            if outcome.ending is guest.Ending.RETURNED:
                _judge(result, outcome)
            elif outcome.ending is guest.Ending.TIMED_OUT:
                result.verdict = f"no end in {self.seconds:.0f} s"
            elif result.boots == _BOOTS or self.interrupted.is_set():
                result.verdict = "machine died"
            reported = result.verdict or "the machine died; once more"
            output = "" if result.passed else console.read_text(errors="replace")
            self.say(f"{output}{name}: {reported}")

    def _command(self, files: Files, tests: Sequence[str], seconds: float) -> str:
        settings = " ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())
        pytest = [files.python, "-m", "pytest", "-p", "no:cacheprovider", "--durations=0"]
        # Failures are reported even when the time is up.
        pytest += [f"--session-timeout={seconds * _SHARE_OF_TESTS:.0f}", f"--timeout={TEST_SECONDS}"]
        pytest += ["--junitxml=/run/report.xml"]
        pytest += tests
        return f"cd {shlex.quote(files.checkout)} && {settings} {shlex.join(pytest)}\n"


def table(results: list[Result]) -> str:
    """Return the results as text, a line for each kernel."""
    rows = [("kernel", "release", "verdict", "tests", "seconds", "boots")]
    for result in results:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.counts.items()))
        figures = (counts, f"{result.seconds:.0f}", str(result.boots))
        release = result.unpacked.name if result.unpacked else ""
        rows.append((result.kernel.name, release, result.verdict, *figures))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows
    )


def read_report(report: str) -> tuple[dict[str, int], list[str]]:
    """Return how many tests a JUnit report has by outcome, and those that failed, as pytest takes them.

    Raises ElementTree.ParseError where it is none.
    """
    counts: dict[str, int] = {}
    failed = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        outcome = next((_OUTCOMES[child.tag] for child in case if child.tag in _OUTCOMES), "passed")
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome == "failed":
            module = case.get("classname", "").replace(".", "/")
            failed.append(f"{module}.py::{case.get('name')}")
    return counts, failed


def _judge(result: Result, outcome: guest.Outcome) -> None:
    try:
        result.counts, result.failed = read_report(outcome.report)
    except ElementTree.ParseError:
        result.verdict = f"no tests ran (status {outcome.status})"
        return
    ran = result.counts.get("passed", 0) + result.counts.get("failed", 0)
    result.verdict = "passed" if outcome.status == 0 and ran else "failed"
