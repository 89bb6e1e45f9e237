# SPDX-License-Identifier: Apache-2.0
"""The outstanding mappings at a moment, and the changes between two moments.

Mappings that came and went in between are no longer in the ledger: the work here depends on the number of
outstanding mappings, not on that of calls.
"""

from __future__ import annotations

import collections.abc
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Set
from typing import NamedTuple, Optional, TypeVar

from ebpftrace.callflags import MAP_GROWSDOWN
from ebpftrace.model import Mapping, ThreadId
from ebpftrace.size_changes.model import Change, How
from ebpftrace.vmas import UNSIZED

MadeBy = tuple[ThreadId, int]
"""Identifies a mapping: its mapper and when it was made, since a thread makes one at a time."""


_MADE_BY = dict(zip(UNSIZED, (How.SHMAT, How.IO_SETUP)))
"""By how the kernel's name of the memory begins, where the call had no ``prot``."""

_K = TypeVar("_K", bound=Hashable)


class OutstandingBytes(NamedTuple):
    """The rest of one mapping."""

    size: int
    site: int
    made_by: How = How.MMAP
    grows_by: How = How.MREMAP


class OutstandingNow(NamedTuple):
    """The outstanding mappings and brk growth at one moment."""

    made: dict[MadeBy, OutstandingBytes]
    """The mappings that were made since attach."""
    before_attach: int
    """Bytes of all other mappings."""
    brk_by_thread: collections.abc.Mapping[ThreadId, int]
    brk_by_site: collections.abc.Mapping[int, int]
    """Net bytes by which the break was moved since attach, by thread and by site."""
    brk_callers: collections.abc.Mapping[int, Set[int]]
    """Tids of threads that were seen to move the break, by site; not all calls are seen."""


def outstanding_now(
    mappings: Iterable[Mapping],
    brk_by_thread: collections.abc.Mapping[ThreadId, int],
    brk_by_site: collections.abc.Mapping[int, int],
    brk_callers: collections.abc.Mapping[int, Set[int]],
) -> OutstandingNow:
    """Return the outstanding bytes of the ledger's mappings, which are as ``as_shown`` gives them."""
    made: dict[MadeBy, OutstandingBytes] = {}
    before_attach = 0
    for mapping in mappings:
        if mapping.mapper is None or mapping.made_at is None:
            before_attach += mapping.size
            continue
        # After a part of a mapping was moved, it is several mappings with the same key.
        key = (mapping.mapper, mapping.made_at)
        so_far = made.get(key)
        size = mapping.size + (so_far.size if so_far else 0)
        made[key] = OutstandingBytes(size, mapping.site)
        if mapping.prot is None:
            made[key] = made[key]._replace(made_by=_made_by(mapping))
        elif (mapping.flags or 0) & MAP_GROWSDOWN:
            made[key] = made[key]._replace(grows_by=How.FAULT)
    return OutstandingNow(made, before_attach, brk_by_thread, brk_by_site, brk_callers)


def _made_by(mapping: Mapping) -> How:
    """Return the call that made a mapping without ``prot``."""
    return next((how for start, how in _MADE_BY.items() if mapping.file.startswith(start)), How.MMAP)


def changes(before: OutstandingNow, after: OutstandingNow) -> list[Change]:
    """Return the changes, in no order; their sizes add up to the growth of everything in the ledger."""
    return [*_mapped(before, after), *_moved_break(before, after)]


def _mapped(before: OutstandingNow, after: OutstandingNow) -> Iterator[Change]:
    for key, new in after.made.items():
        thread, made_at = key
        old = before.made.get(key)
        if old is None:
            yield Change(new.made_by, new.size, thread, new.site, made_at)
        elif old.size != new.size:
            grown = new.size - old.size
            yield Change(new.grows_by if grown > 0 else How.MUNMAP, grown, thread, new.site, made_at)
    for key, old in before.made.items():
        if key not in after.made:
            thread, made_at = key
            yield Change(How.MUNMAP, -old.size, thread, old.site, made_at)
    grown = after.before_attach - before.before_attach
    if grown:
        yield Change(How.MREMAP if grown > 0 else How.MUNMAP, grown, None, 0, before_attach=True)


def _moved_break(before: OutstandingNow, after: OutstandingNow) -> Iterator[Change]:
    """The BPF programs count by thread and by site, not by both: the seen callers connect the two."""
    threads = _grown(before.brk_by_thread, after.brk_by_thread)
    sites = _grown(before.brk_by_site, after.brk_by_site)
    # Growth by calls whose stack could not be read, or between the readings of the two tables.
    rest = sum(threads.values()) - sum(sites.values())
    if len(threads) == 1:
        (thread,) = threads
        yield from (Change(How.BRK, grown, thread, site) for site, grown in sites.items())
        if rest:
            yield Change(How.BRK, rest, thread, 0)
        return
    if len(sites) == 1 and not rest:
        (site,) = sites
        yield from (Change(How.BRK, grown, thread, site) for thread, grown in threads.items())
        return
    by_tid = {thread.tid: thread for thread in threads}
    callers = {site: _only(after.brk_callers.get(site, frozenset()), by_tid) for site in sites}
    credited: Counter[ThreadId] = Counter()
    for site, caller in callers.items():
        if caller is not None:
            credited[caller] += sites[site]
    for site, caller in callers.items():
        sure = caller is not None and credited[caller] == threads[caller]
        yield Change(How.BRK, sites[site], caller if sure else None, site)
    if rest:
        yield Change(How.BRK, rest, None, 0)


def _only(tids: Set[int], by_tid: collections.abc.Mapping[int, ThreadId]) -> Optional[ThreadId]:
    return by_tid.get(next(iter(tids))) if len(tids) == 1 else None


def _grown(
    before: collections.abc.Mapping[_K, int], after: collections.abc.Mapping[_K, int]
) -> dict[_K, int]:
    grown = {key: after.get(key, 0) - before.get(key, 0) for key in {**before, **after}}
    return {key: change for key, change in grown.items() if change}
