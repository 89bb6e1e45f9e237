# SPDX-License-Identifier: Apache-2.0
"""Broken and hostile ELF files: contained by the worker, in bounded time, and nobody else suffers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import ROOT
from stacks_helpers import GCC, TARGETS, Caught, catch, compile_target, physical

from ebpftrace.model import StackSource
from ebpftrace.procfs.files import FileKey
from ebpftrace.unwind.copies import Pc, StackCopy, Walk
from ebpftrace.unwind.engine import LOAD_SECONDS, MAX_RESTARTS, MAX_SECONDS_PER_CULPRIT, Engine
from ebpftrace.unwind.modules import CodeRange, Layout, load_bias
from ebpftrace.unwind.resolve import StackResolver

pytest.importorskip("drgn")


@pytest.fixture(scope="module")
def caught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caught]:
    """A stack all of whose code is in one file, with debug info; the process stays stopped."""
    source = str(TARGETS / "stacks_chain.c")
    out = tmp_path_factory.mktemp("hostile") / "chain"
    binary = compile_target(out, *GCC, "-g", "-static", source, "-pthread", "-ldl")
    calls = catch([str(binary)])
    yield next(calls)
    calls.close()


def broken(original: bytes, rng: random.Random) -> bytes:
    """Cut short, or with bytes changed in its headers, its last part (sections, debug info) or anywhere."""
    raw = bytearray(original)
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(raw[: rng.randrange(len(raw))])
    low, high = [(0, 1024), (len(raw) * 3 // 4, len(raw)), (0, len(raw))][kind - 1]
    for _ in range(rng.choice((1, 4, 64, 4096))):
        raw[rng.randrange(low, high)] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
    return bytes(raw)


def resolve_with(engine: Engine, program: Path, copy: StackCopy, real: Layout) -> Walk | None:
    """Unwind and name a copy with another file in the place of the program's; the files say nothing true."""
    key = FileKey("0:0", len(engine.files._by_key) + 1, str(program))
    stored = engine.files.add(key, lambda: os.open(program, os.O_RDONLY))
    code = next(r for r in real.ranges if r.file is not None and r.path != "[vdso]")
    if stored is None:
        return None
    bias = load_bias(stored.headers, code.start, 0x1000, code.end - code.start)
    layout = Layout((CodeRange(code.start, code.end, str(program), stored.id, bias or 0, 0x1000),))
    walk = engine.walk(layout, copy)
    pcs = [Pc(0x401000 + i * 0x1234, False) for i in range(40)]
    frames = engine.names(stored.id, pcs)
    assert all(frames[pc] and frames[pc][0].module == str(program) for pc in pcs)
    spent = engine._seconds[stored.id], engine._seconds[layout]
    assert all(seconds <= MAX_SECONDS_PER_CULPRIT + LOAD_SECONDS for seconds in spent), "CPU time is bounded"
    assert walk is None or len(walk.pcs) <= 1025
    return walk


def test_broken_files_are_contained(caught: Caught, tmp_path: Path) -> None:
    seed, tries = int(os.environ.get("STACKS_SEED", "1")), int(os.environ.get("STACKS_TRIES", "150"))
    original = Path(f"/proc/{caught.pid}/exe").read_bytes()
    crashes = walked = 0
    engine = Engine()
    for number in range(seed, seed + tries):
        program = tmp_path / f"broken{number}"
        program.write_bytes(broken(original, random.Random(number)))
        with StackResolver(caught.pid, engine) as resolver:
            real = resolver._history.at(None)
        before = engine.crashes
        walk = resolve_with(engine, program, caught.copy, real)
        walked += walk is not None
        if engine.crashes > before:
            crashes += engine.crashes - before
            print(f"worker died: seed {number}")
        program.unlink()
        if engine.crashes > MAX_RESTARTS // 2 or number % 100 == 99:
            engine.close()
            engine = Engine()
    with StackResolver(caught.pid, engine) as resolver:
        assert physical(resolver.resolve(caught.copy))[1:4] == ["leaf", "middle", "outer"]
    engine.close()
    print(f"{tries} files, {walked} walked, {crashes} workers died")


def test_a_dead_worker_is_replaced(caught: Caught) -> None:
    with Engine() as engine, StackResolver(caught.pid, engine) as resolver:
        before = resolver.resolve(caught.copy)
        assert engine._process is not None
        engine._process.kill()
        engine._process.wait()
        assert resolver.resolve(caught.copy).source.value == "none"
        assert engine.crashes == 1
        (note,) = resolver.stack_warnings.notes()
        assert note.startswith("1 stack copy could not be unwound")
        assert resolver.resolve(caught.copy) == before


def test_a_worker_that_cannot_start_is_given_up(caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Engine() as engine, StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
        assert stack.source is StackSource.FRAME_POINTER
        assert not any(frame.function for frame in stack.frames)
        assert "worker" in stack.note


def test_the_worker_has_no_privileges(caught: Caught) -> None:
    with Engine() as engine, StackResolver(caught.pid, engine) as resolver:
        assert resolver.resolve(caught.copy).complete
        assert engine._process is not None
        status = Path(f"/proc/{engine._process.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["65534"] * 4
        assert fields["Groups"].strip() == ""
        assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
        assert fields["NoNewPrivs"] == "1"


def test_the_worker_has_none_of_the_capabilities_of_a_tracer_without_root() -> None:
    """They are given to a user for the tracer, not for what reads a target's files."""
    program = (
        "from pathlib import Path\n"
        "from ebpftrace.unwind.engine import Engine\n"
        "with Engine() as engine:\n"
        "    assert engine.can_unwind, engine.because\n"
        "    for process in 'self', engine._process.pid:\n"
        "        for line in Path(f'/proc/{process}/status').read_text().splitlines():\n"
        "            if line.startswith(('CapInh', 'CapPrm', 'CapEff', 'CapAmb')): print(int(line[8:], 16))\n"
    )
    capabilities = "+bpf,+perfmon,+sys_ptrace,+dac_read_search"
    ended = subprocess.run(
        [
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
            *(f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
            *(sys.executable, "-c", program),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    figures = list(map(int, ended.stdout.split()))
    assert all(figures[:4])
    assert figures[4:] == [0, 0, 0, 0]


def test_hostile_registers_and_memory(caught: Caught) -> None:
    rng = random.Random(3)
    with Engine() as engine, StackResolver(caught.pid, engine) as resolver:
        for size in (0, 1, 7, 8, 9, 100, 4096, 16384):
            for _ in range(20):
                registers = bytearray(caught.copy.registers)
                for _ in range(rng.randrange(6)):
                    registers[rng.randrange(len(registers))] = rng.randrange(256)
                copy = replace(caught.copy, registers=bytes(registers), memory=rng.randbytes(size))
                assert len(resolver.resolve(copy).frames) < 5000
        assert engine.crashes == 0
        assert resolver.resolve(caught.copy).complete


def test_a_file_cut_short_while_it_is_read(caught: Caught, tmp_path: Path) -> None:
    """The reader maps files into memory: a target that cuts its own kills the worker, not the tracer."""
    program = tmp_path / "cut"
    program.write_bytes(Path(f"/proc/{caught.pid}/exe").read_bytes())
    with Engine() as engine, StackResolver(caught.pid, engine) as resolver:
        real = resolver._history.at(None)
        assert resolve_with(engine, program, caught.copy, real) is not None
        os.truncate(program, 4096)
        stored = engine.files[max(file.id for file in engine.files._by_id)]
        pcs = [Pc(0x401000 + i * 77, False) for i in range(500)]
        assert all(engine.names(stored.id, pcs).values())
        assert resolver.resolve(caught.copy).complete or engine.crashes
        assert resolver.resolve(caught.copy).complete
