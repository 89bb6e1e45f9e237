# SPDX-License-Identifier: Apache-2.0
"""Real servers, installed by install.sh, traced under load."""

from __future__ import annotations

import os
import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _root_and_interrupts() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    signal.signal(signal.SIGINT, signal.default_int_handler)
