# SPDX-License-Identifier: Apache-2.0
"""A server of which only one thing is wrong: its threads are no longer detached."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import servers
from harness import TARGETS, Tracer, leaks, run_tracer

ROUNDS = 2
MIN_AGE = 1
CREATOR = "create_thread_to_handle_connection(CONNECT*)"
"""The function of the server that starts a thread for each connection."""


def threads_created(server: servers.Server) -> int:
    return int(servers.query(server, "SHOW GLOBAL STATUS LIKE 'Threads_created'").split()[1])


def test_mariadb_without_pthread_detach(tmp_path: Path) -> None:
    library = tmp_path / "no_detach.so"
    source = TARGETS / "verdict_no_detach.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    with servers.mariadb(tmp_path, environment) as server:
        server.load()
        before = threads_created(server)
        with Tracer("-p", server.pid, "--until-interrupt", "--min-age", MIN_AGE) as tracer:
            for _ in range(ROUNDS):
                server.load()
            inside = threads_created(server) - before
            # One connection more, which lasts until it is reported that all others have been gone for long.
            with servers.connection(server) as ask:
                ask(f"SELECT SLEEP({2 * MIN_AGE})")
                report = tracer.interrupt().report
        later = run_tracer("-p", server.pid, "-d", 0, "--json", "--min-age", MIN_AGE).report
    # Those from before the trace run the same function: they are part of one finding.
    (finding,) = leaks(report)
    assert finding["verdict"] == "never-joined-thread"
    assert finding["count"] == before + inside
    assert f"{before:,} of them exited before the trace began" in finding["evidence"]
    assert not finding["before_attach"]
    assert finding["stack"]["complete"]
    frames = finding["stack"]["frames"]
    assert CREATOR in [frame["function"] for frame in frames]
    own = next(frame for frame in frames if Path(frame["module"]).name == "mariadbd")
    # It calls pthread_create by a static function, as above.
    assert (own["function"] or f"mariadbd+{own['offset']:#x}") in finding["advice"]
    # A static function, which a server without debug symbols has no name for.
    assert Path(finding["start_routine"]["module"]).name == "mariadbd"
    assert not any(report["losses"].values())
    (alone,) = leaks(later)
    assert alone["before_attach"]
    assert alone["count"] == before + inside + 1
