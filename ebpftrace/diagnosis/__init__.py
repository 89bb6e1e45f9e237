# SPDX-License-Identifier: Apache-2.0
"""From outstanding mappings and glibc's thread lists to findings with evidence: pure rules, no I/O.

``diagnose`` judges the end of a trace, ``baseline_verdict`` one moment without a trace.
"""

from ebpftrace.diagnosis.evidence import Diagnosis, Evidence
from ebpftrace.diagnosis.history import History, is_unjoined
from ebpftrace.diagnosis.verdicts import baseline_verdict, diagnose

__all__ = ["Diagnosis", "Evidence", "History", "baseline_verdict", "diagnose", "is_unjoined"]
