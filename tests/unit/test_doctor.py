# SPDX-License-Identifier: Apache-2.0
"""What doctor says of machines that lack something: without root, and without a usable bcc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import click
import jsonschema
import pytest

from ebpftrace.capture.checks.libraries import llvm_version
from ebpftrace.model import Check
from ebpftrace.report.doctor import SCHEMA, as_json, as_text, can_trace

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = Path("/usr/bin/python3")

GOOD = Check("machine", True, "x86_64")
OPTIONAL = Check("drgn", False, "not installed", "pip install drgn", required=False)
FATAL = Check("bcc", False, "not installed", "apt-get install python3-bpfcc")


def doctor_json(python: Path, *options: str, modules: str = "") -> dict[str, Any]:
    """The checks by name, of ``doctor`` run by another Python that finds click in our own place."""
    libraries = Path(click.__file__).resolve().parents[1]
    result = subprocess.run(
        [str(python), *options, "-m", "ebpftrace", "doctor", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{modules}:{libraries}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.stderr == ""
    assert result.returncode == 1
    report = json.loads(result.stdout)
    jsonschema.validate(report, json.loads((ROOT / "ebpftrace/report/schema/doctor-1.json").read_text()))
    assert report["can_trace"] is False
    return {check["name"]: check for check in report["checks"]}


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/lib/x86_64-linux-gnu/libLLVM-14.so.1", "14"),  # Debian 12
        ("/usr/lib/llvm-18/lib/libLLVM.so.1", "18"),  # Ubuntu 24.04
        ("/usr/lib64/libLLVM.so.20.1", "20"),  # Fedora
        ("/usr/lib64/llvm19/lib/libLLVM.so.19.1", "19"),
        ("/usr/lib/llvm-14/lib/libclang-cpp.so.14", None),
    ],
)
def test_llvm_version(path: str, version: Optional[str]) -> None:
    libc = "7f00 r-xp 00000000 08:01 7 /usr/lib/x86_64-linux-gnu/libc.so.6"
    assert llvm_version(f"{libc}\n7f10 r-xp 00000000 08:01 9                 {path}\n") == version


def test_only_required_things_decide() -> None:
    assert can_trace([GOOD, OPTIONAL])
    assert not can_trace([GOOD, FATAL])


def test_text_shows_every_check_and_remedy() -> None:
    lines = as_text([GOOD, OPTIONAL, FATAL]).splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["ok", "lacking", "->", "MISSING", "->"]
    assert lines[4].endswith(FATAL.remedy)
    assert lines[-1] == "This machine cannot trace."
    assert as_text([GOOD, OPTIONAL]).endswith("This machine can trace.")


def test_json_carries_the_same() -> None:
    report = json.loads(as_json([GOOD, FATAL]))
    assert report["schema"] == SCHEMA
    assert report["checks"][0]["remedy"] is None
    assert report["checks"][1] == {
        "name": "bcc",
        "ok": False,
        "required": True,
        "what": "not installed",
        "remedy": "apt-get install python3-bpfcc",
    }


def test_another_project_named_bcc(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("__version__ = '0.1.10'\n")
    bcc = doctor_json(Path(sys.executable), modules=str(tmp_path))["bcc"]
    assert "PyPI" in bcc["what"]
    assert bcc["remedy"].startswith("pip uninstall bcc")


def test_broken_bcc(tmp_path: Path) -> None:
    (tmp_path / "bcc.py").write_text("raise OSError('libbcc.so.0: cannot open\\nsecond line')\n")
    bcc = doctor_json(Path(sys.executable), modules=str(tmp_path))["bcc"]
    assert bcc["what"] == "bcc cannot be imported (libbcc.so.0: cannot open)"


@pytest.mark.skipif(not SYSTEM_PYTHON.exists(), reason="no system Python")
def test_no_bcc_at_all() -> None:
    # -S: without the distribution's modules, as on a machine that has none of them
    bcc = doctor_json(SYSTEM_PYTHON, "-S")["bcc"]
    assert bcc["what"].endswith("is not installed")
    assert "install" in bcc["remedy"]
    assert "PyPI" in bcc["remedy"]


def test_venv_that_cannot_see_bcc(tmp_path: Path) -> None:
    pytest.importorskip("bcc")
    subprocess.run([str(SYSTEM_PYTHON), "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    bcc = doctor_json(tmp_path / "venv/bin/python")["bcc"]
    assert "cannot see the bcc of" in bcc["what"]
    assert "--system-site-packages" in bcc["remedy"]
