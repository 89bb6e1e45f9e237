# SPDX-License-Identifier: Apache-2.0
"""From outstanding mappings and glibc's books to findings with evidence: pure rules, no I/O.

``diagnose`` judges the end of a trace, ``baseline_verdict`` one moment without a trace.
"""

from ebpftrace.diagnosis.baseline import baseline_verdict
from ebpftrace.diagnosis.evidence import Diagnosis, Evidence
from ebpftrace.diagnosis.history import History, is_unjoined
from ebpftrace.diagnosis.verdicts import diagnose

__all__ = ["Diagnosis", "Evidence", "History", "baseline_verdict", "diagnose", "is_unjoined"]
