# SPDX-License-Identifier: Apache-2.0
"""What the memory of an address space and of a host is used for.  Pure: no I/O.

``classify`` finds the kind of every mapping of one reading, ``compare`` the changes between two;
``rank_candidates`` ranks the processes of a host, ``attention`` judges the lines of /proc/meminfo.
"""

from ebpftrace.classify.areas import classify
from ebpftrace.classify.changes import compare
from ebpftrace.classify.meminfo import attention
from ebpftrace.classify.ranking import rank_candidates

__all__ = ["attention", "classify", "compare", "rank_candidates"]
