# SPDX-License-Identifier: Apache-2.0
"""-e trace=SET, and the table of -c."""

from __future__ import annotations

import pytest

from ebpftrace.strace.selection import CALLS, MEMORY, PROCESS, SelectionError, select
from ebpftrace.strace.summary import Total, table


@pytest.mark.parametrize(
    ("expressions", "chosen"),
    [
        ([], CALLS),
        (["trace=memory,clone"], (*MEMORY, "clone")),
        (["t=%process"], PROCESS),
        (["mmap"], ("mmap",)),
        (["trace=mmap", "trace=brk"], ("brk",)),
        (["trace=!%memory,exit"], tuple(call for call in PROCESS if call != "exit")),
        (["trace=none"], ()),
        (["trace=?fork,?read"], ("fork",)),
        (["trace=all"], CALLS),
    ],
)
def test_expressions_select_calls_as_strace_does(expressions: list[str], chosen: tuple[str, ...]) -> None:
    assert select(expressions) == frozenset(chosen)


@pytest.mark.parametrize(
    ("expression", "word"),
    [("trace=read", "'read'"), ("trace=", "''"), ("signal=none", "-e signal="), ("trace=mm\x1bap", "\\x1b")],
)
def test_what_is_not_traced_is_said(expression: str, word: str) -> None:
    with pytest.raises(SelectionError) as raised:
        select([expression])
    assert word in str(raised.value)


def test_table_as_strace_prints_it() -> None:
    rows = [Total("brk", 3, 0, 0), Total("mmap", 8, 2, 1_500_000), Total("fork", 0, 0, 0)]
    assert table(rows) == (
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.001500         187         8         2 mmap\n"
        "  0.00    0.000000           0         3           brk\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.001500         136        11         2 total\n"
    )


def test_table_of_nothing() -> None:
    assert "total" in table([])
