# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace maps`` on real programs, compared with what they and /proc/PID/status say."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import jsonschema
import pytest
from process_helpers import compiled, kernel_thread, running

SCHEMA = json.loads((harness.ROOT / "ebpftrace/report/schema/maps-1.json").read_text())
MAPS = (sys.executable, "-m", "ebpftrace", "maps")
PAGE = os.sysconf("SC_PAGE_SIZE")
STACK = (10 << 20) + PAGE

# Threads with a hostile name, one of them always running; a raw clone; one area of each special sort.
MIX = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>
static void use(void *ready) { *(volatile char *)malloc(1000) = 1; pthread_barrier_wait(ready); }
static void *wait_for_ever(void *ready) { use(ready); pause(); return 0; }
static void *spin(void *ready) { use(ready); for (;;); }
static int child(void *unused) { prctl(PR_SET_PDEATHSIG, SIGKILL); pause(); return 0; }
int main(void) {
    pthread_barrier_t ready; pthread_t thread;
    pthread_barrier_init(&ready, 0, 4);
    for (int i = 0; i < 2; i++) {
        pthread_create(&thread, 0, wait_for_ever, &ready);
        pthread_setname_np(thread, "a\033[31m\n) b");
    }
    pthread_create(&thread, 0, spin, &ready);
    pthread_setname_np(thread, "spinner");
    pthread_barrier_wait(&ready);
    char *low = mmap(0, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(low, 4096, PROT_NONE);
    int pid = clone(child, low + (64 << 10), CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | SIGCHLD, 0);
    int id = shmget(IPC_PRIVATE, 1 << 20, 0600);
    memset(shmat(id, 0, 0), 1, 1 << 20);
    shmctl(id, IPC_RMID, 0);
    int fd = memfd_create("x\ny", 0);
    ftruncate(fd, 1 << 20);
    mmap(0, 1 << 20, PROT_READ, MAP_SHARED, fd, 0);
    mmap(0, 1 << 20, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *(char *)mmap(0, 64 << 10, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) = 1;
    mmap(0, 1L << 36, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *(volatile char *)malloc(5 << 20) = 1;
    printf("ready %d\n", pid); fflush(stdout);
    getchar();
    kill(pid, SIGKILL);
    return 0;
}
"""


def run_maps(*options: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*MAPS, *map(str, options)],
        cwd=harness.ROOT,
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    if check:
        assert ended.returncode == 0, ended.stderr
    return ended


def reports(pid: int, *options: object) -> list[dict[str, Any]]:
    reports = [json.loads(line) for line in run_maps("-p", pid, "--json", *options).stdout.splitlines()]
    for report in reports:
        jsonschema.validate(report, SCHEMA)
    return reports


def figure(pid: int, file: str, name: str) -> int:
    """A figure of the kernel in bytes, from the ``file`` of that name in /proc/PID."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def check_totals(report: dict[str, Any], pid: int) -> None:
    """Nothing is lost or counted twice: for a process that stands still, to the byte."""
    areas, total = report["areas"], report["total"]
    assert total["bytes"] == figure(pid, "status", "VmSize") == sum(area["bytes"] for area in areas)
    huge = sum(area["huge_bytes"] for area in areas)
    # What other processes do to the page cache shows in the pages of files.
    assert total["rss_bytes"] - huge == pytest.approx(figure(pid, "smaps_rollup", "Rss"), abs=1 << 20)
    assert total["swap_bytes"] == pytest.approx(figure(pid, "smaps_rollup", "Swap"), abs=1 << 20)
    for name in ("bytes", "rss_bytes", "swap_bytes", "count"):
        assert sum(sums[name] for sums in report["classes"].values()) == total[name]


@contextmanager
def mix(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Its PID and that of the raw clone in its address space."""
    with running(compiled(tmp_path, MIX)) as (process, line):
        cloned = int(line.split()[1])
        try:
            yield process.pid, cloned
        finally:
            os.kill(cloned, signal.SIGKILL)


def test_each_class_of_a_program_with_all_of_them(tmp_path: Path) -> None:
    with mix(tmp_path) as (pid, cloned):
        (report,) = reports(pid)
        check_totals(report, pid)
        tids = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()}
    classes = report["classes"]
    stacks = [area for area in report["areas"] if area["class"] == "thread-stack"]
    assert {area["tid"] for area in stacks} == (tids - {pid}) | {cloned}
    assert sorted(area["thread"] for area in stacks)[:2] == ["a\x1b[31m\n) b"] * 2
    assert [area["bytes"] for area in stacks if area["tid"] == cloned] == [64 << 10]
    assert report["arenas"] == classes["malloc-arena"]["count"] == 3
    assert classes["malloc-arena"]["bytes"] == 3 * 64 << 20
    assert classes["malloc-block"]["bytes"] == (5 << 20) + PAGE
    assert classes["shared-memory"] == {"count": 3, "bytes": 3 << 20, "rss_bytes": 1 << 20, "swap_bytes": 0}
    assert classes["jit-code"]["bytes"] == 64 << 10
    assert classes["reserved"]["bytes"] == 1 << 36
    assert classes["main-stack"]["count"] == 1
    assert "orphaned-stack" not in classes
    assert any(str(cloned) in note for note in report["notes"])


def test_text_is_plain_and_names_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    with mix(tmp_path) as (pid, _):
        page = run_maps("-p", pid, "--all").stdout
    assert all(character.isprintable() for character in page.replace("\n", ""))
    assert max(map(len, page.splitlines())) <= 100
    assert r"a\x1b[31m\n) b" in page


def test_never_joined_threads_are_orphaned_stacks_with_their_routine() -> None:
    with harness.Target("never_joined", 300) as target:
        target.run()
        (report,) = reports(target.pid)
        check_totals(report, target.pid)
        page = run_maps("-p", target.pid).stdout
        orphans = [area for area in report["areas"] if area["class"] == "orphaned-stack"]
        truth = {(fact["start"], fact["start"] + fact["length"]) for fact in target.facts("mapped")}
    assert {(int(area["start"], 16), int(area["end"], 16)) for area in orphans} == truth
    assert len(orphans) == 300
    assert report["classes"]["orphaned-stack"]["bytes"] == 300 * STACK
    assert {area["start_routine"]["function"] for area in orphans} == {"minute_job"}
    assert page.startswith("LEAK (proved): 300 threads exited and were never joined: 2.9 GiB")


@pytest.mark.parametrize("mode", ["detached", "joined", "malloc-pool", "late-join"])
def test_healthy_program_has_no_orphaned_stack(mode: str) -> None:
    with harness.Target("healthy", mode) as target:
        target.run()
        (report,) = reports(target.pid)
        check_totals(report, target.pid)
    assert "orphaned-stack" not in report["classes"]
    assert "stack-shaped" not in report["classes"]


def test_growth_shows_what_came_between_two_readings() -> None:
    with harness.Target("never_joined", 40) as target:
        tracer = subprocess.Popen(
            [*MAPS, "-p", str(target.pid), "--json", "--every", "0.5"],
            cwd=harness.ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert tracer.stdout is not None
        first = json.loads(tracer.stdout.readline())
        target.run()
        seen: list[dict[str, Any]] = []
        while (
            sum(report["growth"]["classes"].get("orphaned-stack", {}).get("count", 0) for report in seen) < 40
        ):
            seen.append(json.loads(tracer.stdout.readline()))
        tracer.send_signal(signal.SIGINT)
        assert tracer.wait(harness.PATIENCE) == 0
        tracer.stdout.close()
    assert first["growth"] is None
    for report in (first, *seen):
        jsonschema.validate(report, SCHEMA)
    for before, after in zip([first, *seen], seen):
        growth = after["growth"]
        change = after["total"]["bytes"] - before["total"]["bytes"]
        assert sum(one["bytes"] for one in growth["changes"]) == change
        assert sum(sums["bytes"] for sums in growth["classes"].values()) == change


def test_file_that_is_mapped_many_times_is_named(tmp_path: Path) -> None:
    program = compiled(
        tmp_path,
        r"""
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(void) {
            int fd = open("data\n", O_RDWR | O_CREAT, 0600);
            ftruncate(fd, 4096);
            for (int i = 0; i < 500; i++)
                *(volatile char *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) = 1;
            for (int i = 0; i < 20; i++)
                ftruncate(fd = memfd_create("ring", 0), 4096), mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0);
            puts("ready"); fflush(stdout); getchar();
        }
        """,
    )
    with running("env", "-C", tmp_path, program) as (process, _):
        (report,) = reports(process.pid)
        page = run_maps("-p", process.pid).stdout
    file, ring = report["repeated"]
    assert file == {
        "path": f"{tmp_path}/data\\012",
        "files": 1,
        "count": 500,
        "bytes": 500 * PAGE,
        "rss_bytes": 500 * PAGE,
        "swap_bytes": 0,
    }
    assert (ring["path"], ring["files"], ring["count"]) == ("/memfd:ring (deleted)", 20, 20)
    (row,) = [line for line in page.splitlines() if line.endswith("  /memfd:ring (deleted)")]
    assert row.split()[:2] == ["20", "20"]


def test_process_that_ends_between_readings_is_reported_in_one_line() -> None:
    with harness.Target("never_joined", 1) as target:
        tracer = subprocess.Popen(
            [*MAPS, "-p", str(target.pid), "--every", "300"],
            cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert tracer.stdout is not None
        assert tracer.stdout.readline()
        target.process.kill()
        target.process.wait()
        _, errors = tracer.communicate(timeout=harness.PATIENCE)
    assert tracer.returncode == 1
    assert errors == f"ebpftrace: process {target.pid} has exited after 1 report\n"


def test_leader_that_exited_hides_nothing(tmp_path: Path) -> None:
    program = compiled(
        tmp_path,
        """
        #include <pthread.h>
        #include <stdio.h>
        #include <unistd.h>
        static void *rest(void *leader) {
            pthread_join(*(pthread_t *)leader, 0);
            puts("ready"); fflush(stdout); getchar(); _exit(0);
        }
        int main(void) {
            static pthread_t leader; pthread_t thread;
            leader = pthread_self();
            pthread_create(&thread, 0, rest, &leader);
            pthread_exit(0);
        }
        """,
    )
    with running(program) as (process, _):
        (report,) = reports(process.pid)
    assert report["total"]["bytes"] == report["memory"]["virt"]
    assert report["classes"]["thread-stack"]["count"] == 1


@pytest.mark.parametrize("runtime", ["musl-gcc", "gcc -static", "java"])
def test_other_runtimes_add_up_and_have_no_false_orphan(runtime: str, tmp_path: Path) -> None:
    command: list[object]
    if not shutil.which(runtime.split()[0]):
        pytest.skip(f"no {runtime}")
    if runtime == "java":
        source = tmp_path / "T.java"
        source.write_text(
            "class T { public static void main(String[] a) throws Exception {"
            ' new Thread(() -> { try { Thread.sleep(99999); } catch (Exception e) {} }, "job").start();'
            ' System.out.println("ready"); System.in.read(); System.exit(0); } }'
        )
        command = ["java", "-Xmx64m", source]
    else:
        (tmp_path / "t.c").write_text(
            "#include <pthread.h>\n#include <stdio.h>\n#include <unistd.h>\n"
            "static void *f(void *b) { pthread_barrier_wait(b); pause(); return 0; }\n"
            "int main(void) { pthread_barrier_t b; pthread_t t; pthread_barrier_init(&b, 0, 2);"
            "pthread_create(&t, 0, f, &b); pthread_barrier_wait(&b); "
            'puts("ready"); fflush(stdout); getchar(); }'
        )
        subprocess.run([*runtime.split(), "-w", "-pthread", "-o", "t", "t.c"], cwd=tmp_path, check=True)
        command = [tmp_path / "t"]
    with running(*command) as (process, _):
        (report,) = reports(process.pid)
    assert report["total"]["bytes"] == pytest.approx(report["memory"]["virt"], abs=1 << 20)
    assert "orphaned-stack" not in report["classes"]
    assert report["classes"]["thread-stack"]["count"] >= 1


def test_refusals_are_one_line() -> None:
    for pid, words in ((kernel_thread(), "kernel thread"), (4_194_304, "no process")):
        refused = run_maps("-p", pid, check=False)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert words in refused.stderr
    assert run_maps("-p", os.getpid(), "--count", 2, check=False).returncode == 2


def test_output_file_is_written_whole(tmp_path: Path) -> None:
    page = tmp_path / "maps.json"
    run_maps("-p", os.getpid(), "--json", "-o", page)
    jsonschema.validate(json.loads(page.read_text()), SCHEMA)
    refused = run_maps("-p", os.getpid(), "-o", tmp_path / "no" / "file", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
