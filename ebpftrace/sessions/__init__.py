# SPDX-License-Identifier: Apache-2.0
"""What the commands do: one module each, and what they share.

``mmap_leaks`` (with ``leak_watch``, ``ending``, ``family``, ``attribution``), ``growth`` (with
``growth_watch``), ``trace``, ``maps`` and ``scan`` are the commands of the same names.  They share
``command`` and ``interrupts``; those on the kernel's ledger also ``tracing`` and ``watch``; those that search
memory ``searching``.
"""
