# SPDX-License-Identifier: Apache-2.0
"""The man pages are those of the commands as they are, and man(1) can read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ebpftrace.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "man"
SECTIONS = ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "OVERHEAD", "SEE ALSO")


def test_pages_are_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "man.py"), str(tmp_path)], check=True, timeout=120)
    made = {page.name: page.read_text() for page in tmp_path.iterdir()}
    kept = {page.name: page.read_text() for page in PAGES.iterdir()}
    assert kept == made, "run make man"


@pytest.mark.parametrize("command", COMMANDS)
def test_page_has_every_section(command: str) -> None:
    text = (PAGES / f"ebpftrace-{command}.1").read_text()
    assert [section for section in SECTIONS if f"\n.SH {section}\n" not in text] == []


def test_readme_has_the_same_exit_statuses() -> None:
    page = (PAGES / "ebpftrace-mmap-leaks.1").read_text().partition("\n.SH EXIT STATUS\n")[2]
    in_page = re.findall(r"^\\fB(\d+)\\fP$", page.partition("\n.SH ")[0], re.MULTILINE)
    table = (ROOT / "README.md").read_text().partition("| exit status | meaning |\n")[2].partition("\n\n")[0]
    in_readme = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    assert in_readme == in_page != []


@pytest.mark.parametrize("command", COMMANDS)
def test_figures_of_the_cost_are_only_where_they_are_measured(command: str) -> None:
    overhead = (PAGES / f"ebpftrace-{command}.1").read_text().partition("\n.SH OVERHEAD\n")[2]
    assert not re.search(r"\d\s*(?:times|ns|nano|us|micro|%|percent)", overhead.partition("\n.SH ")[0])


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.glob("*.1")))
def test_page_is_read_without_a_warning(page: str) -> None:
    result = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", str(PAGES / page)], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    assert "User Commands" in result.stdout
