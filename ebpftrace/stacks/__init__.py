# SPDX-License-Identifier: Apache-2.0
"""Copies -> frames -> names: complete user stacks of programs without frame pointers.

The kernel side copies registers and stack bytes; this room unwinds and names them later, outside
the target and without ptrace, also after the target has exited.  Whatever reads a target's ELF
files with a C library runs in a worker process without privileges (``engine``, ``worker``).
"""
