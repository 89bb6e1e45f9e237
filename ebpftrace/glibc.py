# SPDX-License-Identifier: Apache-2.0
"""Constants of glibc that several packages use."""

from __future__ import annotations

import re
from typing import NamedTuple

HEAP_MAX_SIZE = 64 << 20
"""Size limit and alignment of a heap of a malloc arena, in bytes (malloc/arena.c, 64-bit)."""

_ARENAS_PER_CORE = 8
"""Limit of malloc's arenas for each core (malloc/arena.c, NARENAS_FROM_NCORES, 64-bit)."""
_ONE_PER_CORE_SINCE = (2, 44)
"""From here on the limit is one for each core, and at least ``_FEWEST_ARENAS`` (arena_test)."""
_FEWEST_ARENAS = 8
_BY_AFFINITY = ((2, 34), (2, 36))
"""Versions from the first up to, but not including, the second count the CPUs that the process may run on
(https://sourceware.org/bugzilla/show_bug.cgi?id=28850 and 30945); the others count those that are online."""
_VERSION = re.compile(r"glibc (\d+)\.(\d+)")


class Cores(NamedTuple):
    """The CPUs that malloc may count."""

    online: int
    usable: int
    """Those that the process may run on (sched_getaffinity(2))."""


ONE_CORE = Cores(1, 1)


def most_arenas(libc: str, cores: Cores) -> tuple[int, int]:
    """How many arenas malloc makes at most, and the number of CPUs that this follows from.

    ``libc`` is as ``ThreadLists.libc``, such as "glibc 2.36"; anything else counts as 2.36 to 2.43.
    """
    found = _VERSION.search(libc)
    version = (int(found[1]), int(found[2])) if found else _BY_AFFINITY[1]
    counted = cores.usable if _BY_AFFINITY[0] <= version < _BY_AFFINITY[1] else cores.online
    if version >= _ONE_PER_CORE_SINCE:
        return max(_FEWEST_ARENAS, counted), counted
    return _ARENAS_PER_CORE * counted, counted


STACK_CACHE_LIMIT = 40 << 20
"""Bytes of stacks that are cached, without a tunable (nptl/nptl-stack.c, stack_cache_maxsize)."""
