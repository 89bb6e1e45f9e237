# SPDX-License-Identifier: Apache-2.0
"""Python code by what is in memory: location tables against the interpreter's own, and any bytes at all."""

from __future__ import annotations

import ast
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.model import Frame
from ebpftrace.unwind.cpython import (
    EVALUATES,
    Group,
    PythonCode,
    line_of,
    python_of,
    version_of,
    with_python,
)

CONTROL = struct.Struct("<8s 64Q")


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="location tables are of Python 3.11 and later")
@pytest.mark.parametrize("module", [ast, threading])
def test_lines_are_those_that_the_interpreter_reports(module: object) -> None:
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
    st.lists(st.tuples(*[st.integers(0, (1 << 64) - 1)] * 4), max_size=24),
)
def test_whatever_is_in_memory_the_frames_are_bounded(
    memory: bytes, path: str, recorded: list[tuple[int, int, int, int]]
) -> None:
    def read(address: int, count: int) -> bytes:
        if address % 7 == 0:
            raise OSError(5, "not mapped")
        return (memory * (count // len(memory) + 1))[:count]

    python = python_of(path, 0x5000, read)
    assert python is not None
    groups = PythonCode(python, read).groups(recorded)
    assert sum(len(group.frames) for group in groups) <= len(recorded)
    assert all(len(frame.function or "") <= 1024 for group in groups for frame in group.frames)


@given(st.binary(min_size=CONTROL.size, max_size=CONTROL.size))
def test_an_interpreter_that_reports_nonsense_of_itself_is_not_read(raw: bytes) -> None:
    for version in ("3.13", "3.14", "3.15"):
        assert python_of(f"/usr/bin/python{version}", 0x5000, lambda _, count: raw[:count]) is None


def test_versions_are_reported_by_the_file() -> None:
    assert version_of("/usr/bin/python3.14") == "3.14"
    assert version_of("/opt/lib/libpython3.12.so.1.0") == "3.12"
    assert version_of("/opt/bin/python3.14t") == "3.14t"
    assert [version_of(path) for path in ("/usr/bin/python3.9", "/usr/bin/python3-config", "/a/python")] == [
        ""
    ] * 3
    for path in ("/usr/bin/python3.10", "/usr/bin/python3.14t", "/usr/bin/python3.16", "/usr/bin/node"):
        assert python_of(path, 0, lambda _address, _count: b"") is None


C, RUN, COLD = (
    Frame(name, module="/python3.14", offset=at) for name, at in (("c", 1), (EVALUATES, 2), (None, 3))
)
INNER, OUTER, FIRST = (Frame(name, "/a.py", 1) for name in ("inner", "outer", "first"))


def nowhere(address: int) -> None:
    """No stack frame contains it."""


def test_each_call_of_the_evaluating_function_has_the_frames_that_it_runs() -> None:
    groups = [Group([INNER, OUTER], None), Group([FIRST], None)]
    found = with_python([C, RUN, C, RUN, C, RUN, C], groups, nowhere, set())
    assert found == ((C, RUN, INNER, OUTER, C, RUN, FIRST, C, RUN, C), True)


def test_the_stack_frame_with_the_mark_is_the_evaluating_function_whatever_its_name() -> None:
    """Stripped, and its part that the compiler has moved elsewhere: only the addresses decide."""
    named = replace(COLD, function=EVALUATES)
    inlined = Frame("inlined", module="/python3.14", offset=3, inlined=True)
    evaluators: set[tuple[Optional[str], Optional[int]]] = set()
    groups = [Group([INNER], 0x1000), Group([OUTER, FIRST], 0x2000)]
    frames = [C, inlined, COLD, C, COLD, C]
    found = with_python(frames, groups, {0x1000: 1, 0x2000: 3}.get, evaluators)
    assert found == ((C, inlined, named, INNER, C, named, OUTER, FIRST, C), True)
    # The place is known from now on, also where there is no mark.
    stripped = [C, COLD, C], [Group([INNER], None)], nowhere
    assert with_python(*stripped, evaluators) == ((C, named, INNER, C), True)
    assert with_python(*stripped, set()) == ((C, COLD, C), False)


def test_python_frames_without_a_certain_place_are_left_out() -> None:
    groups = [Group([INNER], 0x1000), Group([FIRST], 0x2000)]
    stack = (C, RUN, C, RUN)
    assert with_python(stack, groups, {0x2000: 1}.get, set()) == ((C, RUN, FIRST, C, RUN), False)
    assert with_python(stack, groups, {0x1000: 3, 0x2000: 1}.get, set()) == ((C, RUN, C, RUN, INNER), False)
    assert with_python(stack, groups, {0x1000: 9, 0x2000: 4}.get, set()) == (stack, False)
    # A call that has left its last frame runs none.
    without_frames = [Group([], 0x1000), Group([FIRST], 0x2000)]
    assert with_python(stack, without_frames, {0x2000: 3}.get, set()) == ((C, RUN, C, RUN, FIRST), True)
    # An unnamed frame of the interpreter may be the evaluating function, so the next one is perhaps not it.
    found = with_python((C, COLD, RUN), [Group([INNER], None)], nowhere, set())
    assert found == ((C, COLD, RUN), False)


def test_as_many_evaluating_functions_with_a_name_as_there_are_groups_are_all_of_them() -> None:
    groups = [Group([INNER], None), Group([FIRST], None)]
    stack = (C, COLD, RUN, COLD, RUN, C)
    placed = (C, COLD, RUN, INNER, COLD, RUN, FIRST, C)
    assert with_python(stack, groups, nowhere, set(), are_all=True) == (placed, True)
    assert with_python(stack, groups, nowhere, set(), are_all=False) == (stack, False)
    # One of them has no name: it may be any.
    for fewer in ((C, COLD, RUN, C), (C, RUN, COLD, RUN, COLD, RUN, C)):
        assert with_python(fewer, groups, nowhere, set(), are_all=True)[1] is False
