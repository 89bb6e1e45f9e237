# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
import unicodedata

import pytest
import report_strategies as strategies
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ebpftrace import text


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("worker-3", "worker-3"),
        ("[bold]café[/bold]", "[bold]café[/bold]"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("a \xa0b\u3000", r"a \xa0b\u3000"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        (r"back\slash", r"back\\slash"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_escape(raw: str, shown: str) -> None:
    assert text.escape(raw) == shown


@given(strategies.names)
def test_escaped_text_cannot_act_on_a_terminal(name: str) -> None:
    escaped = text.escape(name)
    assert not [
        character
        for character in escaped
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]
    assert len(escaped.splitlines()) <= 1
    escaped.encode("utf-8")


@given(strategies.names, strategies.names)
def test_escape_keeps_different_names_different(one: str, other: str) -> None:
    assert (text.escape(one) == text.escape(other)) == (one == other)


@given(strategies.names.map(text.escape), st.integers(0, 120))
def test_shorten_fits_and_keeps_both_ends(name: str, width: int) -> None:
    short = text.shorten(name, width)
    assert cell_len(short) <= width
    if cell_len(name) <= width and len(name) <= width:
        assert short == name
    elif width >= 20 and name.isascii():
        assert "..." in short
        assert len(short) == width
        assert short[:5] == name[:5]
        assert short[-5:] == name[-5:]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "?"),
        (0, "0 B"),
        (1000, "1000 B"),
        (40960, "40 KiB"),
        (10489856, "10244 KiB"),
        (1536, "1.5 KiB"),
        (-1025, "-1.0 KiB"),
        (11_079_782, "10.6 MiB"),
        (64 << 20, "64.0 MiB"),
        (27842 * 10489856, "272.0 GiB"),
        (3 << 40, "3.00 TiB"),
        (-4096, "-4 KiB"),
    ],
)
def test_size(value: int | None, shown: str) -> None:
    assert text.size(value) == shown


@pytest.mark.parametrize(("inner", "shown"), [(None, "28720"), (9, "28720 (9 inside)"), (28720, "28720")])
def test_a_number_is_shown_with_that_of_its_own_namespace(inner: int | None, shown: str) -> None:
    assert text.inside(28720, inner) == shown
    assert text.pid_inside(28720, inner) == "PID " + shown.replace(" (", ", ").rstrip(")")


def test_a_rate_has_the_units_of_sizes() -> None:
    assert text.rate(10489856.0) == "10244 KiB per minute"
    assert text.rate(10489856 * 60 / 56.8) == "10.6 MiB per minute"


def test_exact_size_has_what_pidstat_and_what_strace_print() -> None:
    assert text.exact_size(10489856) == "10244 KiB = 10489856 bytes"


@pytest.mark.parametrize(
    ("start", "end", "shown"),
    [(None, 4096, ""), (4096, 4096, "+0"), (0, 10489856, "+10244 KiB"), (8192, 4096, "-4 KiB")],
)
def test_change_has_a_sign(start: int | None, end: int, shown: str) -> None:
    assert text.change(start, end) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (0.00031, "310 us"),
        (0.0123, "12.3 ms"),
        (0.9999, "1.0 s"),
        (1.204, "1.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (11_520, "3 h 12 min"),
        (5 * 86_400 + 3 * 3600, "5 d 3 h"),
        (-2, "-2.0 s"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (60.0, "60 s"),
        (2.04, "2 s"),
        (1.5, "1.5 s"),
        (300, "5 min"),
        (0.99996, "1 s"),
        (0.25, "250 ms"),
    ],
)
def test_period_as_a_person_says_it(seconds: float, shown: str) -> None:
    assert text.period(seconds) == shown


def test_wall_time_has_its_date_only_when_it_is_not_today() -> None:
    now = 1_760_569_230 * 10**9
    assert text.wall(now, now) == "23:00:30"
    assert text.wall(now - 86_400 * 10**9, now) == "2025-10-14 23:00:30"


def test_printable_in_a_poor_locale() -> None:
    assert text.printable("ascii", "caf\xe9") == r"caf\xe9"
    assert text.printable(None, "caf\xe9") == "caf\xe9"


def test_cpu_time_has_no_share_of_a_window_that_is_shorter_than_the_work_around_it() -> None:
    assert text.cpu_time(0.303, 12.6) == "303 ms of CPU time (2.4 % of one CPU)"
    assert text.cpu_time(0.216, 0.0502) == "216 ms of CPU time"
    assert text.cpu_time(0.1, 0) == "100 ms of CPU time"
