# SPDX-License-Identifier: Apache-2.0
"""What stands at a moment, and what changed between two moments.

The ledger already took out what came and went between them: the work here is by what stands, not by
how many calls there were.
"""

from __future__ import annotations

import collections.abc
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Set
from typing import NamedTuple, Optional, TypeVar

from ebpftrace.growth.model import Change, How
from ebpftrace.model import Mapping, ThreadId

MadeBy = tuple[ThreadId, int]
"""What names a mapping for good: who made it, and when; a thread makes one at a time."""


_K = TypeVar("_K", bound=Hashable)


class Held(NamedTuple):
    """What is left of one mapping."""

    size: int
    site: int


class Standing(NamedTuple):
    """What stood at one moment."""

    made: dict[MadeBy, Held]
    """The mappings that were made since attach."""
    before_attach: int
    """Bytes of all other mappings."""
    brk_by_thread: collections.abc.Mapping[ThreadId, int]
    brk_by_site: collections.abc.Mapping[int, int]
    """Bytes by which the break was moved since attach, net, by thread and by signature."""
    brk_callers: collections.abc.Mapping[int, Set[int]]
    """Threads (tid) that were seen to move it, by signature: not of every call."""


def standing(
    mappings: Iterable[Mapping],
    brk_by_thread: collections.abc.Mapping[ThreadId, int],
    brk_by_site: collections.abc.Mapping[int, int],
    brk_callers: collections.abc.Mapping[int, Set[int]],
) -> Standing:
    """Return what stands; the mappings are the ledger's."""
    made: dict[MadeBy, Held] = {}
    before_attach = 0
    for mapping in mappings:
        if mapping.mapper is None or mapping.made_at is None:
            before_attach += mapping.size
            continue
        # A mapping of which a part was moved is several with one maker.
        key = (mapping.mapper, mapping.made_at)
        so_far = made.get(key)
        made[key] = Held(mapping.size + (so_far.size if so_far else 0), mapping.site)
    return Standing(made, before_attach, brk_by_thread, brk_by_site, brk_callers)


def changes(before: Standing, after: Standing) -> list[Change]:
    """Return what changed, in no order; the sizes add up to the growth of all that the ledger knows."""
    return [*_mapped(before, after), *_moved_break(before, after)]


def _mapped(before: Standing, after: Standing) -> Iterator[Change]:
    for key, held in after.made.items():
        thread, made_at = key
        old = before.made.get(key)
        if old is None:
            yield Change(How.MMAP, held.size, thread, held.site, made_at)
        elif old.size != held.size:
            grown = held.size - old.size
            yield Change(How.MREMAP if grown > 0 else How.MUNMAP, grown, thread, held.site, made_at)
    for key, old in before.made.items():
        if key not in after.made:
            thread, made_at = key
            yield Change(How.MUNMAP, -old.size, thread, old.site, made_at)
    grown = after.before_attach - before.before_attach
    if grown:
        yield Change(How.MREMAP if grown > 0 else How.MUNMAP, grown, None, 0, before_attach=True)


def _moved_break(before: Standing, after: Standing) -> Iterator[Change]:
    """The kernel counts by thread and by site, not by both: the callers that were seen join the two."""
    threads = _grown(before.brk_by_thread, after.brk_by_thread)
    sites = _grown(before.brk_by_site, after.brk_by_site)
    # Calls whose stack could not be read, or that came between the reading of the two tables.
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
    told: Counter[ThreadId] = Counter()
    for site, caller in callers.items():
        if caller is not None:
            told[caller] += sites[site]
    for site, caller in callers.items():
        sure = caller is not None and told[caller] == threads[caller]
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
