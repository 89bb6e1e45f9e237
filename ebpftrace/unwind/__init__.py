# SPDX-License-Identifier: Apache-2.0
"""From copies to frames to names: complete user stacks of programs without frame pointers.

The BPF programs copy registers and stack bytes; this package unwinds and symbolizes them later, outside the
target and without ptrace, even after the target has exited.  All code that reads a target's ELF files with a
C library runs in a worker process without privileges (``engine``, ``worker``).
"""
