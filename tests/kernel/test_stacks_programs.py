# SPDX-License-Identifier: Apache-2.0
"""Whole stacks of small programs, compiled in many ways, against what their sources say."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from stacks_helpers import (
    GCC,
    SYS_CLONE,
    SYS_CLONE3,
    SYS_MMAP,
    TARGETS,
    catch,
    compile_target,
    matches,
    physical,
)

from ebpftrace.model import Stack, StackSource
from ebpftrace.unwind import debugfiles
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import NOTE_TRUNCATED, StackResolver
from ebpftrace.unwind.runtimes import NOTE_GO_SWITCHED

pytest.importorskip("drgn")

CHAIN = ["leaf", "middle", "outer"]
OUTERMOST = ["main", "*", "*", "_start"]
"""glibc 2.34 and newer: __libc_start_call_main, __libc_start_main."""
EXPECTED = {
    0: [*CHAIN, *OUTERMOST],
    1: [*CHAIN, "compare", "...", "sort", *OUTERMOST],
    2: [*CHAIN, "on_signal", "...", "interrupted", *OUTERMOST],
    3: [*CHAIN, "thread_main", "...", "*"],
    6: ["has_inlined", *OUTERMOST],
}
"""Physical frames from the caller of mmap outwards; "*" is any one frame, "..." any number."""
PLUGIN = [*CHAIN, "plugin_inner", "plugin_entry", "in_plugin", *OUTERMOST]

CLANG = ["clang", "-O2", "-fomit-frame-pointer"]
BUILDS = {
    "debug": [*GCC, "-g"],
    "plain": [*GCC],
    "stripped": [*GCC, "-s"],
    "no-pie": [*GCC, "-no-pie", "-fno-pie"],
    "static": [*GCC, "-static"],
    "static-stripped": [*GCC, "-static", "-s"],
    "static-pie": [*GCC, "-static-pie", "-fPIE"],
    "gold": [*GCC, "-fuse-ld=gold"],
    "gold-stripped": [*GCC, "-fuse-ld=gold", "-s"],
    "compressed-debug": [*GCC, "-g", "-gz"],
    "split-dwarf": [*GCC, "-g", "-gsplit-dwarf"],
    "lto": [*GCC, "-g", "-flto"],
    "dwarf4": [*GCC, "-gdwarf-4"],
    "size": ["gcc", "-Os", "-fomit-frame-pointer"],
    "frame-pointers": ["gcc", "-O2", "-fno-omit-frame-pointer"],
    "clang": [*CLANG, "-g"],
    "clang-lld": [*CLANG, "-fuse-ld=lld"],
    "clang-lld-stripped": [*CLANG, "-fuse-ld=lld", "-s"],
    "large-pages": [*GCC, "-Wl,-z,max-page-size=2097152"],
    "no-section-headers": [*GCC],
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plugin") / "plugin.so"
    return compile_target(out, *GCC, "-shared", "-fPIC", str(TARGETS / "stacks_plugin.c"))


def build(name: str, out: Path) -> Path:
    command = BUILDS[name]
    if shutil.which(command[0]) is None or ("-fuse-ld=lld" in command and shutil.which("ld.lld") is None):
        pytest.skip(f"{command[0]} or its linker is not installed")
    if "-fuse-ld=gold" in command and shutil.which("ld.gold") is None:
        pytest.skip("ld.gold is not installed")
    return compile_target(out, *command, str(TARGETS / "stacks_chain.c"), "-pthread", "-ldl")


def stacks_of(engine: Engine, command: Sequence[str], **options: object) -> dict[int, Stack]:
    stacks = {}
    resolver = None
    for caught in catch(command, **options):  # type: ignore[arg-type]
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        stacks.setdefault(caught.site, resolver.resolve(caught.copy))
    assert resolver is not None
    resolver.close()
    return stacks


def symbol_starts(binary: Path) -> dict[int, str]:
    listed = subprocess.run(["nm", str(binary)], check=True, capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return {int(row[0], 16): row[2] for row in rows if len(row) == 3 and row[1] in "tT"}


def renamed_by_twin(stack: Stack, twin: Path) -> list[str]:
    """Names of a stripped program's frames by the symbols of its unstripped twin: same addresses."""
    starts = symbol_starts(twin)
    ordered = sorted(starts)
    names = []
    for frame in stack.frames:
        if frame.inlined:
            continue
        if frame.function is None and frame.offset is not None and "chain" in (frame.module or ""):
            names.append(starts[max(start for start in ordered if start < frame.offset)])
        else:
            names.append(frame.function or "?")
    return names


@pytest.mark.parametrize("name", BUILDS)
def test_every_build_gives_the_whole_stack(name: str, tmp_path: Path, engine: Engine, plugin: Path) -> None:
    binary = build(name, tmp_path / "chain")
    twin = binary
    if "stripped" in name:
        BUILDS["twin"] = [word for word in BUILDS[name] if word != "-s"]
        twin = build("twin", tmp_path / "chain_twin")
        del BUILDS["twin"]
    if name == "no-section-headers":
        raw = bytearray(binary.read_bytes())
        raw[0x28:0x30], raw[0x3C:0x40] = bytes(8), bytes(4)
        twin = tmp_path / "chain_twin"
        shutil.copy(binary, twin)
        binary.write_bytes(raw)
    stacks = stacks_of(engine, [str(binary)] if "static" in name else [str(binary), str(plugin)])
    for site, expected in {**EXPECTED, **({} if "static" in name else {4: PLUGIN})}.items():
        stack = stacks[site]
        names = renamed_by_twin(stack, twin) if twin is not binary else physical(stack)
        assert stack.complete, (site, names, stack.note)
        assert stack.source is StackSource.COPIED
        assert stack.note == ""
        assert matches(names, [*expected[:-1], "*"]), (site, names)


@pytest.mark.parametrize("name", ["debug", "static"])
def test_too_deep_a_stack_is_cut_and_says_so(name: str, tmp_path: Path, engine: Engine) -> None:
    stack = stacks_of(engine, [str(build(name, tmp_path / "chain"))])[5]
    names = physical(stack)
    assert names[1:5] == [*CHAIN, "recursion"]
    assert set(names[4:]) == {"recursion"}
    assert len(names) > 100
    assert not stack.complete
    assert stack.note == NOTE_TRUNCATED


@pytest.mark.parametrize("limit", [64, 256, 512, 1024, 2048, 4096])
def test_a_short_copy_gives_a_beginning_of_the_stack_and_nothing_wrong(
    limit: int, tmp_path: Path, engine: Engine
) -> None:
    binary = str(build("debug", tmp_path / "chain"))
    whole = stacks_of(engine, [binary], limit=65536)
    for site, stack in stacks_of(engine, [binary], limit=limit).items():
        names, full = physical(stack), physical(whole[site])
        assert names == full[: len(names)], site
        assert stack.complete == (names == full)
        assert stack.complete or stack.note == NOTE_TRUNCATED


def test_debug_info_gives_lines_and_inlined_functions(tmp_path: Path, engine: Engine) -> None:
    stacks = stacks_of(engine, [str(build("debug", tmp_path / "chain"))])
    lines = (TARGETS / "stacks_chain.c").read_text().splitlines()
    leaf = next(f for f in stacks[0].frames if f.function == "leaf")
    assert leaf.file is not None
    assert leaf.file.endswith("stacks_chain.c")
    assert "mmap(" in lines[(leaf.line or 0) - 1]
    inlined = next(f for f in stacks[6].frames if f.function == "inlined")
    assert inlined.inlined
    assert "mmap(" in lines[(inlined.line or 0) - 1]


def test_the_creator_of_a_thread_is_named(tmp_path: Path, engine: Engine) -> None:
    calls = (SYS_CLONE, SYS_CLONE3)
    stacks = stacks_of(engine, [str(build("plain", tmp_path / "chain"))], calls=calls)
    names = physical(stacks[-1])
    assert stacks[-1].complete
    assert any("pthread_create" in name for name in names), names
    assert names[-4] == "main"


def test_a_start_routine_is_named_by_its_address(tmp_path: Path, engine: Engine) -> None:
    binary = build("no-pie", tmp_path / "chain")
    address = next(start for start, name in symbol_starts(binary).items() if name == "thread_main")
    calls = catch([str(binary)])
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        frame = resolver.name_address(address)
        assert frame is not None
        assert frame.function == "thread_main"
        assert resolver.name_address(0x10) is None
    calls.close()


def test_cxx_templates_and_threads(tmp_path: Path, engine: Engine) -> None:
    source = str(TARGETS / "stacks_classes.cpp")
    binary = compile_target(tmp_path / "classes", "g++", "-O2", "-fomit-frame-pointer", source, "-pthread")
    stacks = stacks_of(engine, [str(binary)])
    assert "shop::Pool<int>::grow(int)" in physical(stacks[7])[1]
    assert "shop::Pool<double>::grow(int)" in physical(stacks[8])[1]
    assert any("shop::with_lambda()" in name for name in physical(stacks[8]))
    assert "shop::worker(int)" in physical(stacks[9])
    assert all(stack.complete for stack in stacks.values())


@pytest.mark.parametrize("mangling", ["default", "v0"])
def test_rust(mangling: str, tmp_path: Path, engine: Engine) -> None:
    if shutil.which("rustc") is None:
        pytest.skip("rustc is not installed")
    options = [] if mangling == "default" else [f"-Csymbol-mangling-version={mangling}"]
    command = ["rustc", "-O", *options, "--crate-name", "crate_of_stacks", str(TARGETS / "stacks_crate.rs")]
    try:
        binary = compile_target(tmp_path / "crate_of_stacks", *command)
    except subprocess.CalledProcessError:
        pytest.skip("this rustc has no such option")
    stacks = stacks_of(engine, [str(binary)])
    assert physical(stacks[10])[1:4] == [
        "crate_of_stacks::leaf",
        "crate_of_stacks::outer",
        "crate_of_stacks::main",
    ]
    assert "grow" in physical(stacks[11])[2]
    assert all(stack.complete for stack in stacks.values())


def test_without_any_tables_the_code_says_how_it_returns(tmp_path: Path, engine: Engine) -> None:
    options = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-exceptions"]
    source = str(TARGETS / "stacks_chain.c")
    binary = compile_target(tmp_path / "chain", *GCC, *options, source, "-pthread", "-ldl")
    stacks = stacks_of(engine, [str(binary)])
    for site, expected in EXPECTED.items():
        assert matches(physical(stacks[site]), [*expected[:-1], "*"]), (site, physical(stacks[site]))
        assert stacks[site].complete, (site, stacks[site].note)
        assert stacks[site].note == ""


@pytest.fixture
def tableless(tmp_path: Path) -> Path:
    """The source of a program of which no instruction tells how its functions return, nor who called them."""
    source = tmp_path / "loop.c"
    source.write_text(
        "#include <sys/mman.h>\n"
        "static volatile int sink;\n"
        "__attribute__((noinline)) static void serve(int n) {\n"
        "  volatile char buffer[900]; for (;;) { buffer[n] = 1;\n"
        "  mmap(0, 0x1230 * 4096UL, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);\n"
        "  sink += buffer[n]; } }\n"
        "static void (*volatile chosen)(int) = serve;\n"
        "int main(void) { volatile char buffer[300]; for (;;) { chosen(buffer[0] = 3); sink++; } }\n"
    )
    return source


def first_stack(engine: Engine, binary: Path) -> Stack:
    calls = catch([str(binary)])
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
    calls.close()
    return stack


TABLELESS = ["-g", "-fno-asynchronous-unwind-tables"]
COMPRESSIONS = ["none", "zlib", "zlib-gnu", "zstd"]


def compress(binary: Path, compression: str) -> None:
    try:
        subprocess.run(["objcopy", f"--compress-debug-sections={compression}", binary], check=True)
    except subprocess.CalledProcessError:
        pytest.skip(f"this objcopy has no {compression}")


@pytest.mark.parametrize("options", [["-gdwarf-5"], ["-gdwarf-4"]])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_tables_for_debuggers_are_used_where_there_are_no_others(
    options: list[str], compression: str, tableless: Path, tmp_path: Path, engine: Engine
) -> None:
    binary = compile_target(tmp_path / "loop", *GCC, *TABLELESS, *options, str(tableless))
    compress(binary, compression)
    stack = first_stack(engine, binary)
    assert matches(physical(stack), ["serve", *OUTERMOST[:-1], "*"]), physical(stack)
    assert stack.complete


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("link", ["debug link", "debug link without a build id", "build id"])
def test_tables_for_debuggers_are_found_in_a_separate_file(
    link: str,
    compression: str,
    tableless: Path,
    tmp_path: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_id = "none" if "without" in link else f"0x{uuid.uuid4().hex}"
    binary = compile_target(tmp_path / "loop", *GCC, *TABLELESS, f"-Wl,--build-id={build_id}", str(tableless))
    debug = tmp_path / "loop.debug"
    subprocess.run(["objcopy", "--only-keep-debug", binary, debug], check=True)
    compress(debug, compression)
    subprocess.run(["strip", binary], check=True)
    if link == "build id":
        monkeypatch.setattr(debugfiles, "DEBUG_ROOT", str(tmp_path))
        place = tmp_path / ".build-id" / build_id[2:4] / f"{build_id[4:]}.debug"
        place.parent.mkdir(parents=True)
        shutil.move(debug, place)
    else:
        subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", binary], check=True)
    stack = first_stack(engine, binary)
    assert matches(physical(stack), ["serve", *OUTERMOST[:-1], "*"]), physical(stack)
    assert stack.complete
    assert stack.note == ""


def test_tables_of_another_program_are_not_used(tableless: Path, tmp_path: Path, engine: Engine) -> None:
    binary = compile_target(tmp_path / "loop", *GCC, *TABLELESS, "-Wl,--build-id=0x1234", str(tableless))
    other = compile_target(
        tmp_path / "other", *GCC, *TABLELESS, "-O0", "-Wl,--build-id=0x1235", str(tableless)
    )
    subprocess.run(["objcopy", f"--add-gnu-debuglink={other}", binary], check=True)
    subprocess.run(["strip", binary], check=True)
    stack = first_stack(engine, binary)
    assert not stack.complete
    assert stack.note.startswith("cut at loop+0x")


@pytest.mark.parametrize("options", [[], ["-static"]])
def test_musl_has_no_tables_yet_its_code_says_how_it_returns(
    options: list[str], tmp_path: Path, engine: Engine
) -> None:
    """musl is built without unwind tables: mmap itself has none, main's caller has none."""
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed")
    command = ["musl-gcc", "-O2", "-fomit-frame-pointer", *options, str(TARGETS / "stacks_chain.c")]
    stacks = stacks_of(engine, [str(compile_target(tmp_path / "chain", *command))])
    names = physical(stacks[0])
    assert names[1:5] == [*CHAIN, "main"]
    assert names[-1] == "_start"
    assert stacks[0].complete
    assert physical(stacks[1])[1:5] == [*CHAIN, "compare"]
    assert physical(stacks[3])[1:5] == [*CHAIN, "thread_main"]
    assert stacks[3].complete
    assert all(stack.note == "" for site, stack in stacks.items() if site != 5)
    # Assembly of musl has no sizes, and its shared library lists only what it exports.
    assert physical(stacks[3])[-1] == "__clone" if options else physical(stacks[3])[-1].startswith("libc.so+")


def test_goroutines(tmp_path: Path, engine: Engine) -> None:
    """Go writes no unwind tables; its runtime calls mmap from another stack than the goroutine's."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    binary = tmp_path / "goroutines"
    subprocess.run(
        ["go", "build", "-o", str(binary), str(TARGETS / "stacks_goroutines.go")],
        check=True,
        capture_output=True,
        env={**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"},
    )
    resolver = None
    of_runtime = []
    stacks = {}
    for caught in catch([str(binary)], every=True):
        resolver = resolver or StackResolver(caught.pid, engine)
        stack = resolver.resolve(caught.copy)
        if caught.site < 0:
            of_runtime.append(stack)
        else:
            stacks[caught.site] = stack
    assert resolver is not None
    resolver.close()
    assert physical(stacks[30])[-5:] == [
        "main.leaf",
        "main.outer",
        "main.main",
        "runtime.main",
        "runtime.goexit",
    ]
    names = physical(stacks[31])
    assert names[names.index("main.leaf") :][:3] == ["main.leaf", "main.outer", "main.worker"]
    assert names[-1] == "runtime.goexit"
    assert stacks[30].complete
    assert stacks[31].complete
    for stack in of_runtime:
        assert stack.complete or NOTE_GO_SWITCHED in stack.note, (physical(stack), stack.note)
        assert not (stack.complete and "runtime.systemstack" in physical(stack))
        switches = {"runtime.systemstack", "runtime.mcall"} & {
            name.split(".abi")[0] for name in physical(stack)[:-1]
        }
        assert not switches, physical(stack)
    assert any(stack.complete for stack in of_runtime)
    assert any(NOTE_GO_SWITCHED in stack.note for stack in of_runtime)


def test_the_start_routine_of_a_library_is_reported_by_the_library(tmp_path: Path, engine: Engine) -> None:
    """std::thread's lies in libstdc++, which distributions strip of its name."""
    source = str(TARGETS / "stacks_classes.cpp")
    binary = compile_target(tmp_path / "classes", "g++", "-O2", source, "-pthread")
    for caught in (calls := catch([str(binary)])):
        if caught.site == 9:
            break
    with StackResolver(caught.pid, engine) as resolver:
        layout = resolver._history.at(None)
        walk = engine.walk(layout, caught.copy)
        assert walk is not None
        runs_in = next(
            pc.address - 1 for pc in walk.pcs if "libstdc++" in getattr(layout.find(pc.address), "path", "")
        )
        frame = resolver.name_address(runs_in)
    calls.close()
    assert frame is not None
    assert frame.function in ("std::thread's start routine", "execute_native_thread_routine")


def test_every_mmap_of_a_real_program(engine: Engine) -> None:
    """python3 as Debian builds it: stripped, without frame pointers."""
    program = shutil.which("python3", path="/usr/bin:/bin")
    if program is None:
        pytest.skip("no system python3")
    script = (
        "import json, threading, sqlite3; t = threading.Thread(target=len, args=('',)); t.start(); t.join()"
    )
    resolver = None
    complete = []
    for caught in catch([program, "-c", script], calls=(SYS_MMAP,), every=True):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        stack = resolver.resolve(caught.copy)
        complete.append(stack.complete or NOTE_TRUNCATED in stack.note)
    assert len(complete) > 40
    assert sum(complete) >= 0.99 * len(complete)
