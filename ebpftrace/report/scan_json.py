# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.scan/1``: one scan of the host, one object, one line.

``schema/scan-1.json`` describes it for machines.  Sizes are bytes; null if a figure was not read.
"""

from __future__ import annotations

import json
from typing import Any

from ebpftrace import __version__
from ebpftrace.classify.host_scan import HostScan
from ebpftrace.classify.ranking import Candidate
from ebpftrace.model import ReadState
from ebpftrace.report.json_parts import iso_time
from ebpftrace.report.scan import reason_name, reason_text
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.scan/1"


def render(host_scan: HostScan, top: int) -> str:
    """The scan as one line of ASCII JSON, with the ``top`` most suspect processes."""
    return json.dumps(document(host_scan, top), allow_nan=False) + "\n"


def document(host_scan: HostScan, top: int) -> dict[str, Any]:
    """The scan as the object of the contract."""
    memory = host_scan.memory
    return {
        "schema": SCHEMA,
        "version": __version__,
        "taken_at": iso_time(host_scan.taken_at),
        "took_seconds": host_scan.took,
        "growth_seconds": host_scan.seconds,
        "sees_all": host_scan.sees_all,
        "counts": {
            "processes": len(host_scan.candidates),
            "suspects": sum(1 for one in host_scan.candidates if one.reasons),
            "kernel_threads": host_scan.kernel_threads,
            "zombies": host_scan.zombies,
            "vanished": host_scan.vanished,
            "unreadable": host_scan.unreadable,
            "not_looked": host_scan.not_looked,
            "books_unread": host_scan.lists_unread,
            "unsearched": host_scan.unsearched,
        },
        "processes": [_process(one) for one in host_scan.candidates[:top]],
        "attention": [
            {
                "name": item.name,
                "bytes": item.value,
                "share": item.share,
                "of": item.of or None,
                "meaning": item.meaning,
                "look_at": item.next_step,
            }
            for item in memory.attention
        ],
        "meminfo": dict(memory.meminfo),
    }


def _process(suspected: Candidate) -> dict[str, Any]:
    figures = suspected.figures
    shape, proved = figures.shape, figures.thread_lists is ReadState.READ
    return {
        "pid": figures.pid,
        "comm": without_surrogates(figures.comm),
        "threads": figures.threads,
        "virt": figures.virt,
        "rss": figures.rss,
        "ratio": figures.ratio,
        "vmas": shape.areas if shape is not None else None,
        "writable_bytes": shape.writable if shape is not None else None,
        "stack_shaped": shape.stacks.number if shape is not None else None,
        "stack_shaped_bytes": shape.stacks.size if shape is not None else None,
        "arenas": figures.heaps if shape is not None else None,
        "books": figures.thread_lists.value if figures.thread_lists is not None else "not-looked",
        "exited_threads": figures.exited if proved else None,
        "exited_bytes": figures.exited_size if proved else None,
        "leaked_threads": figures.leaked if proved else None,
        "leaked_bytes": figures.leaked_size if proved else None,
        "undecided_threads": figures.undecided if proved else None,
        "virt_growth": figures.virt_growth,
        "rss_growth": figures.rss_growth,
        "thread_growth": figures.thread_growth,
        "reasons": [
            {
                "kind": reason_name(reason),
                "bytes": reason.size,
                "count": reason.number,
                "text": reason_text(reason, figures),
            }
            for reason in suspected.reasons
        ],
    }
