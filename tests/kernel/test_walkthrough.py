# SPDX-License-Identifier: Apache-2.0
"""The walk-through in docs/ shows what the commands print."""

from __future__ import annotations

import subprocess
import sys

import harness
import pytest


@pytest.mark.timeout(900)
def test_page_shows_what_is_printed() -> None:
    script = harness.ROOT / "scripts" / "walkthrough.py"
    told = subprocess.run([sys.executable, str(script), "check"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
