# SPDX-License-Identifier: Apache-2.0
"""A thread's newest mapping as it is read while the thread writes it."""

from __future__ import annotations

import ctypes
from itertools import product

import pytest

from ebpftrace.capture.layout import NEWEST_WORDS, NewestT
from ebpftrace.capture.rows import newest_row


def written(key: int, length: int, since: int, site: int) -> list[int]:
    """The words of a ``struct newest_t``, as bpf/rows.h makes it."""
    words = [key, length, since, since, 86_400_000_000_000, site, 3 << 32 | 4711, 0x22]
    return [*words, sum((2 * place + 1) * word for place, word in enumerate(words)) % 2**64]


BEFORE = written(0x7F3A_1C00_0000, 0x10000, 90_000_000_123_456, 0x9E37_79B9_7F4A_7C15)
AFTER = {
    "the same place": written(0x7F3A_1C00_0000, 0x10000, 90_000_000_129_000, 0x9E37_79B9_7F4A_7C15),
    "another size": written(0x7F3A_1C00_0000, 0x20000, 90_000_000_129_000, 0x9E37_79B9_7F4A_7C15),
    "all else": written(0x7F3A_1BFF_0000, 0x20000, 90_000_000_129_000, 0x0123_4567_89AB_CDEF),
}


def read(words: list[int]) -> object:
    return newest_row(NewestT.from_buffer_copy(NEWEST_WORDS.pack(*words)))


def test_what_is_whole_is_a_row() -> None:
    assert ctypes.sizeof(NewestT) == NEWEST_WORDS.size
    assert read(BEFORE) == (BEFORE[0], NEWEST_WORDS.pack(*BEFORE)[8:-8])


@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
def test_what_is_half_written_is_none(after: list[int]) -> None:
    mixtures = [list(words) for words in product(*zip(BEFORE, after))]
    half_written = [words for words in mixtures if words not in (BEFORE, after)]
    assert half_written
    assert not any(map(read, half_written))
