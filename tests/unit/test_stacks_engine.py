# SPDX-License-Identifier: Apache-2.0
"""The engine with workers that are slow, hang or lie; they are programs of this test."""

from __future__ import annotations

import os
import textwrap

import pytest

from ebpftrace.procfs.files import FileKey
from ebpftrace.unwind import engine as engine_module
from ebpftrace.unwind.copies import IN_LINK_REGISTER, Pc
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.files import StoredFile

BEGIN = """
import os, socket, sys, time
sys.path[:] = sys.argv[2:]
from ebpftrace.unwind import wire
sock = socket.socket(fileno=int(sys.argv[1]))
wire.send(sock, {"without_drgn": ""})
answers = {"file": {}, "symbols": {"wants": False}, "names": {"names": [[["slow", None, None, False, 0]]]}}

def work(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass

while True:
    request, _, fd = wire.receive(sock)
"""
ANSWER = """
    wire.send(sock, answers[request["do"]])
"""
LIMIT = 0.4
"""Seconds of CPU time."""


class Workers:
    """Starts engines whose workers do something else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._monkeypatch.setattr(engine_module, "LOAD_SECONDS", LIMIT)

    def that(self, before_answer: str) -> Engine:
        program = BEGIN + textwrap.indent(textwrap.dedent(before_answer), "    ") + ANSWER
        self._monkeypatch.setattr(engine_module, "_BOOT", program)
        return Engine()

    def wait_at_most(self, seconds: float) -> None:
        self._monkeypatch.setattr(engine_module, "MAX_SECONDS", seconds)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Workers:
    return Workers(monkeypatch)


def stored(engine: Engine) -> StoredFile:
    found = engine.files.add(FileKey("0:0", 1, "/bin/a"), lambda: os.open("/proc/self/exe", os.O_RDONLY))
    assert found is not None
    return found


def function(engine: Engine) -> str | None:
    pc = Pc(0x1000, True)
    return engine.names(stored(engine).id, [pc])[pc][0].function


def test_a_worker_that_gets_no_cpu_time_is_waited_for(workers: Workers) -> None:
    """As on a host that is overloaded: the same is found as on one that is not."""
    with workers.that(f"if request['do'] == 'names': time.sleep({3 * LIMIT})") as engine:
        assert function(engine) == "slow"
        assert engine.crashes == 0
        assert engine.why_unnamed(0) == ""


def test_a_worker_that_works_without_end_is_replaced(workers: Workers) -> None:
    with workers.that("if request['do'] == 'names': work(1e9)") as engine:
        assert function(engine) is None
        assert engine.crashes == 1
        assert engine.cpu_seconds >= LIMIT
        assert "took it too long" in engine.why_unnamed(0)


@pytest.mark.parametrize("sends", ["pass", "sock.sendall(b'{')"], ids=["nothing", "an answer byte by byte"])
def test_a_worker_that_waits_without_end_is_replaced(workers: Workers, sends: str) -> None:
    with workers.that(
        f"""
        if request['do'] == 'names':
            sock.sendall(b'\\x00\\x10\\x00\\x00\\x00\\x00\\x00\\x00')
            while True:
                time.sleep(0.1)
                {sends}
        """
    ) as engine:
        assert engine.can_unwind
        workers.wait_at_most(2)
        assert function(engine) is None
        assert engine.crashes == 1


def test_a_file_that_takes_the_worker_down_each_time_is_given_up_and_it_is_reported(workers: Workers) -> None:
    with workers.that("if request['do'] == 'symbols': os._exit(1)") as engine:
        file = stored(engine)
        for number in range(10):
            pc = Pc(number, True)
            assert engine.names(file.id, [pc])[pc][0].function is None
        assert engine.crashes == engine_module.MAX_STRIKES
        assert "crashed" in engine.why_unnamed(file.id)


def test_symbols_that_cannot_be_read_are_reported(workers: Workers) -> None:
    with workers.that("if request['do'] == 'names': answers['names'] = {'error': 'bad data'}") as engine:
        assert function(engine) is None
        assert engine.crashes == 0
        assert "cannot be read" in engine.why_unnamed(0)


def test_an_endless_walk_is_cut_and_odd_addresses_are_refused() -> None:
    rest = {"end": "outermost", "slots": [], "guessed": None, "lacking": 0, "stopped_at": None}
    walk = engine_module._walk({"pcs": [[1, True]] * 100_000, **rest})
    assert walk is not None
    assert len(walk.pcs) < 10_000
    for address in (-1, 1 << 64, float("nan"), float("inf"), "x", None):
        assert engine_module._walk({"pcs": [[address, True]], **rest}) is None
        if address is not None:
            for name in ("stopped_at", "guessed", "lacking"):
                assert engine_module._walk({"pcs": [], **rest, name: address}) is None
            assert engine_module._walk({"pcs": [[1, True]], **rest, "slots": [address]}) is None
    assert engine_module._walk({"pcs": [], **rest, "end": "somewhere"}) is None
    linked = engine_module._walk({"pcs": [[1, True], [2, False]], **rest, "slots": [None, IN_LINK_REGISTER]})
    assert linked is not None
    assert linked.slots == (None, IN_LINK_REGISTER)
    assert engine_module._numbers([1, -1, "x", None, 1 << 70, True]) == [1, -1, 1 << 70]
