# SPDX-License-Identifier: Apache-2.0
"""Baseline + kernel rows + events -> outstanding mappings with their owners; pure, no I/O.

``events`` what a start address cannot settle; ``space`` the address space as the events change it; ``replay``
the ledger itself; ``verify`` compares its answer with /proc; ``effects`` what failed calls did;
``owners`` gives each mapping its owner and adds up by owner.
"""
