# SPDX-License-Identifier: Apache-2.0
"""Healthy servers under load: not one finding is a leak."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import servers
from harness import Tracer, leaks

SECONDS = float(os.environ.get("EBPFTRACE_SERVER_SECONDS", "20"))
"""How long each server is traced."""

Starter = Callable[[Path], AbstractContextManager[servers.Server]]
HEALTHY: list[Starter] = [
    servers.mariadb,
    servers.redis,
    servers.memcached,
    servers.java,
    servers.node,
    servers.python,
]
CHURNING = {"mariadb", "java", "python"}


@pytest.mark.parametrize("start", HEALTHY, ids=lambda start: start.__name__)
def test_healthy_server(start: Starter, tmp_path: Path) -> None:
    with start(tmp_path) as server:
        server.load()
        with Tracer("-p", server.pid, "-d", SECONDS) as tracer:
            while tracer.process.poll() is None:
                server.load()
                if start is servers.python:
                    tracer.process.wait()
            report = tracer.wait().report
    print(report["calls"], report["losses"])
    for finding in report["findings"]:
        print(finding["verdict"], finding["count"], finding["bytes"], finding["evidence"])
    assert not leaks(report)
    assert report["window"]["ended_by"] == "duration"
    assert not report["losses"]["events"] + report["losses"]["mappings"]
    if start.__name__ in CHURNING:
        assert report["calls"]["thread_exit"] > 5 * SECONDS
