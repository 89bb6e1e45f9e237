# SPDX-License-Identifier: Apache-2.0
"""User space's side of the BPF programs: load, attach, read what they record, detach.

The modules here serve the ledger; ``calls`` traces single calls, ``checks`` has the checks of ``doctor``.
"""
