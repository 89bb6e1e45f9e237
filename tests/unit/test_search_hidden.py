# SPDX-License-Identifier: Apache-2.0
"""What is in use without a pointer, run-times that disguise pointers, and names of variables."""

from __future__ import annotations

import pytest

from ebpftrace.model import BookedThread, Books, BooksState, Heap, Interval, Vma
from ebpftrace.search import KeptWithoutPointer, disguised_pointers
from ebpftrace.search.symbols import readable
from ebpftrace.vmas import Vmas

PAGE = 4096


def vma(start: int, pages: int, path: str = "", inode: int = 0, perms: str = "rw-p") -> Vma:
    return Vma(start * PAGE, (start + pages) * PAGE, perms, 0, "08:01", inode, path)


def pages(start: int, count: int) -> Interval:
    return Interval(start * PAGE, (start + count) * PAGE)


VMAS = Vmas(
    [
        vma(10, 2, "/usr/bin/app", 5, "r-xp"),
        vma(12, 1, "/usr/bin/app", 5),
        vma(13, 2),
        vma(15, 2),
        vma(20, 4, "[heap]"),
        vma(30, 8),
        vma(40, 1, "", 0, "---p"),
        vma(41, 4),
        vma(50, 4),
        vma(60, 4),
        vma(70, 2, "/memfd:x (deleted)", 9, "rw-s"),
        vma(80, 2, "", 0, "---p"),
        vma(90, 2, "[vdso]", 0, "r-xp"),
    ]
)


def thread(stack: Interval, exited: bool) -> BookedThread:
    return BookedThread(stack.end - 100, 1, 1, stack, False, exited)


BOOKS = Books(
    BooksState.READ,
    threads=(thread(pages(40, 5), False), thread(pages(50, 4), True)),
    stack_cache=(pages(60, 4),),
)
HEAPS = [Heap(34 * PAGE, 38 * PAGE, True)]


@pytest.mark.parametrize(
    ("piece", "why"),
    [
        (pages(30, 2), ""),
        (pages(70, 2), ""),
        (pages(11, 1), "mapped file"),
        (pages(13, 2), "zeroed data"),
        (pages(15, 2), ""),
        (pages(20, 1), "brk"),
        (pages(33, 2), "heap of malloc"),
        (pages(40, 1), "live thread"),
        (pages(44, 1), "live thread"),
        (pages(53, 1), "nobody has joined"),
        (pages(60, 1), "cache"),
        (pages(80, 1), "guard or a reservation"),
        (pages(90, 1), "kernel"),
        (pages(100, 1), "guard or a reservation"),
    ],
)
def test_kept_without_a_pointer(piece: Interval, why: str) -> None:
    found = KeptWithoutPointer(VMAS, BOOKS, HEAPS).why([piece])
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/usr/lib/jvm/java-17/lib/server/libjvm.so", "Java"),
        ("/usr/bin/node", "V8"),
        ("/opt/google/chrome/chrome (deleted)", "V8"),
        ("/usr/lib/libluajit-5.1.so.2", "LuaJIT"),
        ("/usr/lib/libtcmalloc_minimal.so.4", "tcmalloc"),
        ("/usr/lib/libjemalloc.so.2", ""),
        ("/usr/bin/nodemon", ""),
        ("/usr/bin/python3.11", ""),
    ],
)
def test_disguised_pointers(path: str, why: str) -> None:
    found = disguised_pointers(Vmas([vma(10, 2, path, 5, "r-xp")]))
    assert why in found
    assert bool(why) == bool(found)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("workers", "workers"),
        ("_ZL7workers", "workers"),
        ("_ZN3app7workersE", "app::workers"),
        ("_ZN12_GLOBAL__N_17workersE", "(anonymous namespace)::workers"),
        ("_ZN3app9999workersE", "_ZN3app9999workersE"),
        ("_ZN0E", "_ZN0E"),
        ("_ZZ4mainE7workers", "_ZZ4mainE7workers"),
        ("_ZN" + "9" * 4000 + "aE", "_ZN" + "9" * 4000 + "aE"),
    ],
)
def test_plain_names_of_cpp_variables(name: str, plain: str) -> None:
    assert readable(name) == plain
