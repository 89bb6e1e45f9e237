# SPDX-License-Identifier: Apache-2.0
"""The files for forges, against the schemas that check-jsonschema brings."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness import ROOT


def complaints(schema: str, *files: Path) -> str:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}"]
    command += ["--data-transform", "gitlab-ci"] if schema == "gitlab-ci" else []
    ended = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def test_workflows_and_actions_of_github() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) > 1
    assert not complaints("github-workflows", *workflows)
    assert not complaints("github-actions", *(ROOT / ".github" / "actions").glob("*/action.yml"))


def test_the_snippet_for_gitlab(tmp_path: Path) -> None:
    (text,) = re.findall(r"(?<=\n\n)    leaks:\n(?:    .*\n)+", (ROOT / "docs" / "ci.md").read_text())
    snippet = tmp_path / "gitlab-ci.yml"
    snippet.write_text(textwrap.dedent(text))
    assert not complaints("gitlab-ci", snippet)
    snippet.write_text(textwrap.dedent(text).replace("script:", "skript:"))
    assert complaints("gitlab-ci", snippet)


@pytest.mark.parametrize("given", ["uses:", "with:"])
def test_the_snippet_for_github_is_a_step(given: str, tmp_path: Path) -> None:
    (text,) = re.findall(
        r"(?<=\n\n)    - uses: OWNER.*\n(?:    .*\n)+", (ROOT / "docs" / "ci.md").read_text()
    )
    steps = textwrap.indent(textwrap.dedent(text), " " * 6)
    workflow = tmp_path / "workflow.yml"
    head = "name: x\non: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n"
    workflow.write_text(head + steps)
    assert not complaints("github-workflows", workflow)
    workflow.write_text(head + steps.replace(given, "usse:"))
    assert complaints("github-workflows", workflow)
