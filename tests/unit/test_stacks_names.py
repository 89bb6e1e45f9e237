# SPDX-License-Identifier: Apache-2.0
"""The pure parts of naming: demangling and perf maps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.unwind.demangle import demangle
from ebpftrace.unwind.perfmap import MAX_LINES, PerfMap, how_to_get, read_perf_map


@pytest.mark.parametrize(
    ("mangled", "plain"),
    [
        ("main", "main"),
        ("_ZN4shop4PoolIiE4growEi", "shop::Pool<int>::grow(int)"),
        ("_ZN4shop4PoolIiE4growEi.isra.0", "shop::Pool<int>::grow(int) [clone .isra.0]"),
        ("_ZN12stacks_crate5outer17h0123456789abcdefE", "stacks_crate::outer"),
        (
            "_ZN81_$LT$stacks_crate..stock..Shelf$LT$T$GT$$u20$as$u20$stacks_crate..stock..Grow$GT$4grow17h6a8f2b8ae3f9d5a4E",
            "<stacks_crate::stock::Shelf<T> as stacks_crate::stock::Grow>::grow",
        ),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        ("_RNvNtCs1234_7mycrate3bar3foo", "mycrate::bar::foo"),
        ("_RNCNvCs1234_7mycrate4main0B3_", "mycrate::main::{closure#0}"),
        ("_RNvCs1234_7mycrate3foo.llvm.1234567", "mycrate::foo"),
        # A method of an implementation; and one of a trait, whose second crate is given by reference.
        (
            "_RNvMs0_NtNtNtCsjrHSEGnQ3l9_3std3sys6thread4unixNtB5_6Thread3new",
            "<std::sys::thread::unix::Thread>::new",
        ),
        ("_RNvXs_Cs1234_5stackNtB4_2J1NtB4_3Job2go", "<stack::J1 as stack::Job>::go"),
        ("_Zgarbage", "_Zgarbage"),
        ("_R", "_R"),
        ("_Z" + "N" * 5000, "_Z" + "N" * 5000),
    ],
)
def test_demangle(mangled: str, plain: str) -> None:
    assert demangle(mangled) == plain


D_THREAD = "_D4core6thread8osthread6Thread5startMFNbZCQBoQBmQBiQBc"
RUST_CRATE = "_RNvMs0_NtNtNtCsjrHSEGnQ3l9_3std3sys6thread4unixNtB5_6Thread3new"


def test_names_of_d_by_binutils() -> None:
    assert demangle(D_THREAD) == "core.thread.osthread.Thread.start()"
    assert demangle("_Dmain") == "D main"
    assert demangle("_D3") == "_D3"
    assert demangle("_Drawing") == "_Drawing"


def test_names_of_rust_by_binutils_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebpftrace.unwind.demangle.pycxxfilt", None)
    assert demangle(RUST_CRATE) == "<std::sys::thread::unix::Thread>::new"
    assert demangle("_RNCNvCs1234_7mycrate4main0B3_") == "mycrate::main::{closure#0}"


def test_names_stay_as_they_are_where_nothing_can_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebpftrace.unwind.demangle.pycxxfilt", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    names = [D_THREAD.replace("start", "begin"), RUST_CRATE.replace("3new", "3old")]
    assert list(map(demangle, names)) == names


@given(st.text(alphabet="_ZRNCsv0123456789abIE$.", max_size=300))
def test_demangling_never_fails(name: str) -> None:
    for prefix in ("", "_Z", "_R", "_ZN"):
        assert isinstance(demangle(prefix + name), str)


def test_perf_map_finds_by_range() -> None:
    found = PerfMap(b"1000 10 one\n0x2000 0x20 two words\nnonsense\n3000 0 empty\n")
    assert found.find(0x1000).name == "one"  # type: ignore[union-attr]
    assert found.find(0x100F).name == "one"  # type: ignore[union-attr]
    assert found.find(0x1010) is None
    assert found.find(0x201F).name == "two words"  # type: ignore[union-attr]
    assert found.find(0x3000) is None
    assert found.find(0) is None


def test_perf_map_of_openjdk_is_read() -> None:
    """Lines that jcmd PID Compiler.perfmap wrote (JDK 17)."""
    line = b"0x00007fd7d0f6a300 0x0000000000000360 void java.lang.Thread.start()\n"
    found = PerfMap(line + b"0x00007fd7d0f6a000 0x00000000000000c0 Interpreter\n")
    assert (len(found), found.lines, found.unread) == (2, 2, 0)
    assert found.find(0x7FD7D0F6A310).name == "void java.lang.Thread.start()"  # type: ignore[union-attr]


def test_lines_of_a_perf_map_that_cannot_be_read_are_counted() -> None:
    found = PerfMap(b"1000 10 one\nnonsense\n\n2000 two\nffffffffffffffff 2 beyond\n")
    assert (len(found), found.lines, found.unread) == (1, 4, 3)


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("/usr/lib/jvm/java-17/lib/server/libjvm.so", "; jcmd 7 Compiler.perfmap writes it (JDK 17)"),
        ("/usr/bin/node", "; node --perf-basic-prof writes it"),
        ("/usr/bin/python3.12", "; python -X perf writes it (Python 3.12)"),
        ("/opt/app", ""),
    ],
)
def test_how_to_get_a_perf_map_is_reported(path: str, way: str) -> None:
    reported = how_to_get(7, ["/usr/lib/libc.so.6", path])
    assert reported == f"no names of JIT code: there is no perf map /tmp/perf-7.map{way}"


def test_perf_map_code_written_later_wins() -> None:
    found = PerfMap(b"1000 100 old\n1020 10 new\n1000 10 newest\n")
    assert found.find(0x1008).name == "newest"  # type: ignore[union-attr]
    assert found.find(0x1028).name == "new"  # type: ignore[union-attr]


@given(st.binary(max_size=2000), st.integers(0, (1 << 64) - 1))
def test_perf_map_takes_any_bytes(text: bytes, address: int) -> None:
    PerfMap(text).find(address)


def test_perf_map_of_endless_lines_is_cut() -> None:
    one = PerfMap(b"1000 10 one\n" * MAX_LINES + b"2000 10 two\n")
    assert one.is_cut
    assert len(one) == 1
    assert not PerfMap(b"1000 10 one\n" * MAX_LINES).is_cut


def test_perf_map_of_the_right_owner_is_read(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp/perf-7.map").write_bytes(b"1000 10 name\n")
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert read_perf_map(root, 8, [os.getuid()]) == (None, "")
        (tmp_path / "tmp/perf-9.map").write_bytes(b"1000 10 name\n1 2\n3\n")
        _, note = read_perf_map(root, 9, [os.getuid()])
        assert note.startswith("2 of 3 lines of perf map /tmp/perf-9.map not read")
        found, note = read_perf_map(root, 7, [os.getuid()])
        assert found is not None
        assert len(found) == 1
        assert note == ""
        found, note = read_perf_map(root, 7, [os.getuid() + 1])
        assert found is None
        assert "owned by" in note
    finally:
        os.close(root)
