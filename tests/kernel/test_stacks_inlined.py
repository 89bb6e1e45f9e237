# SPDX-License-Identifier: Apache-2.0
"""Names and lines against llvm-symbolizer, an independent reader, for every call in a program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks_helpers import GCC, TARGETS, catch, compile_target

from ebpftrace.model import Frame
from ebpftrace.unwind.copies import Name
from ebpftrace.unwind.debuginfo import MAX_NAME, DebugInfo
from ebpftrace.unwind.demangle import demangle
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import StackResolver

pytest.importorskip("drgn")

CXX = {
    f"{compiler}{''.join(options)}": [compiler, "-O2", "-std=c++17", *options]
    for compiler in ("g++", "clang++")
    for options in (
        ["-g"],
        ["-gdwarf-4"],
        ["-g", "-gsplit-dwarf"],
        ["-g", "-flto"],
        ["-g", "-fdebug-types-section"],
        ["-g", "-gz"],
    )
}
RUST = {
    "rustc": ["rustc", "-O", "-g"],
    "rustc v0": ["rustc", "-O", "-g", "-Csymbol-mangling-version=v0"],
}
BUILDS = {**{name: [*how, "stacks_inlined.cpp"] for name, how in CXX.items()},
          **{name: [*how, "stacks_inlined.rs"] for name, how in RUST.items()},
          "gcc": [*GCC, "-g", "-pthread", "stacks_chain.c"]}  # fmt: skip
MOST = 500
_CALL = re.compile(r"^ *([0-9a-f]+):\tcall", re.MULTILINE)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def build(name: str, out: Path) -> Path:
    *command, source = BUILDS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    command += ["-o", str(out), str(TARGETS / source)]
    # Some compilers write the debug information that they split off to where they run.
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=out.parent)
    return out


def first_stack(binary: Path, engine: Engine) -> tuple[Frame, ...]:
    caught = catch([str(binary)])
    first = next(caught)
    with StackResolver(first.pid, engine) as resolver:
        frames = resolver.resolve(first.copy).frames
    caught.close()
    return frames


def calls(binary: Path) -> list[int]:
    """File addresses of the call instructions of a program, at most MOST, evenly over it."""
    listed = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(binary)], check=True, capture_output=True, text=True
    )
    found = [int(address, 16) for address in _CALL.findall(listed.stdout)]
    return found[:: len(found) // MOST + 1]


Line = tuple[str, str, int]
"""Function, file and line."""


def by_llvm(binary: Path, addresses: list[int]) -> dict[int, list[Line]]:
    result = subprocess.run(
        ["llvm-symbolizer", f"--obj={binary}", "--inlines", "--no-demangle"],
        check=True, capture_output=True, text=True, input="\n".join(map(hex, addresses)),
    ).stdout  # fmt: skip
    found = {}
    for address, block in zip(addresses, result.split("\n\n")):
        lines = iter(block.splitlines())
        found[address] = [_line(function, next(lines)) for function in lines]
    return found


def _line(function: str, place: str) -> Line:
    file, line, _ = place.rsplit(":", 2)
    return demangle(function)[:MAX_NAME], os.path.normpath(file), int(line)


def same(ours: list[Name], theirs: list[Line]) -> bool:
    """The same functions at the same places; what has no linkage name we qualify, and LLVM does not."""
    return len(ours) == len(theirs) and all(
        (one.function or "").endswith(function)
        and (os.path.normpath(one.file or "??"), one.line or 0) == (file, line)
        for one, (function, file, line) in zip(ours, theirs)
    )


@pytest.mark.parametrize("name", BUILDS)
def test_every_call_has_the_functions_and_lines_that_llvm_reports(name: str, tmp_path: Path) -> None:
    binary = build(name, tmp_path / "program")
    addresses = calls(binary)
    truth = by_llvm(binary, addresses)
    debug_info = DebugInfo(os.open(binary, os.O_RDONLY))
    # Without a line it knows a function by its symbol alone.
    result = {address: debug_info.names(address) for address in addresses if truth[address][-1][2]}
    wrong = {}
    for address, ours in result.items():
        theirs = truth[address]
        # The outermost one it names by the symbol, such as main.cold: we too, but not here.
        outermost = [(ours[-1].function or "", *theirs[-1][1:])] if ours else []
        if not same(ours, theirs[:-1] + outermost):
            wrong[hex(address)] = (ours, theirs)
    assert not wrong
    assert any(len(ours) > 1 for ours in result.values())


INLINED = [
    ("app::(anonymous namespace)::map_now", "mmap(nullptr"),
    ("app::Pool<app::Job>::grow(int)", "map_now("),
    ("app::Job::Step::run(app::Pool<app::Job>&)::", "pool.grow("),
    ("app::Job::Step::run(app::Pool<app::Job>&)", "twice(1)"),
    ("app::tick()", "Job::Step::run("),
]


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_functions_inlined_in_namespaces_and_classes_are_in_the_stack(
    compiler: str, tmp_path: Path, engine: Engine
) -> None:
    binary = build(f"{compiler}-g", tmp_path / "program")
    frames = first_stack(binary, engine)
    source = (TARGETS / "stacks_inlined.cpp").read_text().splitlines()
    result = [frame for frame in frames if frame.file and frame.file.endswith("stacks_inlined.cpp")]
    for frame, (function, statement) in zip(result, INLINED):
        assert (frame.function or "").startswith(function)
        assert statement in source[(frame.line or 0) - 1]
    assert [frame.inlined for frame in result] == [True] * 4 + [False, False]


def without_section_headers(binary: Path) -> Path:
    raw = bytearray(binary.read_bytes())
    raw[0x28:0x30], raw[0x3C:0x40] = bytes(8), bytes(4)
    out = binary.with_name("bare")
    out.write_bytes(raw)
    out.chmod(0o755)
    return out


@pytest.mark.parametrize("hash_style", ["gnu", "sysv"])
def test_a_library_without_section_headers_reports_what_it_exports(
    hash_style: str, tmp_path: Path, engine: Engine
) -> None:
    source = str(TARGETS / "stacks_plugin.c")
    options = ["-shared", "-fPIC", f"-Wl,--hash-style={hash_style}"]
    plugin = without_section_headers(compile_target(tmp_path / "plugin.so", *GCC, *options, "-s", source))
    binary = build("gcc", tmp_path / "chain")
    stacks = {}
    for caught in catch([str(binary), str(plugin)]):
        with StackResolver(caught.pid, engine) as resolver:
            stacks[caught.site] = resolver.resolve(caught.copy)
    of_plugin = [frame.function for frame in stacks[4].frames if frame.module == str(plugin)]
    assert "plugin_entry" in of_plugin


def test_a_stripped_program_of_many_sections_has_its_names_from_its_debug_file(
    tmp_path: Path, engine: Engine
) -> None:
    sections = tmp_path / "sections.s"
    lines = [f'.section .keep_{number},"a",@progbits\n.byte 1' for number in range(300)]
    sections.write_text("\n".join(lines) + "\n")
    source = str(TARGETS / "stacks_chain.c")
    whole = compile_target(tmp_path / "chain", *GCC, source, str(sections), "-pthread", "-ldl")
    objcopy = ["objcopy", "--only-keep-debug", str(whole), str(tmp_path / "chain.debug")]
    subprocess.run(objcopy, check=True)
    subprocess.run(["strip", str(whole)], check=True)
    subprocess.run(["objcopy", f"--add-gnu-debuglink={tmp_path}/chain.debug", str(whole)], check=True)
    names = [frame.function for frame in first_stack(whole, engine) if frame.module == str(whole)]
    assert names[:3] == ["leaf", "middle", "outer"]
