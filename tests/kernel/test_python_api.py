# SPDX-License-Identifier: Apache-2.0
"""The Python API on real traces, and the examples of docs/api.md as they stand there."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, eventually

import ebpftrace
from ebpftrace.model import Verdict

LEAK_SOURCE = """
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static void *job(void *nothing) { return nothing; }
static void leak(void) { pthread_t thread; pthread_create(&thread, 0, job, 0); }
int main(int argc, char **argv) {
  int left = argc > 1 ? atoi(argv[1]) : -1;
  while (left--) { leak(); usleep(50 * 1000); }
  return 0;
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("server")
    (directory / "server.c").write_text(LEAK_SOURCE)
    subprocess.run(["cc", "-g", "-pthread", "-o", "server", "server.c"], cwd=directory, check=True)
    return directory / "server"


@pytest.fixture
def leaking(server: Path) -> Iterator[int]:
    with subprocess.Popen([server]) as process:
        yield process.pid
        process.kill()


def examples() -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL | re.MULTILINE
    )


def test_the_examples_run(
    server: Path,
    leaking: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def exercise(pid: int) -> None:
        assert pid == leaking
        before = _areas(pid)
        eventually(lambda: _areas(pid) >= before + 8, "some more leaks")

    names = {
        "ebpftrace": ebpftrace,
        "Path": Path,
        "pid": leaking,
        "server": str(server),
        "exercise": exercise,
    }
    found = examples()
    assert len(found) >= 6
    for example in found:
        exec(compile(example, "docs/api.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "never-joined-thread" in printed
    assert "leak " in printed, "the function that creates the threads"
    assert "there is no process 999999999" in printed


def _areas(pid: int) -> int:
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def test_a_command_keeps_its_streams_and_status() -> None:
    code = (
        "import ebpftrace\n"
        "script = 'read line; echo got $line; echo err >&2; exit 7'\n"
        "report = ebpftrace.find_leaks(command=['sh', '-c', script])\n"
        "print(report.command.exit_status, report.command.argv[0], report.is_conclusive, len(report.leaks))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input="a line\n", capture_output=True, text=True, check=False
    )
    assert ended.stdout == "got a line\n7 sh True 0\n"
    assert ended.stderr == "err\n"


def test_the_callers_own_process(tmp_path: Path) -> None:
    source = LEAK_SOURCE.replace(
        "int main", "void leak_some(int n) { while (n--) { leak(); usleep(20000); } }\nint main"
    )
    (tmp_path / "some.c").write_text(source)
    subprocess.run(
        ["cc", "-g", "-shared", "-fPIC", "-pthread", "-o", "some.so", "some.c"], cwd=tmp_path, check=True
    )
    some = ctypes.CDLL(str(tmp_path / "some.so"))
    some.leak_some(2)
    with ebpftrace.LeakTracer(threads_only=True) as tracer:
        some.leak_some(3)
    (leak,) = tracer.report.leaks
    assert leak.verdict is Verdict.NEVER_JOINED
    assert sum(not orphan.outstanding.mapping.before_attach for orphan in leak.orphans) <= leak.count
    assert "leak_some" in [frame.function for frame in leak.stack.frames]


def test_children_are_in_the_report(server: Path, tmp_path: Path) -> None:
    report = ebpftrace.find_leaks(command=["sh", "-c", f"{server} 2; {server} 3; true"])
    assert sorted(leak.count for leak in report.leaks) == [2, 3]
    assert report.followed is not None
    assert report.followed.judged == 2
    (tmp_path / "report.json").write_text(report.to_json())
    again = ebpftrace.Report.from_json(tmp_path / "report.json")
    assert [leak.count for leak in again.leaks] == [leak.count for leak in report.leaks]


def test_what_a_suppression_accepts_is_no_leak(server: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("thread:leak\n")
    report = ebpftrace.find_leaks(command=[str(server), "2"], suppressions=rules)
    assert report.leaks == ()
    assert any(finding.accepted for finding in report.findings)


def test_a_block_that_raises_leaves_no_tracer(leaking: int) -> None:
    tracer = ebpftrace.LeakTracer(leaking)
    running: list[int] = []

    def fail() -> None:
        with tracer:
            running.extend(_tracers())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert running
    assert not _tracers()


def test_the_tracer_ends_with_its_caller(leaking: int) -> None:
    code = f"""
import ebpftrace, time
with ebpftrace.LeakTracer({leaking}):
    print("on", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == "on\n"
        (tracer,) = _tracers(pid=caller.pid)
        caller.send_signal(signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{tracer}").exists(), "the tracer has ended")


@pytest.mark.parametrize(
    "before",
    [
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",  # as a shell does for what runs in its background
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})",
    ],
    ids=["ignored", "blocked"],
)
def test_the_trace_ends_whatever_signals_its_caller_refuses(leaking: int, before: str) -> None:
    code = f"""
import ebpftrace, signal
{before}
with ebpftrace.LeakTracer({leaking}) as tracer: pass
print(len(tracer.report.processes))
for interval in ebpftrace.growth({leaking}, interval=0.1): break
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stdout) == (0, "1\n"), ended.stderr


def _tracers(command: str = "mmap-leaks", pid: int = 0) -> list[int]:
    caller = pid or os.getpid()
    children = map(int, Path(f"/proc/{caller}/task/{caller}/children").read_text().split())
    return [
        one for one in children if command.encode() in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
    ]


def test_nothing_of_the_caller_changes(leaking: int) -> None:
    code = f"""
import gc, os, resource, signal
import ebpftrace
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK)]
    collector = gc.isenabled(), gc.get_threshold()
    files = open('/proc/self/mountinfo').read(), os.listdir('/proc/self/fd'), os.getcwd()
    return handlers, limits, dict(os.environ), collector, files
before = state()
ebpftrace.find_leaks(pid={leaking}, duration=0.5)
ebpftrace.find_leaks(command=['true'])
with ebpftrace.LeakTracer(): pass
ebpftrace.check()
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_growth_comes_interval_by_interval(leaking: int) -> None:
    steps = list(ebpftrace.growth(leaking, interval=0.5, duration=2))
    assert 3 <= len(steps) <= 5
    assert all(step.pid == leaking and step.virt > step.rss > 0 for step in steps)
    causes = [cause for step in steps for cause in step.causes or ()]
    assert any(cause.call == "mmap" and cause.size > 0 and "leak" in _functions(cause) for cause in causes)


def _functions(cause: ebpftrace.GrowthCause) -> list[str]:
    return [frame.function or "" for frame in cause.stack.frames]


def test_syscalls_are_an_iterator(leaking: int) -> None:
    calls = ebpftrace.syscalls(leaking, expression="mmap,munmap,clone3,clone")
    seen = []
    for call in calls:
        seen.append(call)
        if len(seen) == 6:
            break
    calls.close()  # type: ignore[attr-defined]
    assert not _tracers("trace")
    mapped = [call for call in seen if call.name == "mmap"]
    assert mapped
    assert all(call.pid == leaking and call.error is None and call.returned for call in mapped)
    assert "MAP_STACK" in mapped[0].arguments
    now = time.time()
    assert all(
        now - 60 < call.at <= now and call.seconds is not None and call.seconds >= 0 for call in mapped
    )
