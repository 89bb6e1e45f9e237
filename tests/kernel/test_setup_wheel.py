"""A built wheel carries the BPF sources and works from any directory."""

from __future__ import annotations

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


def test_wheel_traces_from_any_directory(installed: Path, tmp_path: Path) -> None:
    libraries = Path(click.__file__).resolve().parents[1]
    told = subprocess.run(
        [str(installed / "bin/ebpftrace"), "doctor"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(libraries)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert f"our own, {installed}" in told.stdout
    assert "compiled, loaded and attached" in told.stdout


def test_wheel_holds_every_bpf_source(installed: Path) -> None:
    (carried,) = installed.glob("lib/python3*/site-packages/ebpftrace/bpf")
    ours = {path.relative_to(ROOT / "bpf") for path in (ROOT / "bpf").rglob("*.[ch]")}
    assert {path.relative_to(carried) for path in carried.rglob("*.[ch]")} == ours
