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
    result = subprocess.run(
        [sys.executable, str(script), "check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
