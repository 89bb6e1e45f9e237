# SPDX-License-Identifier: Apache-2.0
"""Formats records of calls as strace does.  Pure: no I/O, no bcc.

The format was compared with strace 6.1 and its sources (``src/mem.c``, ``clone.c``, ``execve.c``,
``syscall.c``, ``strace.c``, ``count.c``); ``docs/trace.md`` lists the differences.
"""
