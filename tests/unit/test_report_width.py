# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest
import reports
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from test_maps_report import MIB, area, maps_report, orphans
from test_scan_ranking import ARENAS, CALM, GROWING, LEAKING, SURPLUS, UNTOUCHED, host_scan

from ebpftrace.classify import compare
from ebpftrace.classify.model import Kind
from ebpftrace.model import Report
from ebpftrace.report import maps, scan, terminal
from ebpftrace.report.output import page_width
from ebpftrace.report.tables import table
from ebpftrace.report.view import View

WIDTHS = (60, 80, 100, 120)
UNLIMITED = 400


@pytest.mark.parametrize(
    ("columns", "width"), [(0, 80), (20, 60), (60, 60), (80, 80), (100, 100), (120, 120), (250, 120)]
)
def test_a_page_is_as_wide_as_its_terminal(columns: int, width: int) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(leader, "w"), os.fdopen(follower, "w") as stream:
        assert page_width(stream) == width
        assert page_width(stream, Path("report")) == 100
    assert page_width(io.StringIO()) == 100


cells = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
rows = st.lists(st.tuples(cells, cells, cells, cells), max_size=5)


@given(rows, st.integers(10, 120), st.booleans())
def test_columns_go_and_none_but_the_last_is_cut(
    given_rows: list[tuple[str, str, str, str]], width: int, fold: bool
) -> None:
    page = table(">A|B|>C|D", given_rows, width=width, optional=("B", "C"), fold=fold)
    names = page[0].split()
    assert names in (["A", "B", "C", "D"], ["A", "C", "D"], ["A", "B", "D"], ["A", "D"])
    assert all(line == line.rstrip() for line in page)
    if width >= 30:
        assert max(map(cell_len, page)) <= width
    if width >= 54:
        assert names == ["A", "B", "C", "D"]
    for line, row in zip(page[1:], given_rows):
        assert line.split() == [cell for cell, name in zip(row, "ABCD") if name in names]


def test_a_column_stays_if_leaving_out_others_suffices() -> None:
    row = ("x" * 10, "y" * 3, "z" * 30)
    page = table("X|Y|Z|END", [(*row, "end")], width=20, optional=("Y", "Z"))
    assert page == ["X           Y    END", "xxxxxxxxxx  yyy  end"]


def test_a_long_last_cell_is_cut_or_goes_on_below() -> None:
    row = ("12", "a meaning that takes many words")
    assert table(">N|MEANING", [row], width=20) == [" N  MEANING", "12  a mean...y words"]
    folded = table(">N|MEANING", [row], width=20, fold=True)
    assert folded == [" N  MEANING", "12  a meaning that", "    takes many words"]


def numbers(page: str) -> set[str]:
    """All words with a digit, without directories, which may be left out, and names that are cut."""
    return {word.rpartition("/")[2] for word in re.findall(r"\S*\d\S*", page) if "..." not in word}


MAPPED = [
    *orphans(2_000),
    *(area(i << 30, 700 * MIB, Kind.ANONYMOUS) for i in range(1, 40)),
    *(area(i << 40, 8 * MIB, Kind.THREAD_STACK, tid=4_194_000 + i, thread="worker") for i in range(1, 20)),
    area(0x7E0000000000, 300 * MIB, Kind.FILE, path="/opt/" + "deep/" * 20 + "data.bin", swap=5 * MIB),
]


@pytest.mark.parametrize("width", WIDTHS)
def test_maps_keep_their_numbers_whole(width: int) -> None:
    grown = maps_report(MAPPED, growth=compare(MAPPED[:1_000], MAPPED, 60.0))
    for seen in (maps_report(MAPPED), grown):
        page = maps.render(seen, 5, True, width)
        assert max(map(cell_len, page.splitlines())) <= width
        assert numbers(page) <= numbers(maps.render(seen, 5, True, UNLIMITED))


@pytest.mark.parametrize("seconds", [None, 60.0])
@pytest.mark.parametrize("width", WIDTHS)
def test_scan_keeps_its_numbers_whole(width: int, seconds: Optional[float]) -> None:
    found = host_scan([CALM, LEAKING, GROWING, SURPLUS, UNTOUCHED, ARENAS], seconds)
    page = scan.render(found, 10, width)
    assert max(map(cell_len, page.splitlines())) <= width
    assert numbers(page) <= numbers(scan.render(found, 10, UNLIMITED))
    for column in ("PID", "NAME", "VIRT", "EXITED", "BYTES"):
        assert column in page


@pytest.mark.parametrize("make", [reports.production, reports.raw_clone, reports.healthy, reports.lossy])
@pytest.mark.parametrize("width", WIDTHS)
def test_main_report_keeps_its_numbers_whole(width: int, make: Callable[[], Report]) -> None:
    page = terminal.render(make(), View(), width=width)
    assert max(map(cell_len, page.splitlines())) <= width
    assert numbers(page) <= numbers(terminal.render(make(), View(), width=UNLIMITED))
    if make is reports.production:
        for place in ("pthread_create.c:833  libc.so.6+0x8a4c2", "timer.cpp:118  app_server+0x2b1f0"):
            assert place in page
