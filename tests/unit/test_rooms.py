# SPDX-License-Identifier: Apache-2.0
"""The rooms that CONTRIBUTING.md calls pure know of nothing but each other and the ground floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ebpftrace"
PURE = {"ledger", "diagnosis", "anatomy", "growth", "trace", "known"}
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imported_rooms(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ebpftrace.")} & ROOMS


@pytest.mark.parametrize("room", sorted(PURE))
def test_a_pure_room_imports_only_pure_ones(room: str) -> None:
    modules = list((PACKAGE / room).rglob("*.py"))
    assert modules
    assert {module.name: others for module in modules if (others := imported_rooms(module) - PURE)} == {}
