# SPDX-License-Identifier: Apache-2.0
"""The JSON contract ``ebpftrace.scan/1``: one scan of the host, one object, one line.

``schema/scan-1.json`` describes it for machines.  Sizes are bytes; null where nobody looked.
"""

from __future__ import annotations

import json
from typing import Any

from ebpftrace import __version__
from ebpftrace.anatomy.census import Census
from ebpftrace.anatomy.suspicion import Suspect
from ebpftrace.model import BooksState
from ebpftrace.report.json_parts import iso_time
from ebpftrace.report.scan import reason_name, reason_text
from ebpftrace.text import without_surrogates

SCHEMA = "ebpftrace.scan/1"


def render(census: Census, top: int) -> str:
    """The scan as one line of ASCII JSON, with the ``top`` most suspect processes."""
    return json.dumps(document(census, top), allow_nan=False) + "\n"


def document(census: Census, top: int) -> dict[str, Any]:
    """The scan as the object of the contract."""
    memory = census.memory
    return {
        "schema": SCHEMA,
        "version": __version__,
        "taken_at": iso_time(census.taken_at),
        "took_seconds": census.took,
        "growth_seconds": census.seconds,
        "sees_all": census.sees_all,
        "counts": {
            "processes": len(census.suspects),
            "suspects": sum(1 for one in census.suspects if one.reasons),
            "kernel_threads": census.kernel_threads,
            "zombies": census.zombies,
            "vanished": census.vanished,
            "unreadable": census.unreadable,
            "not_looked": census.not_looked,
            "books_unread": census.books_unread,
            "unsearched": census.unsearched,
        },
        "processes": [_process(one) for one in census.suspects[:top]],
        "attention": [
            {
                "name": told.name,
                "bytes": told.value,
                "share": told.share,
                "of": told.of or None,
                "meaning": told.meaning,
                "look_at": told.look_at,
            }
            for told in memory.attention
        ],
        "meminfo": dict(memory.meminfo),
    }


def _process(suspected: Suspect) -> dict[str, Any]:
    figures = suspected.figures
    shape, proved = figures.shape, figures.books is BooksState.READ
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
        "books": figures.books.value if figures.books is not None else "not-looked",
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
