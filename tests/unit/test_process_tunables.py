# SPDX-License-Identifier: Apache-2.0
"""Settings of glibc in the environment of a process."""

from __future__ import annotations

import os
from typing import Optional

import pytest

from ebpftrace.procfs.tunables import arena_limit, read_environment, tunable

CACHE_SIZE = b"glibc.pthread.stack_cache_size"


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        (b"", None),
        (b"A=1\0GLIBC_TUNABLES=glibc.pthread.stack_cache_size=4096\0B=2\0", 4096),
        (b"GLIBC_TUNABLES=x=1:glibc.pthread.stack_cache_size=010:y\0", 8),
        # As glibc 2.36 leaves it: cut where it lay.
        (b"GLIBC_TUNABLES=glibc.malloc.x=1\0glibc.pthread.stack_cache_size=0x10\0", 16),
        (b"GLIBC_TUNABLES=a=1\0B=1\0glibc.pthread.stack_cache_size=0x10\0", None),
        (b"GLIBC_TUNABLES=glibc.pthread.stack_cache_size=\xff\xff\0", None),
        (b"GLIBC_TUNABLES=glibc.pthread.stack_cache_size=-5\0", None),
        (b"GLIBC_TUNABLES=glibc.pthread.stack_cache_size=" + b"9" * 5000 + b"\0", None),
        (b"GLIBC_TUNABLES=glibc.pthread.stack_cache_size=" + b"0" * 5000 + b"7\0", None),
    ],
)
def test_a_tunable_in_an_environment(environment: bytes, limit: Optional[int]) -> None:
    assert tunable(environment, CACHE_SIZE) == limit


@pytest.mark.parametrize(
    ("environment", "limit"),
    [
        (b"", None),
        (b"A=1\0MALLOC_ARENA_MAX=4\0", 4),
        (b"MALLOC_ARENA_MAX=0\0", None),
        (b"MALLOC_ARENA_MAX=many\0", None),
        (b"MALLOC_ARENA_MAX=4\0GLIBC_TUNABLES=glibc.malloc.arena_max=2\0", 2),
        (b"GLIBC_TUNABLES=glibc.malloc.arena_max=0x10:a=1\0MALLOC_ARENA_MAX=4\0", 16),
    ],
)
def test_arena_limit_in_an_environment(environment: bytes, limit: Optional[int]) -> None:
    assert arena_limit(environment) == limit


def test_the_environment_of_a_process() -> None:
    assert any(text.startswith(b"PATH=") for text in read_environment(os.getpid()).split(b"\0"))
