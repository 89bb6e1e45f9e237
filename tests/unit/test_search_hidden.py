# SPDX-License-Identifier: Apache-2.0
"""Run-times that disguise pointers, and names of variables."""

from __future__ import annotations

import pytest

from ebpftrace.model import Vma
from ebpftrace.search import disguised_pointers
from ebpftrace.search.symbols import readable
from ebpftrace.vmas import Vmas

PAGE = 4096


def code_of(path: str) -> Vma:
    return Vma(10 * PAGE, 12 * PAGE, "r-xp", 0, "08:01", 5, path)


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
    found = disguised_pointers(Vmas([code_of(path)]))
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
