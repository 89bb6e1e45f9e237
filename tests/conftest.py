# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

from __future__ import annotations

import fnmatch
import signal
import sys
from pathlib import Path
from typing import Union

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

_ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        help=f"fail where a test is skipped for a reason not in {_ALLOWED_SKIPS.name}",
    )


class _StrictSkips:
    """Fails the run where a test was skipped for a reason not allowed: no coverage is lost silently."""

    def __init__(self) -> None:
        lines = _ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
        self._allowed = [line for line in lines if line and not line.startswith("#")]
        self._others: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: Union[pytest.TestReport, pytest.CollectReport]) -> None:
        if not report.skipped or not isinstance(report.longrepr, tuple):
            return
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not any(fnmatch.fnmatchcase(reason, pattern) for pattern in self._allowed):
            self._others[report.nodeid] = reason

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._others:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, reason in self._others.items():
            terminalreporter.write_line(
                f"SKIP NOT ALLOWED {test}: {reason} ({_ALLOWED_SKIPS.name})", red=True
            )


def pytest_configure(config: pytest.Config) -> None:
    """No example fails for being slow: that tells of the machine's load, not of the code."""
    slow = [HealthCheck.too_slow]
    settings.register_profile("any_machine", deadline=None, suppress_health_check=slow, print_blob=True)
    settings.load_profile("any_machine")
    if config.getoption("--strict-skips") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_StrictSkips(), "strict-skips")


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> None:
    """A shell starts background jobs with SIGINT ignored, and every child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
