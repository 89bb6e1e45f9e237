# SPDX-License-Identifier: Apache-2.0
"""Where memory is: of one address space, area by area, and of a host, process by process.  Pure: no I/O.

``dissect`` classes every mapping of one look, ``compare`` says what changed between two; ``suspect`` ranks
processes, ``attention`` judges the lines of /proc/meminfo.
"""

from ebpftrace.anatomy.dissect import dissect
from ebpftrace.anatomy.growth import compare
from ebpftrace.anatomy.host import attention
from ebpftrace.anatomy.suspicion import suspect

__all__ = ["attention", "compare", "dissect", "suspect"]
