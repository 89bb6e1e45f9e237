"""Outstanding mappings by owner, for the table of threads."""

from __future__ import annotations

from collections.abc import Iterable

from ebpftrace.model import Outstanding, Thread, ThreadId, ThreadTotal


def totals(outstanding: Iterable[Outstanding]) -> list[ThreadTotal]:
    """Return mappings and bytes of each owner, most bytes first; what has no owner is left out."""
    owners: dict[ThreadId, Thread] = {}
    sizes: dict[ThreadId, list[int]] = {}
    for each in outstanding:
        if each.owner is not None:
            owners[each.owner.id] = each.owner
            sizes.setdefault(each.owner.id, []).append(each.mapping.size)
    found = [ThreadTotal(owners[thread], len(of), sum(of)) for thread, of in sizes.items()]
    return sorted(found, key=lambda total: (-total.size, -total.mappings, total.thread.id))
