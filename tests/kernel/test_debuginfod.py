# SPDX-License-Identifier: Apache-2.0
"""Debug information from a server, by the real client: fetched where it is asked for, never by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness import Program
from stacks_helpers import GCC, TARGETS, catch, compile_target

from ebpftrace.classify.maps_report import MapsReport
from ebpftrace.elf import read_headers, reader
from ebpftrace.errors import CannotTrace
from ebpftrace.model import Frame
from ebpftrace.sessions import maps
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver

pytest.importorskip("drgn")
CLIENT = shutil.which("debuginfod-find")


class Server:
    """Answers as a debuginfod server does (debuginfod(8), webapi), for one file."""

    def __init__(self, build_id: str, content: bytes) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                is_known = self.path == f"/buildid/{build_id}/debuginfo"
                self.send_response(200 if is_known else 404)
                self.send_header("Content-Length", str(len(content) if is_known else 0))
                self.end_headers()
                self.wfile.write(content if is_known else b"")

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def stripped(tmp_path: Path) -> Path:
    """A stripped program; its debug information is in program.debug, which nothing links to."""
    binary = compile_target(
        tmp_path / "program",
        *GCC,
        "-g",
        "-Wl,--build-id",
        str(TARGETS / "stacks_chain.c"),
        "-pthread",
        "-ldl",
    )
    shutil.copy(binary, tmp_path / "program.debug")
    subprocess.run(["strip", str(binary)], check=True)
    return binary


@pytest.fixture
def server(stripped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    build_id = build_id_of(stripped)
    server = Server(build_id, (tmp_path / "program.debug").read_bytes())
    monkeypatch.setenv("DEBUGINFOD_URLS", server.url)
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    yield server
    server.http.shutdown()


def build_id_of(binary: Path) -> str:
    fd = os.open(binary, os.O_RDONLY)
    build_id = read_headers(reader(fd)).build_id
    os.close(fd)
    assert build_id is not None
    return build_id.hex()


def first_stack(binary: Path, engine: Engine) -> tuple[list[Frame], list[str]]:
    calls = catch([str(binary)])
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        frames = resolver.resolve(caught.copy).frames
        notes = resolver.stack_warnings.notes()
    calls.close()
    return [frame for frame in frames if frame.module == str(binary)], notes


@pytest.mark.skipif(CLIENT is None, reason="debuginfod-find is not installed")
def test_what_is_not_here_is_fetched(stripped: Path, server: Server) -> None:
    with Engine(debuginfod=True) as engine:
        frames, notes = first_stack(stripped, engine)
    assert [frame.function for frame in frames[:3]] == ["leaf", "middle", "outer"]
    assert all(frame.line for frame in frames[:3])
    assert f"/buildid/{build_id_of(stripped)}/debuginfo" in server.asked
    assert not any("program" in note for note in notes)


def test_nothing_is_fetched_that_was_not_asked_for(stripped: Path, server: Server) -> None:
    with Engine() as engine:
        frames, notes = first_stack(stripped, engine)
    assert all(frame.function is None for frame in frames)
    assert server.asked == []
    wanted = next(note for note in notes if "program (" in note)
    assert f"program (build id {build_id_of(stripped)})" in wanted
    assert "--debuginfod" in wanted


@pytest.mark.skipif(CLIENT is None, reason="debuginfod-find is not installed")
def test_a_file_that_no_server_has_is_reported_by_its_build_id(
    stripped: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBUGINFOD_URLS", f"{server.url}/elsewhere")
    with Engine(debuginfod=True) as engine:
        frames, notes = first_stack(stripped, engine)
    assert all(frame.function is None for frame in frames)
    wanted = next(note for note in notes if "program (" in note)
    assert wanted.endswith("install it")


@pytest.mark.skipif(CLIENT is None, reason="debuginfod-find is not installed")
def test_maps_names_start_routines_by_what_it_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = compile_target(
        tmp_path / "program", *GCC, "-g", "-Wl,--build-id", str(TARGETS / "never_joined.c"), "-pthread"
    )
    server = Server(build_id_of(binary), binary.read_bytes())
    subprocess.run(["strip", str(binary)], check=True)
    monkeypatch.setenv("DEBUGINFOD_URLS", server.url)
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    reports: list[MapsReport] = []
    with Program(binary, 3) as target:
        target.run()
        for debuginfod in (False, True):
            maps.run(target.pid, None, None, reports.append, debuginfod=debuginfod)
        target.end()
    server.http.shutdown()
    bare, named = ([frame.function for frame in report.routines.values()] for report in reports)
    assert bare == [None]
    assert any(f"program (build id {build_id_of(binary)})" in note for note in reports[0].notes)
    assert named == ["minute_job"]
    assert not any("program (" in note for note in reports[1].notes)


def test_without_a_client_or_a_server_the_remedy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUGINFOD_URLS", "")
    with pytest.raises(CannotTrace, match=r"DEBUGINFOD_URLS|debuginfod-find"):
        Engine(debuginfod=True)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CannotTrace, match="needs debuginfod-find: install debuginfod"):
        Engine(debuginfod=True)
