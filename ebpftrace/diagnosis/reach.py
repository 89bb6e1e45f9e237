# SPDX-License-Identifier: Apache-2.0
"""What the search says of orphans, and the words for it.

An orphan is lost when nothing in the process refers to it any more: nobody can free it.  Of many orphans of
one kind that are lost, a few are nearly always still referred to by a stale copy, as the last handle is that
a variable or a dead slot of a stack frame has held; those belong to the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from enum import Enum
from typing import Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.rule import Context
from ebpftrace.frames import called
from ebpftrace.model import Holder, Reach, Reached, Search, Where
from ebpftrace.text import searches

_STALE_AT_LEAST = 2
"""Stale copies that any kind may have, however few of it are lost."""
_HOLDERS_SHOWN = 3
_WORD = 8


class State(Enum):
    """Whether an orphan can still be freed."""

    LOST = "lost"
    KEPT = "kept"
    UNKNOWN = "unknown"
    """It was not searched for, or what was searched says nothing."""


def state_of(case: Case, context: Context) -> State:
    """What the search says of one orphan; a mapping is not called lost where pointers may be hidden."""
    if case.reach is None:
        return State.UNKNOWN
    if not case.reach.lost:
        return State.KEPT
    is_hidden = case.facts.booked is None and context.search.hidden
    return State.UNKNOWN if is_hidden or context.overlooked else State.LOST


def is_overlooked(reaches: Iterable[Reach], search: Search) -> bool:
    """Whether all that was not found may be referred to from where the search did not go.

    Each reference takes a word: 70,000 handles do not fit into the one page that is in swap.
    """
    return sum(reach.lost for reach in reaches) * _WORD <= search.unsearched_bytes


def with_stale(case: Case, context: Context, kind: Hashable) -> State:
    """As ``state_of``; what is kept of a kind most of which are lost is kept by a stale copy: lost too."""
    state = state_of(case, context)
    return State.LOST if state is State.KEPT and kind in context.stale else state


def kept_of(cases: Sequence[Case], context: Context) -> list[Case]:
    """Of cases that count as lost, those that a stale copy still refers to."""
    return [case for case in cases if state_of(case, context) is State.KEPT]


def proved(context: Context) -> str:
    """`` (proved)`` where what the search calls lost is."""
    return " (proved)" if context.search.complete else ""


def doubts(context: Context) -> list[str]:
    """Why what the search calls lost is not proved; none where it is."""
    return [] if context.search.complete else [f"not proved: {gap}" for gap in context.search.gaps]


def stale_kinds(states: Iterable[tuple[Hashable, State]]) -> frozenset[Hashable]:
    """Kinds of which so many are lost that the kept ones are stale copies."""
    counts: dict[Hashable, Counter[State]] = {}
    for kind, state in states:
        counts.setdefault(kind, Counter())[state] += 1
    return frozenset(
        kind
        for kind, number in counts.items()
        if number[State.LOST] and number[State.KEPT] <= max(_STALE_AT_LEAST, number[State.LOST])
    )


def reached(cases: Sequence[Case], search: Search) -> Optional[Reached]:
    """The sum for a finding; None where none of it was searched for."""
    checked = [case.reach for case in cases if case.reach is not None]
    if not checked:
        return None
    lost = sum(reach.lost for reach in checked)
    places: dict[tuple[Where, str, Optional[int], str], Holder] = {}
    kept_there: Counter[tuple[Where, str, Optional[int], str]] = Counter()
    for reach in checked:
        for holder in reach.holders:
            frame = called(holder.frame) if holder.frame is not None else ""
            place = holder.where, holder.symbol, holder.thread, frame
            places.setdefault(place, holder)
            kept_there[place] += 1
    return Reached(
        checked=len(checked),
        lost=lost,
        kept=len(checked) - lost,
        complete=search.complete,
        # One that is about to be joined may be in three registers, and all others in one array.
        holders=tuple(places[place] for place, _ in kept_there.most_common(_HOLDERS_SHOWN)),
    )


def held_by(cases: Sequence[Case]) -> str:
    """Where references to these are stored: ``on the stack of thread 4711 main, and in the heap``."""
    names: Counter[str] = Counter()
    for case in cases:
        if case.reach is not None:
            names.update({_name(holder): 1 for holder in case.reach.holders[:1]})
    shown = [name for name, _ in names.most_common(_HOLDERS_SHOWN)]
    more = ", and elsewhere" if len(names) > _HOLDERS_SHOWN else ""
    return ", ".join(shown) + more if shown else "somewhere in the process"


def _name(holder: Holder) -> str:
    thread = f"thread {holder.thread} {holder.thread_name}".rstrip() if holder.thread else "a thread"
    symbol = f" ({holder.symbol})" if holder.symbol else ""
    frame = f" (frame of {called(holder.frame)})" if holder.frame is not None else ""
    return {
        Where.GLOBAL: f"in {holder.symbol or 'a global variable'}",
        Where.STACK: f"on the stack of {thread}{frame}",
        Where.TLS: f"in thread-local storage of {thread}{symbol}",
        Where.HEAP: "in the heap (perhaps in a leaked block)",
        Where.MAPPING: "in another mapping",
        Where.SHARED: "in shared memory",
        Where.REGISTER: f"in register {holder.symbol or '?'} of {thread}",
        Where.KERNEL: f"by the kernel{symbol}",
    }[holder.where]


def searched(context: Context) -> str:
    """How often and how much was searched, for a proof."""
    return searches(context.search.searches, context.search.bytes_searched)


def why_unknown(search: Search, case: Case) -> str:
    """Why the search can't tell, one clause."""
    if case.facts.booked is None and search.hidden and search.searches:
        return search.hidden
    return "; ".join(search.gaps) or "the memory of the process was not searched"
