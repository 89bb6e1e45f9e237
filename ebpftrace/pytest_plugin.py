# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: a thread that a test or fixture starts and does not join is an error of it.

docs/pytest.md explains it.  pytest imports this module in every run, so it imports nothing heavy, and does
nothing but declare options unless it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ebpftrace.pytest_session import ThreadLeaks

MODES = ("auto", "on", "off")
_MARKER = (
    "thread_leaks(limit=0, exclude=()): how many unjoined threads the test may leave (None: any number), and "
    "patterns of suppressions for those that do not count"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """As pytest asks for it."""
    group = parser.getgroup("thread leaks", "threads that are not joined (ebpftrace)")
    group.addoption(
        "--thread-leaks",
        choices=MODES,
        metavar="auto|on|off",
        help="Report threads that tests leave unjoined as errors; where this machine cannot trace, on fails, "
        "auto goes on without.  Default: thread_leaks of the ini file, else off.",
    )
    group.addoption("--thread-leaks-report", metavar="FILE", help="Write the report as JSON there.")
    parser.addini("thread_leaks", "Report threads that tests leave unjoined: auto, on or off.", default="off")
    parser.addini(
        "thread_leaks_exclude",
        "Patterns of suppressions (a function, name=GLOB, file=GLOB ...) of threads that do not count.",
        type="linelist",
        default=[],
    )
    parser.addini("thread_leaks_baseline", "Baseline file: only leaks that it lacks count.", default="")


def pytest_configure(config: pytest.Config) -> None:
    """As pytest asks for it."""
    config.addinivalue_line("markers", _MARKER)
    option = config.getoption("--thread-leaks")
    mode = str(config.getini("thread_leaks")) if option is None else option
    if mode not in MODES:
        raise pytest.UsageError(f"thread_leaks is {mode!r} in the ini file: it can be {', '.join(MODES)}")
    if mode == "off" or config.option.collectonly:
        return
    from ebpftrace.pytest_session import register

    register(config, mode)


@pytest.fixture
def thread_leaks() -> ThreadLeaks:
    """Threads of this process that have exited and were not joined since the test began.

    It needs neither a tracer nor root, and works where the plugin is off.
    """
    from ebpftrace.pytest_session import ThreadLeaks

    return ThreadLeaks()
