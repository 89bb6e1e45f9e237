# SPDX-License-Identifier: Apache-2.0
"""A built wheel carries the BPF sources and works from any directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the wheel that was built from the source distribution."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(place), str(ROOT)], check=True, capture_output=True
    )
    (wheel,) = place.glob("*.whl")
    venv = place / "venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", str(venv)], check=True)
    subprocess.run([str(venv / "bin/pip"), "install", "-q", "--no-deps", str(wheel)], check=True)
    return venv


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command; only the libraries come from our own venv."""
    libraries = Path(click.__file__).resolve().parents[1]
    return subprocess.run(
        [str(installed / "bin/ebpftrace"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wheel_traces_from_any_directory(installed: Path, tmp_path: Path) -> None:
    result = run(installed, tmp_path, "mmap-leaks", "--json", "-o", "report.json", "--", "/bin/true")
    assert (result.returncode, result.stderr) == (0, "attached\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["window"]["ended_by"] == "target-exit"
    assert report["calls"]["mmap"] > 5


def test_wheel_is_all_that_doctor_asks_for(installed: Path, tmp_path: Path) -> None:
    result = run(installed, tmp_path, "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"our own, {installed}" in result.stdout
    assert "compiled, loaded and attached" in result.stdout


def test_wheel_holds_every_bpf_source(installed: Path) -> None:
    (carried,) = installed.glob("lib/python3*/site-packages/ebpftrace/bpf")
    ours = {path.relative_to(ROOT / "bpf") for path in (ROOT / "bpf").rglob("*.[ch]")}
    assert {path.relative_to(carried) for path in carried.rglob("*.[ch]")} == ours
