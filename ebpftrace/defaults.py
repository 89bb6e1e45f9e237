# SPDX-License-Identifier: Apache-2.0
"""Defaults that the command line shares with the sessions and the pytest plugin."""

STACK_BYTES = 32_768
"""Bytes copied of a stack; a multiple of 4 KiB."""
MAX_STACK_BYTES = 65_536
"""The largest value that the user may choose."""
COPIES_PER_SECOND = 500
"""Copies of known stacks that are made to check them, on all CPUs together."""
SUPPRESSIONS = ".ebpftrace-suppressions"
"""Read from the directory of the project if no other file of suppressions is named."""
