"""From outstanding mappings and glibc's books to findings with evidence: pure rules, no I/O.

``diagnose`` judges the end of a trace, ``baseline_verdict`` what was wrong before it began.
"""

from ebpftrace.diagnosis.baseline import baseline_verdict
from ebpftrace.diagnosis.evidence import Diagnosis, Evidence
from ebpftrace.diagnosis.verdicts import diagnose

__all__ = ["Diagnosis", "Evidence", "baseline_verdict", "diagnose"]
