# SPDX-License-Identifier: Apache-2.0
"""How many arenas malloc makes, by the version of glibc and the CPUs that it counts."""

from __future__ import annotations

import pytest

from ebpftrace.glibc import Cores, most_arenas

SIXTEEN, PINNED = Cores(16, 16), Cores(16, 1)


@pytest.mark.parametrize(
    ("libc", "cores", "limit"),
    [
        ("glibc 2.36", SIXTEEN, (128, 16)),
        ("glibc 2.43", SIXTEEN, (128, 16)),
        ("glibc 2.43", Cores(2, 2), (16, 2)),
        ("glibc 2.44", SIXTEEN, (16, 16)),
        ("static glibc 2.44", Cores(2, 2), (8, 2)),
        ("glibc 2.33", PINNED, (128, 16)),
        ("glibc 2.34", PINNED, (8, 1)),
        ("glibc 2.35", PINNED, (8, 1)),
        ("glibc 2.36", PINNED, (128, 16)),
        ("glibc 2.100", PINNED, (16, 16)),
        ("", SIXTEEN, (128, 16)),
        ("musl", PINNED, (128, 16)),
    ],
)
def test_the_limit_of_arenas(libc: str, cores: Cores, limit: tuple[int, int]) -> None:
    assert most_arenas(libc, cores) == limit
