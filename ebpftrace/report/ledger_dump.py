# SPDX-License-Identifier: Apache-2.0
"""The ledger itself as JSON, before it was compared with /proc: for tests of its exactness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from ebpftrace.model import Mapping, Report


def render(report: Report, standing: Sequence[Mapping]) -> str:
    """Return the mappings by the ledger alone; addresses as numbers, times in ns of CLOCK_MONOTONIC."""
    document = {
        "baseline": [piece for mapping in standing if mapping.before_attach for piece in mapping.pieces],
        "mappings": [
            {
                "pieces": mapping.pieces,
                "mapper_tid": mapping.mapper.tid if mapping.mapper else None,
                "made_at": mapping.made_at,
                "prot": mapping.prot,
                "flags": mapping.flags,
            }
            for mapping in standing
            if not mapping.before_attach
        ],
        "verified_at": report.ended_at,
        "losses": asdict(report.losses),
        "phantom_bytes": report.phantom_bytes,
        "unexplained_bytes": report.unexplained_bytes,
    }
    return json.dumps(document) + "\n"
