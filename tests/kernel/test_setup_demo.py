# SPDX-License-Identifier: Apache-2.0
"""README's first command, as a user types it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_make_demo_shows_the_leak() -> None:
    result = subprocess.run(
        ["make", "-s", "demo"],
        cwd=ROOT,
        env={**os.environ, "DEMO_SECONDS": "6"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "never-joined-thread" in result.stdout
    assert "minute_job" in result.stdout
    assert "10489856" in result.stdout
    server = re.search(r"\(pid (\d+)\)", result.stdout)
    assert server
    assert name_of(server[1]) != "app_server\n"


def name_of(pid: str) -> str:
    """Empty where there is no such process; soon it may be another one."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
