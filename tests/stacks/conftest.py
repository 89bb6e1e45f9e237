# SPDX-License-Identifier: Apache-2.0
"""Stacks of programs of many languages; the harness is that of the kernel tests."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "kernel"), str(TESTS / "servers")]
