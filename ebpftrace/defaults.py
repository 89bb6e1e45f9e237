"""How much of stacks is recorded unless the user says otherwise: the help text and the jobs agree on it."""

STACK_BYTES = 16_384
"""Copied of a stack; a multiple of the page size."""
COPIES_PER_SECOND = 50
"""Copies of stacks already known, to check them; on all CPUs together."""
