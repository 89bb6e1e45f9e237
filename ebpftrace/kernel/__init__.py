# SPDX-License-Identifier: Apache-2.0
"""The kernel side: load the BPF programs, attach, read what they record, detach.

The modules here serve the ledger; ``calls`` is the trace of single calls, ``checks`` is what ``doctor`` asks.
"""
