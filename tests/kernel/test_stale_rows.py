# SPDX-License-Identifier: Apache-2.0
"""A long trace of a program whose mappings end in ways that no start address tells of.

The kernel's tables would fill with rows of which nothing is left, and with the threads that made them.
"""

from __future__ import annotations

import ctypes
import os

from harness import (
    ORPHANED,
    Target,
    Tracer,
    eventually,
    fact_areas,
    no_losses,
    reported,
    reported_areas,
    traced,
    union,
)

from ebpftrace.capture import tables
from ebpftrace.capture.layout import MappingT, TaskKeyT, TaskT, ThreadT

ROWS = 1024
ROUNDS = 50
"""In a batch; each leaves two stale rows and a thread that mapped them."""
MIN_FREE = 150
"""Rows for one more batch.  A table with less has been crowded for long, however it was swept."""
BATCHES = 40

_MAP_GET_FD_BY_ID = 14
_OBJ_GET_INFO_BY_FD = 15


class IdAttributes(ctypes.Structure):
    """The BPF_*_GET_*_ID part of ``union bpf_attr``."""

    _fields_ = (("id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32))


class InfoAttributes(ctypes.Structure):
    """The BPF_OBJ_GET_INFO_BY_FD part of ``union bpf_attr``."""

    _fields_ = (("fd", ctypes.c_uint32), ("length", ctypes.c_uint32), ("info", ctypes.c_uint64))


class MapInfo(ctypes.Structure):
    """``struct bpf_map_info`` up to its name."""

    _fields_ = (("numbers", ctypes.c_uint32 * 6), ("name", ctypes.c_char * 16))


def open_tables(tracer: Tracer) -> dict[str, int]:
    """File descriptors of the tracer's tables by name."""
    found = {}
    for number in tracer.bpf_ids("map"):
        fd = tables.bpf(_MAP_GET_FD_BY_ID, IdAttributes(id=number))
        info = MapInfo()
        tables.bpf(_OBJ_GET_INFO_BY_FD, InfoAttributes(fd, ctypes.sizeof(info), ctypes.addressof(info)))
        found[info.name.decode()] = fd
    return found


def test_stale_rows_are_swept() -> None:
    options = ["--min-age", 0, "--max-mappings", ROWS]
    with Target("stale", ROUNDS) as target, traced(target, *options) as tracer:
        fds = open_tables(tracer)

        def has_room() -> bool:
            counts = [
                tables.count(fds["mappings"], ctypes.c_uint64, MappingT),
                tables.count(fds["exited"], TaskKeyT, TaskT),
                tables.count(fds["threads"], ctypes.c_uint32, ThreadT),
            ]
            return max(counts) <= ROWS - MIN_FREE

        for _ in range(BATCHES):
            eventually(has_room, "the tables are swept")
            target.run()
        for fd in fds.values():
            os.close(fd)
        report = tracer.interrupt().report
    assert no_losses(report), report["losses"]
    assert report["calls"]["clone"] == BATCHES * (ROUNDS + 1)
    kept = target.facts("mapped")
    assert union(reported_areas(report, *ORPHANED)) == union(fact_areas(kept))
    assert {one["owner_tid"] for one in reported(report)} <= {fact["owner"] for fact in kept}
    assert report["unexplained_bytes"] == 0
