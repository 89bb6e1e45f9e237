# SPDX-License-Identifier: Apache-2.0
"""What the search found out about orphans, and how it is worded.

An orphan is lost if nothing in the process refers to it any more, because then nobody can free it.  Of many
lost orphans of one kind, a few are nearly always still referred to by a stale copy, such as the last handle
that a variable or a dead slot of a stack frame contained; these few count as lost too.
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

_MIN_STALE = 2
"""So many references to a kind of orphan may be stale copies, however few orphans of it are lost."""
_MAX_HOLDERS = 3
_WORD = 8


class State(Enum):
    """Whether an orphan can still be freed, by the search."""

    LOST = "lost"
    KEPT = "kept"
    UNKNOWN = "unknown"
    """It was not searched for, or the search can't decide."""

    __hash__ = object.__hash__  # as for ``OwnedBy``


def state_of(case: Case, context: Context) -> State:
    """What the search found about one orphan; a mapping is UNKNOWN, not LOST, if pointers may be hidden."""
    if case.reach is None:
        return State.UNKNOWN
    if not case.reach.lost:
        return State.KEPT
    is_hidden = case.facts.listed is None and context.search.hidden
    return State.UNKNOWN if is_hidden or context.overlooked else State.LOST


def is_overlooked(reaches: Iterable[Reach], search: Search) -> bool:
    """Whether the memory that was not searched could contain a reference to every orphan called lost.

    Each reference takes a word of 8 bytes: 70,000 handles do not fit into the one page that is in swap.
    """
    return sum(reach.lost for reach in reaches) * _WORD <= search.unsearched_bytes


def with_stale(case: Case, context: Context, kind: Hashable) -> State:
    """As ``state_of``, but an orphan that only a stale copy refers to is lost."""
    state = state_of(case, context)
    return State.LOST if state is State.KEPT and kind in context.stale else state


def kept_of(cases: Sequence[Case], context: Context) -> list[Case]:
    """Of cases that count as lost, return those that a stale copy still refers to."""
    return [case for case in cases if state_of(case, context) is State.KEPT]


def proved(context: Context) -> str:
    """`` (proved)`` if a lost orphan is proved to be lost, else nothing."""
    return " (proved)" if context.search.complete else ""


def doubts(context: Context) -> list[str]:
    """Why it is not proved that a lost orphan is lost; empty if it is."""
    return [] if context.search.complete else [f"not proved: {gap}" for gap in context.search.gaps]


def stale_kinds(states: Iterable[tuple[Hashable, State, int]]) -> frozenset[Hashable]:
    """Kinds of which so many orphans are lost that references to the others must be stale copies.

    ``states`` are the numbers of orphans by kind and state.
    """
    counts: dict[Hashable, Counter[State]] = {}
    for kind, state, number in states:
        counts.setdefault(kind, Counter())[state] += number
    return frozenset(
        kind
        for kind, number in counts.items()
        if number[State.LOST] and number[State.KEPT] <= max(_MIN_STALE, number[State.LOST])
    )


def reached(cases: Sequence[Case], search: Search) -> Optional[Reached]:
    """Sum up the search for one finding; None if none of its orphans was searched for."""
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
        # A handle that is about to be joined may be in three registers, while one array contains all others.
        holders=tuple(places[place] for place, _ in kept_there.most_common(_MAX_HOLDERS)),
    )


def held_by(cases: Sequence[Case]) -> str:
    """Say where references are stored, such as ``on the stack of thread 4711 main, in the heap``."""
    names: Counter[str] = Counter()
    for case in cases:
        if case.reach is not None:
            names.update({_name(holder): 1 for holder in case.reach.holders[:1]})
    shown = [name for name, _ in names.most_common(_MAX_HOLDERS)]
    more = ", and elsewhere" if len(names) > _MAX_HOLDERS else ""
    return ", ".join(shown) + more if shown else "somewhere in the process"


def _name(holder: Holder) -> str:
    thread = f"thread {holder.thread} {holder.thread_name}".rstrip() if holder.thread else "a thread"
    symbol = f" ({holder.symbol})" if holder.symbol else ""
    frame = f" (frame of {called(holder.frame)})" if holder.frame is not None else ""
    return {
        Where.GLOBAL: f"in {holder.symbol or 'a global variable'}",
        Where.STACK: f"on the stack of {thread}{frame}",
        Where.TLS: f"in thread-local storage of {thread}{symbol}",
        Where.HEAP: "in the heap (perhaps in a block that was freed or leaked)",
        Where.MAPPING: "in another mapping",
        Where.SHARED: "in shared memory",
        Where.REGISTER: f"in register {holder.symbol or '?'} of {thread}",
        Where.KERNEL: f"by the kernel{symbol}",
    }[holder.where]


def searched(context: Context) -> str:
    """Say how often and how much was searched."""
    return searches(context.search.searches, context.search.bytes_searched)


def why_unknown(search: Search, case: Case) -> str:
    """Say in one clause why the search can't decide."""
    if case.facts.listed is None and search.hidden and search.searches:
        return search.hidden
    return "; ".join(search.gaps) or "the memory of the process was not searched"
