# SPDX-License-Identifier: Apache-2.0
"""Compiled programs as data: to bytes and back, with their references to tables."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.capture.compiled import Compiled, Program, Table, relocated

LOAD_TABLE, LOAD_NUMBER = (0x18, 1), (0x18, 0)
MOVE = (0xB7, 2)
INSTRUCTIONS = st.lists(
    st.tuples(st.sampled_from([LOAD_TABLE, LOAD_NUMBER, MOVE]), st.integers(0, 3)), max_size=20
)
TABLES = st.builds(Table, st.text(min_size=1), *(st.integers(0, (1 << 32) - 1) for _ in range(5)))


def code(instructions: list[tuple[tuple[int, int], int]]) -> bytes:
    return b"".join(
        struct.pack("=BBhi", operation, source << 4 | 3, 0, number) + (bytes(8) if operation == 0x18 else b"")
        for (operation, source), number in instructions
    )


@given(st.lists(TABLES), st.lists(st.builds(Program, st.text(), INSTRUCTIONS.map(code))))
def test_to_bytes_and_back(tables: list[Table], programs: list[Program]) -> None:
    compiled = Compiled(tuple(tables), tuple(programs))
    assert Compiled.from_bytes(compiled.to_bytes()) == compiled


@given(INSTRUCTIONS)
def test_references_to_tables_are_replaced_and_nothing_else(
    instructions: list[tuple[tuple[int, int], int]],
) -> None:
    places = {0: 70, 1: 71, 2: 72, 3: 73}
    moved = [(kind, places[number] if kind == LOAD_TABLE else number) for kind, number in instructions]
    assert relocated(code(instructions), places) == code(moved)
    assert relocated(code(moved), {there: here for here, there in places.items()}) == code(instructions)


def test_what_is_not_there_is_not_guessed() -> None:
    with pytest.raises(ValueError, match="not there"):
        relocated(code([(LOAD_TABLE, 1)]), {0: 5})
    with pytest.raises(ValueError, match="cut"):
        relocated(b"1234567", {})


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{}", b'{"tables": [], "programs": [["a", "%"]]}', b'{"tables": [[]], "programs": []}'],
)
def test_anything_else_is_no_program(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        Compiled.from_bytes(raw)
