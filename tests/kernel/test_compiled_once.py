# SPDX-License-Identifier: Apache-2.0
"""Programs are compiled once; a trace with kept ones is the same; of no use, they are compiled again."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ebpftrace.capture import cache, loader
from ebpftrace.capture.compiled import Compiled, Program, Table, relocated
from ebpftrace.capture.installed import PROG_LOAD, TRACEPOINT, Installed, ProgLoad
from ebpftrace.capture.layout import Sizes
from ebpftrace.capture.loader import install_ledger, ledger_constants
from ebpftrace.capture.sizing import Needs
from ebpftrace.capture.tables import MapInfo, bpf, map_info
from ebpftrace.sessions.tracing import begin_loading

SIZES = Sizes(mappings=500, exited=400, threads=600, sites=700, stack_bytes=8192, copies_per_second=5)
LARGER = replace(SIZES, mappings=1500, exited=1400, threads=1600)


@pytest.fixture
def compilations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Compiled]:
    """What was compiled; the cache is empty at first."""
    made: list[Compiled] = []
    compile_source = loader.compile_source

    def counted(source: Path, constants: Mapping[str, int]) -> Compiled:
        made.append(compile_source(source, constants))
        return made[-1]

    monkeypatch.setattr(loader, "compile_source", counted)
    monkeypatch.setattr(cache, "cache_directory", lambda: tmp_path / "cache")
    return made


def installed_with(sizes: Sizes) -> Installed:
    needs = Needs([100], 1, 65_530, 32_768, stack_bytes=sizes.stack_bytes, copies_per_second=5)
    _, constants = ledger_constants(needs)
    return install_ledger(sizes, constants)


def tables(installed: Installed) -> dict[str, MapInfo]:
    return {name: map_info(fd) for name, fd in installed.tables.items()}


def kinds(installed: Installed) -> list[Table]:
    return [
        Table(name, one.type, one.key_size, one.value_size, one.max_entries, one.map_flags)
        for name, one in tables(installed).items()
    ]


def programs_file(place: Path) -> Path:
    return max(place.iterdir(), key=lambda path: path.stat().st_size)


def test_kept_programs_are_the_same_and_tables_as_large_as_asked_for(compilations: list[Compiled]) -> None:
    first = installed_with(SIZES)
    made, programs = kinds(first), set(first.programs)
    first.close()
    assert len(compilations) == 1
    second = installed_with(SIZES)
    assert (kinds(second), set(second.programs)) == (made, programs)
    second.close()
    larger = installed_with(LARGER)
    sizes = {name: one.max_entries for name, one in tables(larger).items()}
    assert [sizes[name] for name in ("mappings", "exited", "threads", "sites")] == [1500, 1400, 1600, 700]
    larger.close()
    assert len(compilations) == 1


def test_another_constant_is_another_program(compilations: list[Compiled]) -> None:
    for bytes_of_stack in (0, 4096, 0):
        installed_with(replace(SIZES, stack_bytes=bytes_of_stack)).close()
    assert len(compilations) == 2


def spoil(place: Path) -> None:
    file = programs_file(place)
    file.write_bytes(file.read_bytes()[:-100])


def may_be_anybodys(place: Path) -> None:
    programs_file(place).chmod(0o666)


def hold_what_the_kernel_refuses(place: Path) -> None:
    """As if it was compiled by somebody who did not know this kernel."""
    raw = programs_file(place).read_bytes()
    compiled = Compiled.from_bytes(raw[32:])
    cut = [one._replace(instructions=one.instructions[:-8]) for one in compiled.programs]
    content = compiled._replace(programs=tuple(cut)).to_bytes()
    checksum = cache.hashlib.sha256(programs_file(place).name.encode() + content).digest()
    programs_file(place).write_bytes(checksum + content)


@pytest.mark.parametrize("change", [spoil, may_be_anybodys, hold_what_the_kernel_refuses])
def test_what_is_of_no_use_is_compiled_again(
    compilations: list[Compiled], tmp_path: Path, change: object
) -> None:
    installed_with(SIZES).close()
    change(tmp_path / "cache")  # type: ignore[operator]
    again = installed_with(SIZES)
    assert len(again.programs) == len(compilations[0].programs)
    again.close()
    installed_with(SIZES).close()
    assert len(compilations) == 2


def test_a_place_where_nothing_can_be_kept_is_no_hindrance(
    compilations: list[Compiled], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("no directory")
    for _ in range(2):
        with begin_loading([os.getpid()], max_mappings=100) as loading:
            assert "mappings" in loading.wait().tables
    assert len(compilations) == 2


def test_the_verifier_has_little_to_follow(compilations: list[Compiled]) -> None:
    """It takes half of the CPU time of a short trace; 326,000 instructions were followed once."""
    installed = installed_with(SIZES)
    places = dict(enumerate(installed.tables.values()))
    followed = {
        program.name: instructions_followed(program, places)
        for program in compilations[0].programs
        if not program.name.startswith("raw_tracepoint__")
    }
    installed.close()
    assert sum(followed.values()) < 250_000, followed


def instructions_followed(program: Program, places: Mapping[int, int]) -> int:
    code = relocated(program.instructions, places)
    instructions, license_text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(4096)
    attributes = ProgLoad(
        prog_type=TRACEPOINT,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(instructions),
        license=ctypes.addressof(license_text),
        log_level=4,  # BPF_LOG_STATS, include/linux/bpf_verifier.h
        log_size=len(log),
        log_buf=ctypes.addressof(log),
    )
    os.close(bpf(PROG_LOAD, attributes))
    found = re.search(rb"processed (\d+) insns", log.value)
    assert found
    return int(found[1])
