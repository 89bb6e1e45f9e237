# SPDX-License-Identifier: Apache-2.0
"""Calls as strace prints them: text from records, nothing else.  No I/O, no bcc.

What is here was held against strace 6.1 and its sources (``src/mem.c``, ``clone.c``, ``execve.c``,
``syscall.c``, ``strace.c``, ``count.c``); ``docs/trace.md`` lists what differs.
"""
