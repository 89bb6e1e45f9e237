# SPDX-License-Identifier: Apache-2.0
"""The list of kernels and what is made of it; the guests themselves are `make test-kernels`."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmtest import guest
from vmtest.initrd import archive, initrd
from vmtest.kernels import KERNELS, chosen, support_table
from vmtest.matrix import Matrix, Result, read_report, table
from vmtest.selection import EMULATED_TESTS, TESTS
from vmtest.userlands import Files

ROOT = Path(__file__).resolve().parents[2]


def test_readme_has_the_list_of_kernels() -> None:
    assert support_table() in (ROOT / "README.md").read_text(), (
        "put this into the README:\n" + support_table()
    )


def test_names_of_kernels_are_theirs_alone() -> None:
    names = [kernel.name for kernel in KERNELS]
    assert len(set(names)) == len(names)
    assert not {"short", "all", "userlands", "arm64"} & set(names)


def test_short_is_a_part_of_all() -> None:
    assert set(chosen("short")) < set(chosen("all")) == set(KERNELS)
    assert not set(chosen("short")) & set(chosen("userlands"))
    assert [kernel.name for kernel in chosen("6.12,5.10")] == ["6.12", "5.10"]
    assert chosen("short,arm64-6.12,6.1") == [*chosen("short"), *chosen("arm64-6.12")]


def test_other_machines_are_a_group_of_their_own() -> None:
    arm = chosen("arm64")
    assert {kernel.machine for kernel in arm} == {"aarch64"}
    assert not set(arm) & set(chosen("userlands"))
    assert {kernel.machine for kernel in KERNELS if kernel not in arm} == {"x86_64"}
    assert all(kernel.userland for kernel in arm), "no program of this machine runs there"
    suffixes = {kernel.name: kernel.package_suffix for kernel in KERNELS}
    assert suffixes["6.1"] == "cloud-amd64"
    assert suffixes["arm64-6.1"] == "cloud-arm64"
    assert suffixes["arm64-16k"] == "arm64-16k"


def test_busybox_is_of_the_guests_machine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/busybox").write_bytes(b"\x7fELF of another machine")
    kernel = tmp_path / "kernel"
    kernel.mkdir()
    assert b"of another machine" in gzip.decompress(initrd(kernel, root, "true"))


@pytest.mark.parametrize("wanted", ["", ",", "6.1,none", "2.6"])
def test_unknown_kernels_are_refused_with_the_names_there_are(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"there are short, all, userlands, arm64, 5\.10"):
        chosen(wanted)


@pytest.mark.parametrize("test", sorted({*TESTS, *EMULATED_TESTS}))
def test_chosen_tests_exist(test: str) -> None:
    path, _, name = test.partition("::")
    source = (ROOT / path).read_text()
    assert not name or f"\ndef {name.partition('[')[0]}(" in source


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio here")
def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    entries = [("bin", 0o40755, b""), ("bin/tool", 0o100755, b"\x7fELF odd"), ("bin/sh", 0o120777, b"tool")]
    subprocess.run(["cpio", "--extract", "--quiet"], input=archive(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "bin" / "sh").readlink() == Path("tool")
    assert (tmp_path / "bin" / "sh").read_bytes() == b"\x7fELF odd"
    assert (tmp_path / "bin" / "tool").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(not shutil.which("vagrant"), reason="no vagrant here")
def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    """The settings of the providers are checked only where vagrant has them (vagrant-libvirt)."""
    places = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "state")}
    checked = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=ROOT / "vagrant",
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_report_is_counted_by_outcome() -> None:
    report = """<testsuites><testsuite>
        <testcase classname="tests.a" name="one"/>
        <testcase classname="tests.a" name="two"><failure message="x">y</failure></testcase>
        <testcase classname="tests.b" name="three[x]"><error/></testcase>
        <testcase classname="tests.b" name="four"><skipped/></testcase>
    </testsuite></testsuites>"""
    assert read_report(report) == (
        {"passed": 1, "failed": 2, "skipped": 1},
        ["tests/a.py::two", "tests/b.py::three[x]"],
    )


def test_table_reports_a_dead_machine_from_a_failed_test() -> None:
    kernel = KERNELS[0]
    text = table(
        [
            Result(kernel, Path("k/5.10.1"), verdict="machine died", seconds=100.4, boots=3),
            Result(
                kernel,
                Path("k/5.10.1"),
                verdict="failed",
                seconds=99,
                boots=1,
                counts={"passed": 3, "failed": 1},
            ),
        ]
    )
    lines = [re.split(r" {2,}", line) for line in text.splitlines()]
    assert lines[0] == ["kernel", "release", "verdict", "tests", "seconds", "boots"]
    assert lines[1] == ["5.10", "5.10.1", "machine died", "100", "3"]
    assert lines[2] == ["5.10", "5.10.1", "failed", "1 failed, 3 passed", "99", "1"]


def report_of(**outcomes: str) -> str:
    cases = "".join(
        f'<testcase classname="tests.kernel.test_probes" name="{name}">{outcome}</testcase>'
        for name, outcome in outcomes.items()
    )
    return f"<testsuites><testsuite>{cases}</testsuite></testsuites>"


@pytest.mark.parametrize(
    ("second", "verdict", "failed", "flaky"),
    [
        ({"two": ""}, "passed", [], ["tests/kernel/test_probes.py::two"]),
        ({"two": "<failure/>"}, "failed", ["tests/kernel/test_probes.py::two"], []),
        ({"two": "<skipped/>"}, "failed", ["tests/kernel/test_probes.py::two"], []),
    ],
)
def test_what_failed_is_flaky_only_if_it_passes_in_a_second_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: dict[str, str],
    verdict: str,
    failed: list[str],
    flaky: list[str],
) -> None:
    commands = []

    def run(_kernel: Path, _root: Path, command: str, console: Path, *_: object) -> guest.Outcome:
        commands.append(command)
        console.write_text("output of the guest\n")
        outcomes = second if len(commands) > 1 else {"one": "", "two": "<failure/>"}
        report = report_of(**outcomes)
        return guest.Outcome(guest.Ending.RETURNED, 1.0, int("<failure/>" in report), report)

    monkeypatch.setattr(guest, "run", run)
    monkeypatch.setattr("vmtest.matrix.fetch", lambda *_: tmp_path)
    # The real one builds the programs to be traced, which other tests may be building.
    files = Files(tmp_path, str(tmp_path), "python3")
    monkeypatch.setattr("vmtest.matrix.this_machine", lambda: files)
    said: list[str] = []
    (result,) = Matrix(tmp_path, 100, "tcg", said.append, retry_failed=True).run(chosen("6.12"))
    assert (result.verdict, result.failed, result.flaky) == (verdict, failed, flaky)
    assert result.boots == 2
    assert commands[1].rstrip().endswith(" tests/kernel/test_probes.py::two")
    assert any("output of the guest" in text for text in said)
