# SPDX-License-Identifier: Apache-2.0
"""The answer to one question about this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing this machine has or lacks."""

    name: str
    ok: bool
    what: str
    """One line: what is there, or what is wrong."""
    remedy: str = ""
    """The command or step that mends it; empty where ``ok`` or where nothing does."""
    required: bool = True
    """Nothing can be traced without it; the rest makes reports better."""
