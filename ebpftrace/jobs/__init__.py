# SPDX-License-Identifier: Apache-2.0
"""What the user asks for: one module per job, told top to bottom, and what jobs share.

``mmap_leaks``, ``growth`` (with ``growth_watch``), ``trace``, ``maps`` and ``scan`` are the commands of the
same names.  They share ``command`` and ``interrupts``; those on the kernel's ledger ``tracing``, ``watch``
and ``attribution`` too.
"""
