# SPDX-License-Identifier: Apache-2.0
"""Constants of glibc that several rooms go by."""

from __future__ import annotations

HEAP_MAX_SIZE = 64 << 20
"""Bytes that a heap of a malloc arena may take, and its alignment (malloc/arena.c, 64-bit)."""

ARENAS_PER_CORE = 8
"""Most arenas that malloc makes, for each core (malloc/arena.c, NARENAS_FROM_NCORES, 64-bit)."""

STACK_CACHE_LIMIT = 40 << 20
"""Bytes of stacks kept for reuse unless a tunable says otherwise (nptl/nptl-stack.c, stack_cache_maxsize)."""
