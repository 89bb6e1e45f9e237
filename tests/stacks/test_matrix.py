# SPDX-License-Identifier: Apache-2.0
"""Whole stacks of programs of many languages, against chains known by construction, or gdb's.

Each stack is the true one, or begins like it and is cut with the reason: nothing else is ever shown.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from servers import Quiet, process
from stacks_helpers import FIRST_PAGES, GCC, TARGETS, catch, compile_target, matches, physical

from ebpftrace.model import Report, Stack
from ebpftrace.sessions.leak_watch import LeakWatch
from ebpftrace.sessions.mmap_leaks import Settings, run
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver
from ebpftrace.unwind.runtimes import NOTE_GO_SWITCHED

COPIED = 32768


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def sites_and_stacks(engine: Engine, command: Sequence[str]) -> Iterator[tuple[int, Stack]]:
    resolver = None
    for caught in catch(command, limit=COPIED):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        yield caught.site, resolver.resolve(caught.copy)
    assert resolver is not None
    resolver.close()


def stacks_of(engine: Engine, command: Sequence[str]) -> dict[int, Stack]:
    return dict(sites_and_stacks(engine, command))


def all_stacks_of(engine: Engine, command: Sequence[str]) -> list[Stack]:
    return [stack for _, stack in sites_and_stacks(engine, command)]


def go_build(tmp_path: Path, source: Path, *options: str) -> Path:
    need("go", "gcc")
    binary = tmp_path / "program"
    environment = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    command = ["go", "build", *options, "-o", str(binary), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return binary


def test_go_calls_c_on_another_stack(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "main.go"
    source.write_text(
        "package main\n/*\n#include <sys/mman.h>\nstatic volatile int sink;\n"
        "__attribute__((noinline)) void c_inner(void) { mmap(0, 0x1230 * 4096UL, PROT_READ,\n"
        "  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); sink++; }\n"
        "__attribute__((noinline)) void c_entry(void) { c_inner(); sink++; }\n"
        '*/\nimport "C"\nimport "time"\nfunc main() { d := make(chan bool); go func() {\n'
        "  for i := 0; i < 20; i++ { C.c_entry(); time.Sleep(time.Millisecond) }; d <- true }(); <-d }\n"
    )
    stacks = all_stacks_of(engine, [str(go_build(tmp_path, source))])
    assert len(stacks) == 20
    for stack in stacks:
        # The scheduler has left frames above on that stack, which called nothing of this.
        assert physical(stack)[1:] == ["c_inner", "c_entry", "runtime.asmcgocall"]
        assert not stack.complete
        assert stack.note == NOTE_GO_SWITCHED


@pytest.mark.parametrize("options", [[], ["-ldflags=-s -w"]])
def test_goroutines_end_in_goexit(engine: Engine, tmp_path: Path, options: list[str]) -> None:
    whole = stacks_of(engine, [str(go_build(tmp_path, TARGETS / "stacks_goroutines.go"))])
    binary = go_build(tmp_path, TARGETS / "stacks_goroutines.go", *options)
    stacks = stacks_of(engine, [str(binary)])
    assert physical(whole[31])[-1] == "runtime.goexit"
    assert stacks[31].complete
    assert len(physical(stacks[31])) == len(physical(whole[31]))
    # runtime.main never returns, and nothing but the tables for debuggers says what called it.
    assert stacks[30].complete or (options and stacks[30].note.startswith("cut at"))


def test_fibers_of_boost(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "fiber.cpp"
    source.write_text(
        "#include <boost/context/fiber.hpp>\n#include <sys/mman.h>\nstatic volatile int sink;\n"
        "namespace boost_fiber = boost::context;\n"
        "__attribute__((noinline)) void inner() { mmap(0, 0x1230 * 4096UL, PROT_READ,\n"
        "  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); sink = sink + 1; }\n"
        "int main() { boost_fiber::fiber f([](boost_fiber::fiber &&m) {\n"
        "  inner(); sink = sink + 1; return std::move(m); }); f = std::move(f).resume(); }\n"
    )
    try:
        binary = compile_target(
            tmp_path / "fiber", "g++", "-O2", "-fomit-frame-pointer", str(source), "-lboost_context"
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("Boost is not installed")
    stack = stacks_of(engine, [str(binary)])[0]
    names = physical(stack)
    assert names[1] == "inner()"
    assert "fiber_entry" in names[2]
    assert len(names) == 4
    assert stack.complete, stack.note


def test_ruby(engine: Engine, tmp_path: Path) -> None:
    need("ruby")
    script = tmp_path / "app.rb"
    script.write_text(
        "require 'fiddle'\n"
        "V, L, I = Fiddle::TYPE_VOIDP, Fiddle::TYPE_LONG, Fiddle::TYPE_INT\n"
        "MAP = Fiddle::Function.new(Fiddle.dlopen(nil)['mmap'], [V, L, I, I, I, L], V)\n"
        f"def map(site) = MAP.call(nil, ({FIRST_PAGES} + site) * 4096, 1, 0x4022, -1, 0)\n"
        "map(1)\nThread.new { map(2) }.join\nFiber.new { map(3) }.resume\n"
    )
    stacks = stacks_of(engine, ["ruby", str(script)])
    assert stacks[1].complete, stacks[1].note
    assert "rb_vm_exec" in physical(stacks[1])
    assert stacks[3].complete, stacks[3].note
    # A thread's VM stack lies on its own: 1 MiB.
    assert stacks[2].complete or "further up the stack" in stacks[2].note, stacks[2].note


def test_fortran(engine: Engine, tmp_path: Path) -> None:
    need("gfortran")
    source = tmp_path / "app.f90"
    source.write_text(
        "module of\ncontains\n  recursive subroutine deep(further)\n    integer, intent(in) :: further\n"
        "    real(8), allocatable, save :: kept(:)\n"
        f"    if (further == 0) allocate(kept({(FIRST_PAGES * 4096 - 64) // 8}))\n"
        "    if (further > 0) call deep(further - 1)\n  end subroutine\nend module\n"
        "program app\n  use of\n  call deep(3)\nend program\n"
    )
    subprocess.run(["gfortran", "-O0", "-J", tmp_path, "-o", tmp_path / "app", source], check=True)
    stack = stacks_of(engine, [str(tmp_path / "app")])[0]
    assert stack.complete, stack.note
    names = physical(stack)
    assert names[names.index("__of_MOD_deep") :][:6] == [*4 * ["__of_MOD_deep"], "MAIN__", "main"]


def test_ocaml(engine: Engine, tmp_path: Path) -> None:
    need("ocamlopt")
    source = tmp_path / "app.ml"
    source.write_text(
        f"let[@inline never] inner () = Bytes.create {FIRST_PAGES * 4096}\n"
        "let[@inline never] middle () = Bytes.length (inner ())\n"
        "let[@inline never] outer i = i + middle ()\n"
        "let () = List.iter (fun i -> ignore (1 + outer i)) [1]\n"
    )
    subprocess.run(["ocamlopt", "-o", tmp_path / "app", source], check=True, cwd=tmp_path)
    chains = []
    for caught in catch([str(tmp_path / "app")], limit=COPIED, every=True):
        with StackResolver(caught.pid, engine) as resolver:
            stack = resolver.resolve(caught.copy)
        assert stack.complete, (stack.note, physical(stack))
        chains.append([name.rstrip("_0123456789") for name in physical(stack)])
    inside = next(names for names in chains if "camlApp__inner" in names)
    assert inside[inside.index("camlApp__inner") :][:7] == [
        "camlApp__inner", "camlApp__middle", "camlApp__outer", "camlApp__fun", "camlStdlib__List__iter",
        "camlApp__entry", "caml_program",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "ways"),
    [
        ("lua5.4", ["lua_pcallk", "lua_callk", "lua_resume"]),
        ("php", ["zend_execute", "zend_call_function", "zend_call_function"]),
    ],
)
def test_stripped_interpreters(engine: Engine, tmp_path: Path, program: str, ways: list[str]) -> None:
    """Their functions map memory from the program, from C code and in a coroutine."""
    need(program)
    script = tmp_path / "app"
    script.write_text(_INTERPRETED[program])
    stacks = stacks_of(engine, [program, str(script)])
    assert sorted(stacks) == [1, 2, 3]
    for site, way in enumerate(ways, 1):
        assert stacks[site].complete, (stacks[site].note, physical(stacks[site]))
        assert way in physical(stacks[site])


_INTERPRETED = {
    "lua5.4": f"""
        local kept = {{}}
        local function map(site) kept[site] = string.rep("x", ({FIRST_PAGES} + site) * 4096 - 256) end
        local function outer(site) map(site); return site end
        outer(1)
        string.gsub("x", ".", function() outer(2) end)
        coroutine.wrap(function() outer(3) end)()
    """,
    "php": f"""<?php
        function map($site) {{ return str_repeat("x", ({FIRST_PAGES} + $site) * 4096 - 256); }}
        function outer($site) {{ return map($site); }}
        $kept = [outer(1), array_map("outer", [2])];
        $fiber = new Fiber(function () use (&$kept) {{ $kept[] = outer(3); }});
        $fiber->start();
    """,
}


def test_optimized_code_of_v8(engine: Engine, tmp_path: Path) -> None:
    """V8 writes no unwind tables, and its optimized code ends in exits that are followed by data."""
    need("node")
    script = tmp_path / "app.js"
    script.write_text(
        "let kept = [];\n"
        "function inner(i) {\n"
        f"  if (i % 2000 === 0) kept.push(Buffer.allocUnsafeSlow({FIRST_PAGES * 4096 - 64}));\n"
        "  return i + 1; }\n"
        "function middle(i, o) { const n = inner(i); return n > 1e9 ? o.a.b : n * 1.5; }\n"
        "function outer(i) { return middle(i, kept) + 2; }\n"
        "let sum = 0;\n"
        "for (let i = 1; i < 100001; i++) sum += outer(i);\n"
    )
    options = ["--perf-basic-prof", "--interpreted-frames-native-stack", "--no-turbo-inlining"]
    options += ["--no-logfile-per-isolate", f"--logfile={tmp_path}/v8.log"]
    optimized = 0
    for caught in catch(["node", *options, str(script)], limit=COPIED):
        with StackResolver(caught.pid, engine) as resolver:  # which reads the perf map as it is now
            stack = resolver.resolve(caught.copy)
        assert stack.complete, (stack.note, physical(stack))
        names = [name.split()[0] for name in physical(stack) if f"{script}:" in name]
        assert [name.lstrip("JS:*^~+") for name in names] == ["inner", "middle", "outer", ""], physical(stack)
        optimized += names[1].startswith("JS:*")
    assert optimized > 10


class Seen(Quiet):
    """An observer of a trace that keeps the stacks of its findings' calls."""

    def __init__(self) -> None:
        self.stacks: list[Stack] = []

    def report(self, report: Report, watch: LeakWatch) -> None:  # noqa: ARG002
        stacks = watch._stacks
        self.stacks += [stacks.stack(number) for ways in stacks._by_site.values() for number in ways]


def test_java_interpreter_called_by_compiled_code(tmp_path: Path) -> None:
    """The interpreter's caller begins above the arguments that were put on the stack for it."""
    need("java", "javac", "jcmd")
    subprocess.run(["javac", "-d", tmp_path, Path(__file__).parent / "Arguments.java"], check=True)
    modes = ["-Xcomp", "-XX:CompileCommand=quiet", "-XX:CompileCommand=exclude,Arguments.start"]
    seen = Seen()
    with process("java", *modes, "-cp", tmp_path, "Arguments", ready=lambda line: line == "ready") as (
        java,
        _,
    ):
        # With -Xcomp what is run is compiled before it is; its names are those of the first rounds.
        subprocess.run(["jcmd", str(java.pid), "Compiler.perfmap"], check=True, stdout=subprocess.DEVNULL)
        run(Settings(pids=[java.pid], duration=5.0), seen)
    starts = [
        names
        for names in (physical(stack) for stack in seen.stacks if stack.complete)
        if "JVM_StartThread" in names
    ]
    assert starts, [stack.note for stack in seen.stacks]
    for names in starts:
        called = names.index("Interpreter")
        assert names[called - 1 : called + 3] == [
            "void java.lang.Thread.start()",
            "Interpreter",
            "void Arguments.middle(int, long)",
            "void Arguments.main(java.lang.String[])",
        ]


def test_java_frames_that_may_not_go_on_in_compiled_code(tmp_path: Path) -> None:
    """The JVM has replaced the address that they are returned to."""
    need("java", "javac", "jcmd")
    subprocess.run(["javac", "-d", tmp_path, Path(__file__).parent / "Deoptimized.java"], check=True)
    modes = ["-Xbatch", "-XX:CompileCommand=quiet"]
    modes += [f"-XX:CompileCommand=dontinline,Deoptimized.{name}" for name in ("below", "starting")]
    seen = Seen()
    with process("java", *modes, "-cp", tmp_path, "Deoptimized", ready=lambda line: line == "ready") as (
        java,
        _,
    ):
        subprocess.run(["jcmd", str(java.pid), "Compiler.perfmap"], check=True, stdout=subprocess.DEVNULL)
        run(Settings(pids=[java.pid], duration=3.0), seen)
    starts = [stack for stack in seen.stacks if "JVM_StartThread" in physical(stack)]
    assert starts
    for stack in starts:
        names = physical(stack)
        assert stack.complete, (stack.note, names)
        assert names[names.index("void Deoptimized.main(java.lang.String[])") + 1].startswith("StubRoutines")


def test_gdb_says_the_same(engine: Engine, tmp_path: Path) -> None:
    """Of functions that only tables for debuggers tell of."""
    need("gdb")
    source = str(TARGETS / "stacks_chain.c")
    options = ["-g", "-fno-asynchronous-unwind-tables"]
    binary = compile_target(tmp_path / "chain", *GCC, *options, source, "-pthread", "-ldl")
    length = FIRST_PAGES * 4096
    commands = ("catch syscall mmap", f"condition 1 $rsi == {length}", "run", "bt")
    script = [word for command in commands for word in ("-ex", command)]
    result = subprocess.run(
        ["gdb", "-nx", "-batch", *script, str(binary)], check=True, capture_output=True, text=True
    ).stdout
    true = [line.split(" in ", 1)[-1].split(" (")[0] for line in result.splitlines() if line.startswith("#")]
    true = [name.split()[-1] for name in true if "mmap" not in name]
    if len(true) < 3:
        pytest.skip("gdb cannot run programs here")
    stack = stacks_of(engine, [str(binary)])[0]
    assert stack.complete, stack.note
    assert matches(physical(stack), [*true, "..."]), (physical(stack), true)
