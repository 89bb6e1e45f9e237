# SPDX-License-Identifier: Apache-2.0
"""The right-hand sides are what strace 6.1 printed for these values."""

from __future__ import annotations

import signal
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace import callflags

ALL_MAP = (
    "0xf /* MAP_??? */|MAP_FIXED|MAP_ANONYMOUS|MAP_32BIT|MAP_NORESERVE|MAP_POPULATE|MAP_NONBLOCK"
    "|MAP_GROWSDOWN|MAP_DENYWRITE|MAP_EXECUTABLE|MAP_LOCKED|MAP_STACK|MAP_HUGETLB|MAP_SYNC|MAP_FIXED_NOREPLACE|0x3e00680"
    "|63<<MAP_HUGE_SHIFT"
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "PROT_NONE"),
        (3, "PROT_READ|PROT_WRITE"),
        (7, "PROT_READ|PROT_WRITE|PROT_EXEC"),
        (8, "PROT_SEM"),
        (0x10, "0x10 /* PROT_??? */"),
        (0x1000000, "PROT_GROWSDOWN"),
        (0x40000001, "PROT_READ|0x40000000"),
        (0x83, "PROT_READ|PROT_WRITE|0x80"),
    ],
)
def test_protections_have_straces_names(value: int, shown: str) -> None:
    assert callflags.prot(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0x20022, "MAP_PRIVATE|MAP_ANONYMOUS|MAP_STACK"),
        (0x00, "MAP_FILE"),
        (0x03, "MAP_SHARED_VALIDATE"),
        (0x04, "0x4 /* MAP_??? */"),
        (0x40022 | 21 << 26, "MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|21<<MAP_HUGE_SHIFT"),
        (21 << 26, "MAP_FILE|21<<MAP_HUGE_SHIFT"),
        (0x4022, "MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE"),
        (0x110, "MAP_FILE|MAP_FIXED|MAP_GROWSDOWN"),
        (0x812, "MAP_PRIVATE|MAP_FIXED|MAP_DENYWRITE"),
        (0x2000022, "MAP_PRIVATE|MAP_ANONYMOUS|0x2000000"),
        (0xFFFFFFFF, ALL_MAP),
    ],
)
def test_map_flags(value: int, shown: str) -> None:
    assert callflags.map_flags(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0xF00, "CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND"),
        (0xF11, "CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|SIGCHLD"),
        (0, "0"),
        (17, "SIGCHLD"),
        (0x1200011, "CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|SIGCHLD"),
        (
            0x3D0F00,
            "CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD|CLONE_SYSVSEM|CLONE_SETTLS"
            "|CLONE_PARENT_SETTID|CLONE_CHILD_CLEARTID",
        ),
        (0x100000000, "0x100000000 /* CLONE_??? */"),
        (0x400000011, "0x400000000 /* CLONE_??? */|SIGCHLD"),
        (0x1FE, "CLONE_VM|254"),
        (0x10020, "CLONE_THREAD|SIGRTMIN"),
        (0x10040, "CLONE_THREAD|SIGRT_32"),
        (0x10041, "CLONE_THREAD|65"),
    ],
)
def test_clone_flags(value: int, shown: str) -> None:
    assert callflags.clone_flags(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0x80, "CLONE_NEWTIME"),
        (0x300000000, "CLONE_CLEAR_SIGHAND|CLONE_INTO_CGROUP"),
        (0xFF, "CLONE_NEWTIME|0x7f"),
        (1 << 63, "0x8000000000000000 /* CLONE_??? */"),
        (0x80000080, "CLONE_IO|CLONE_NEWTIME"),
    ],
)
def test_clone3_flags(value: int, shown: str) -> None:
    assert callflags.clone3_flags(value) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (1, "SIGHUP"),
        (6, "SIGABRT"),
        (16, "SIGSTKFLT"),
        (17, "SIGCHLD"),
        (29, "SIGIO"),
        (31, "SIGSYS"),
        (32, "SIGRTMIN"),
        (33, "SIGRT_1"),
        (64, "SIGRT_32"),
        (65, "65"),
        (255, "255"),
    ],
)
def test_signals(number: int, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As in Python 3.9 and 3.10.
    known = [(known.name, known.value) for known in signal.Signals if known.name != "SIGSTKFLT"]
    monkeypatch.setattr(signal, "Signals", IntEnum("Signals", known))
    assert callflags.signal_name(number) == shown


def test_signals_have_the_names_that_python_knows() -> None:
    names = {int(known): known.name for known in signal.Signals if known < signal.SIGRTMIN}
    assert {number: callflags.signal_name(number) for number in names} == names


@given(st.integers(0, (1 << 64) - 1))
def test_no_bit_is_left_out(value: int) -> None:
    for spell, names in (
        (callflags.prot, {"PROT_READ": 1, "PROT_WRITE": 2, "PROT_EXEC": 4, "PROT_SEM": 8}),
        (callflags.clone3_flags, {"CLONE_VM": 0x100, "CLONE_THREAD": 0x10000, "CLONE_NEWTIME": 0x80}),
    ):
        words = spell(value).split(" ")[0].split("|")
        assert {name for name, bit in names.items() if value & bit} == set(words) & set(names)
