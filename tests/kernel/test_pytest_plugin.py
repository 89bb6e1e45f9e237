# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin on a suite of fifty tests, twelve places of which leave threads unjoined."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from harness import PATIENCE, TARGETS

import ebpftrace

# As an entry point it may be loaded already, or not be installed.
PLUGIN = (
    "-p",
    "no:ebpftrace",
    "-p",
    "ebpftrace.pytest_plugin",
    "-p",
    "no:cacheprovider",
)
BLAMED = {
    *(f"test_c.py::test_leaves[{number}]" for number in range(3)),
    *(f"test_cpp.py::test_leaves[{number}]" for number in range(3)),
    *(f"test_children.py::test_leaves[{number}]" for number in range(3)),
    "test_fixtures.py::fixture server (module scope)",
    "test_fixtures.py::fixture stopped_badly (module scope)",
    "fixture database (session scope)",
}
SUITE = {
    "conftest.py": """
import ctypes
import pytest
LIBRARY = ctypes.CDLL({library!r})
PROGRAM = {program!r}
@pytest.fixture(scope="session")
def database():
    LIBRARY.leave_unjoined()
    yield
@pytest.fixture
def library():
    return LIBRARY
""",
    "test_c.py": """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_leaves(library, number): library.leave_unjoined()
@pytest.mark.parametrize("number", range(5))
def test_joins(library, number): library.start(); library.join()
@pytest.mark.parametrize("number", range(4))
def test_detaches(library, number): library.start_detached()
@pytest.mark.thread_leaks(limit=2)
def test_may_leave_two(library): library.leave_unjoined(); library.leave_unjoined()
@pytest.mark.thread_leaks(exclude="leave_unj*")
def test_may_leave_those_of_a_function(library): library.leave_unjoined()
def test_sees_for_itself(library, thread_leaks):
    library.start()
    while not thread_leaks.now(): pass
    assert [one.start_routine for one in thread_leaks.now()] != []
    library.join()
    thread_leaks.assert_none()
""",
    "test_cpp.py": """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_leaves(library, number): library.leave_std_thread()
@pytest.mark.parametrize("number", range(4))
def test_joins(library, number): library.start(); library.join()
""",
    "test_children.py": """
import subprocess
import pytest
from conftest import PROGRAM
@pytest.mark.parametrize("number", range(3))
def test_leaves(number): subprocess.run(["sh", "-c", f"true; {PROGRAM} 1; true"], check=True)
@pytest.mark.parametrize("number", range(4))
def test_healthy(number): subprocess.run([PROGRAM, "0"], check=True)
""",
    "test_fixtures.py": """
import pytest
@pytest.fixture(scope="module")
def server(library_of_module):
    library_of_module.leave_unjoined()
@pytest.fixture(scope="module")
def stopped_badly(library_of_module):
    yield
    library_of_module.leave_unjoined()
@pytest.fixture(scope="module")
def library_of_module():
    from conftest import LIBRARY
    return LIBRARY
@pytest.fixture(scope="module")
def healthy_server(library_of_module):
    library_of_module.start()
    yield
    library_of_module.join()
@pytest.mark.parametrize("number", range(3))
def test_of_a_server(server, number): pass
@pytest.mark.parametrize("number", range(3))
def test_of_another(stopped_badly, number): pass
@pytest.mark.parametrize("number", range(3))
def test_of_a_database(database, number): pass
@pytest.mark.parametrize("number", range(3))
def test_of_a_healthy_one(healthy_server, number): pass
""",
    "test_python.py": """
import concurrent.futures
import threading
import pytest
@pytest.mark.parametrize("number", range(3))
def test_thread(number):
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
@pytest.mark.parametrize("number", range(2))
def test_executor(number):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
def test_thread_that_nobody_joins(): threading.Thread(target=int).start()
@pytest.mark.parametrize("number", range(3))
def test_nothing(number): pass
""",
}


@dataclass(frozen=True)
class Ran:
    status: int
    output: str
    blamed: dict[str, str]
    """The text of each error of the JUnit file, by the id of its test."""
    passed: int


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("suite")
    source = TARGETS / "unjoined_library.cpp"
    library, program = directory / "library.so", directory / "program"
    for flags, target in ((["-shared", "-fPIC"], library), (["-DPROGRAM"], program)):
        command = ["g++", "-g", "-O1", "-fno-inline", "-pthread", *flags, "-o", str(target), str(source)]
        subprocess.run(command, check=True)
    for name, text in SUITE.items():
        given = {"library": str(library), "program": str(program)}
        (directory / name).write_text(text.format(**given) if name == "conftest.py" else text)
    (directory / "pytest.ini").write_text("[pytest]\n")
    directory.chmod(0o755)
    return directory


def run(
    suite: Path,
    *options: object,
    user: str = "",
    capabilities: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> Ran:
    junit = suite / "junit.xml"
    junit.unlink(missing_ok=True)
    python = [sys.executable, "-m", "pytest", *PLUGIN, *map(str, options)]
    if not user:
        python.append(f"--junitxml={junit}")
    if user:
        # The first is for reading this Python and our package wherever they are.
        kept = "".join(f",+{name}" for name in ("dac_read_search", *capabilities))
        keep = [f"--inh-caps=-all{kept}", f"--ambient-caps=-all{kept}"]
        python = ["setpriv", f"--reuid={user}", "--clear-groups", *keep, *python]
    ended = subprocess.run(
        python,
        cwd=suite,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(environment or {}), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    blamed: dict[str, str] = {}
    passed = 0
    if junit.exists():
        for case in ElementTree.parse(junit).iter("testcase"):
            error = case.find("error")
            name = case.get("name", "")
            module = case.get("classname", "").replace(".", "/")
            if error is not None:
                blamed[f"{module}.py::{name}" if module else name] = error.text or ""
            else:
                passed += 1
    return Ran(ended.returncode, ended.stdout, blamed, passed)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_each_leak_is_laid_to_the_place_that_left_it(suite: Path, workers: tuple[str, ...]) -> None:
    ran = run(suite, "--thread-leaks=on", *workers)
    assert set(ran.blamed) == BLAMED, ran.output
    assert ran.status == pytest.ExitCode.TESTS_FAILED
    assert "50 passed, 12 errors" in ran.output
    assert all("not joined" in text for text in ran.blamed.values())
    assert "leave_unjoined" in ran.blamed["test_c.py::test_leaves[0]"]
    assert "leave_std_thread" in ran.blamed["test_cpp.py::test_leaves[1]"]
    assert re.search(r"in program \(PID \d+\)", ran.blamed["test_children.py::test_leaves[2]"])
    assert "NOT JUDGED" not in ran.output


def test_nothing_is_left_where_all_is_joined(suite: Path) -> None:
    ran = run(suite, "--thread-leaks=on", "test_python.py", "test_cpp.py::test_joins")
    assert (ran.status, ran.blamed) == (0, {}), ran.output
    assert "none left unjoined" in ran.output


def test_it_is_off_unless_asked_for(suite: Path) -> None:
    ran = run(suite, "test_c.py")
    assert (ran.status, ran.blamed) == (0, {}), ran.output
    assert "thread leaks" not in ran.output


def test_suppressions_baselines_and_exclusions_accept(suite: Path, tmp_path: Path) -> None:
    shutil.copytree(suite, tmp_path, dirs_exist_ok=True)
    first = run(tmp_path, "--thread-leaks=on", "--thread-leaks-report=leaks.json", "test_c.py", "test_cpp.py")
    assert len(first.blamed) == 6
    assert ebpftrace.Report.from_json(tmp_path / "leaks.json").processes

    (tmp_path / ".ebpftrace-suppressions").write_text("thread:leave_unjoined\n")
    second = run(tmp_path, "--thread-leaks=on", "test_c.py", "test_cpp.py")
    assert set(second.blamed) == {name for name in BLAMED if name.startswith("test_cpp")}, second.output
    (tmp_path / ".ebpftrace-suppressions").unlink()

    command = [sys.executable, "-m", "ebpftrace", "report", "leaks.json", "--write-baseline", "known.json"]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert json.loads((tmp_path / "known.json").read_text())["leaks"]
    ini = "[pytest]\nthread_leaks=on\nthread_leaks_baseline=known.json\nthread_leaks_exclude=leave_std*\n"
    (tmp_path / "pytest.ini").write_text(ini)
    third = run(tmp_path, "test_c.py", "test_cpp.py")
    assert (third.status, third.blamed) == (0, {}), third.output
    assert "accepted" in third.output


def test_a_tracer_that_is_killed_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_kill.py").write_text(
        "import os, pathlib, signal\n"
        "def test_kills_the_tracer():\n"
        "    me = os.getpid()\n"
        "    for child in pathlib.Path(f'/proc/{me}/task/{me}/children').read_text().split():\n"
        "        if b'mmap-leaks' in pathlib.Path(f'/proc/{child}/cmdline').read_bytes():\n"
        "            os.kill(int(child), signal.SIGKILL)\n"
    )
    required = run(tmp_path, "--thread-leaks=on")
    assert required.status == pytest.ExitCode.TESTS_FAILED
    assert "NOT JUDGED: the tracer failed" in required.output
    assert "none left" not in required.output
    assert run(tmp_path, "--thread-leaks=auto").status == 0


def test_without_privileges(suite: Path, tmp_path: Path) -> None:
    """Where there is no sudo, and where it asks for a password; whether it does depends on the machine."""
    tmp_path.chmod(0o755)
    for ancestor in list(tmp_path.parents)[:2]:
        ancestor.chmod(0o755)
    (tmp_path / "setpriv").symlink_to(str(shutil.which("setpriv")))
    only = {"PATH": str(tmp_path)}
    for answer in ("No such file or directory", "sudo: a password is required"):
        required = run(suite, "--thread-leaks=on", "test_c.py", user="nobody", environment=only)
        assert required.status == pytest.ExitCode.USAGE_ERROR, required.output
        (line,) = (line for line in required.output.splitlines() if line.strip())
        assert re.search(f"{answer}.*run pytest as root, or let sudo start {sys.executable} without", line)
        for quiet in ((), ("-q",)):
            possible = run(suite, "--thread-leaks=auto", "test_c.py", *quiet, user="nobody", environment=only)
            assert possible.status == 0, possible.output
            assert possible.output.count("thread leaks: not traced: this is not root") == 1
        (tmp_path / "sudo").write_text("#!/bin/sh\necho sudo: a password is required >&2\nexit 1\n")
        (tmp_path / "sudo").chmod(0o755)


def test_capabilities_are_enough(suite: Path) -> None:
    ran = run(
        suite,
        "--thread-leaks=on",
        "-rE",
        "test_c.py",
        user="nobody",
        capabilities=("bpf", "perfmon", "sys_ptrace"),
    )
    assert ran.status == pytest.ExitCode.TESTS_FAILED, ran.output
    assert "sudo" not in ran.output
    assert set(re.findall(r"^ERROR (test_c\.py\S+)", ran.output, re.MULTILINE)) == {
        name for name in BLAMED if name.startswith("test_c.py")
    }
