# SPDX-License-Identifier: Apache-2.0
"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings


def pytest_configure() -> None:
    """No example fails for being slow: that tells of the machine's load, not of the code."""
    slow = [HealthCheck.too_slow]
    settings.register_profile("any_machine", deadline=None, suppress_health_check=slow, print_blob=True)
    settings.load_profile("any_machine")


@pytest.fixture(autouse=True, scope="session")
def _interrupts_arrive() -> None:
    """A shell starts background jobs with SIGINT ignored, and every child would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
