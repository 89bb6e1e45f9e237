# SPDX-License-Identifier: Apache-2.0
"""How much of stacks is recorded unless the user says otherwise: the help text and the jobs agree on it."""

STACK_BYTES = 32_768
"""Copied of a stack; a multiple of the page size."""
MAX_STACK_BYTES = 65_536
"""The most that can be asked for."""
COPIES_PER_SECOND = 500
"""Copies of stacks already known, to check them; on all CPUs together."""
