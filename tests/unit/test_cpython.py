# SPDX-License-Identifier: Apache-2.0
"""Python code by what is in memory: location tables against the interpreter's own, and any bytes at all."""

from __future__ import annotations

import ast
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Frame
from ebpftrace.stacks.cpython import (
    EVALUATES,
    PythonCode,
    line_of,
    python_of,
    version_of,
    with_python,
)

CONTROL = struct.Struct("<8sQQ 3Q 13Q 9Q 6Q 10Q")


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="location tables are of Python 3.11 and later")
@pytest.mark.parametrize("module", [ast, threading])
def test_lines_are_those_that_the_interpreter_tells(module: object) -> None:
    source = Path(module.__file__).read_text()  # type: ignore[attr-defined]
    checked = 0
    for code in codes(compile(source, "module.py", "exec")):
        for start, end, line in code.co_lines():
            for unit in range(start // 2, end // 2):
                # The first instruction of a module is at line 0, which nobody can look at.
                assert line_of(code.co_linetable, code.co_firstlineno, unit) == (line or None)
                checked += 1
    assert checked > 1000


@given(st.binary(max_size=200), st.integers(-5, 1 << 40), st.integers(-5, 1 << 40))
def test_any_location_table_is_read(table: bytes, first: int, unit: int) -> None:
    line_of(table, first, unit)


@given(
    st.binary(min_size=1, max_size=400),
    st.sampled_from(["/usr/bin/python3.11", "/lib/libpython3.12.so.1.0"]),
    st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 3), max_size=24),
)
def test_whatever_is_in_memory_the_frames_are_bounded(
    memory: bytes, path: str, recorded: list[tuple[int, int, int]]
) -> None:
    def read(address: int, count: int) -> bytes:
        if address % 7 == 0:
            raise OSError(5, "not mapped")
        return (memory * (count // len(memory) + 1))[:count]

    python = python_of(path, 0x5000, read)
    assert python is not None
    groups = PythonCode(python, read).groups(recorded)
    assert sum(map(len, groups)) <= len(recorded)
    assert all(len(frame.function or "") <= 1024 for group in groups for frame in group)


@given(st.binary(min_size=CONTROL.size, max_size=CONTROL.size))
def test_an_interpreter_that_tells_nonsense_of_itself_is_not_read(raw: bytes) -> None:
    assert python_of("/usr/bin/python3.13", 0x5000, lambda _address, _count: raw) is None


def test_versions_are_told_by_the_file() -> None:
    assert version_of("/usr/bin/python3.14") == "3.14"
    assert version_of("/opt/lib/libpython3.12.so.1.0") == "3.12"
    assert [version_of(path) for path in ("/usr/bin/python3.9", "/usr/bin/python3-config", "/a/python")] == [
        ""
    ] * 3
    for path in ("/usr/bin/python3.10", "/usr/bin/python3.14", "/usr/bin/node"):
        assert python_of(path, 0, lambda _address, _count: b"") is None


def test_each_call_of_the_evaluating_function_has_the_frames_that_it_runs() -> None:
    c, run = Frame("c", module="/p"), Frame(EVALUATES, module="/p")
    inner, outer, first = (Frame(name, "/a.py", 1) for name in ("inner", "outer", "first"))
    found = with_python([c, run, c, run, c, run, c], [[inner, outer], [first]])
    assert found == (c, run, inner, outer, c, run, first, c, run, c)
