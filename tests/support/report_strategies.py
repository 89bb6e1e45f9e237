# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies: hostile names, and reports made of them."""

from __future__ import annotations

from typing import Optional

import reports
from hypothesis import strategies as st

from ebpftrace.model import (
    Accepted,
    AcceptedBy,
    Calls,
    Certainty,
    EndedBy,
    Finding,
    Frame,
    Holder,
    Interval,
    Losses,
    Mapping,
    Memory,
    Orphan,
    Outstanding,
    OwnedBy,
    Reached,
    Report,
    Site,
    Stack,
    StackSource,
    TargetInfo,
    Thread,
    ThreadId,
    ThreadTotal,
    TracerCost,
    Verdict,
    Where,
)

NASTY = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\n",
    "\r",
    "\t",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u200b",
    "\u2028",
    "\ufe0f",
    "\udcff",
    "\ud800",
    "[bold]",
    "[/]",
    "[link=http://x]",
    ":smile:",
    "\\",
    ";",
    " 12",
    "</script>",
    "<!--",
    "/*REPORT*/",
    "漢字",
    "e\u0301\u0301\u0301",
    "👩‍👩‍👧",
)

names = st.one_of(
    st.sampled_from(("worker", "", "/usr/bin/" + "very-long/" * 400 + "x")),
    st.sampled_from(NASTY),
    st.binary(max_size=16).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.lists(st.one_of(st.sampled_from(NASTY), st.characters()), max_size=6).map("".join),
)

_DAY = 86_400 * reports.SECOND
moments = st.integers(reports.BOOT_TO_END - 5 * _DAY, reports.BOOT_TO_END)
_bytes = st.integers(0, 1 << 50)
_counts = st.integers(0, 10**9)


def _optional(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[Optional[int]]:
    return st.none() | strategy


thread_ids = st.builds(ThreadId, st.integers(1, 1 << 22), moments)
threads = st.builds(
    Thread,
    thread_ids,
    names,
    st.integers(1, 1 << 22),
    exited_at=_optional(moments),
    creator=st.none() | thread_ids,
    creator_name=st.none() | names,
    before_attach=st.booleans(),
    inner_tid=_optional(st.integers(1, 1 << 22)),
    creator_inner_tid=_optional(st.integers(1, 1 << 22)),
)
frames = st.builds(
    Frame,
    st.none() | names,
    st.none() | names,
    _optional(st.integers(0, 10**6)),
    st.none() | names,
    _optional(st.integers(0, (1 << 64) - 1)),
    st.booleans(),
)
stacks = st.builds(
    Stack,
    st.lists(frames, max_size=4).map(tuple),
    st.booleans(),
    st.sampled_from(StackSource),
    names,
)


@st.composite
def mappings(draw: st.DrawFn) -> Mapping:
    pages = draw(st.lists(st.integers(0, 1 << 35), min_size=2, max_size=6, unique=True).map(sorted))
    bounds = [page * 4096 for page in pages[: len(pages) // 2 * 2]]
    pieces = tuple(Interval(start, end) for start, end in zip(bounds[::2], bounds[1::2]))
    if draw(st.booleans()):
        return Mapping(pieces, None, None, None, None, 0)
    values = st.integers(0, (1 << 64) - 1)
    return Mapping(pieces, draw(moments), draw(thread_ids), draw(values), draw(values), draw(values))


outstandings = st.builds(
    Outstanding,
    mappings(),
    st.none() | threads,
    st.none() | st.sampled_from(OwnedBy),
    st.none() | threads,
)
_holders = st.lists(
    st.builds(
        Holder,
        st.sampled_from(Where),
        _optional(st.integers(0, (1 << 64) - 1)),
        names,
        _optional(_counts),
        names,
        st.none() | frames,
    ),
    max_size=2,
).map(tuple)
findings = st.builds(
    Finding,
    verdict=st.sampled_from(Verdict),
    leak=st.booleans(),
    evidence=st.lists(names, max_size=2).map(tuple),
    advice=names,
    before_attach=st.booleans(),
    orphans=st.lists(
        st.builds(Orphan, outstandings, _optional(_bytes), _optional(_bytes), _bytes), min_size=1, max_size=3
    ).map(tuple),
    bytes_per_minute=st.none() | st.floats(-1e15, 1e15),
    stack=stacks,
    start_routine=st.none() | frames,
    period=st.none() | st.floats(0, 1e6),
    sites=st.lists(st.builds(Site, stacks, st.integers(1, 9), _bytes), max_size=3).map(tuple),
    more_sites=_counts,
    called=st.lists(st.tuples(names, st.integers(1, 9)), max_size=3).map(tuple),
    batch=st.integers(1, 99),
    certainty=st.sampled_from(Certainty),
    undecided=st.booleans(),
    accepted=st.none() | st.builds(Accepted, st.sampled_from(AcceptedBy), names),
    reach=st.none() | st.builds(Reached, _counts, _counts, _counts, st.booleans(), _holders),
)
any_report = st.builds(
    Report,
    target=st.builds(
        TargetInfo,
        st.integers(1, 1 << 22),
        names,
        names,
        _optional(_counts),
        _optional(_counts),
        inner_pid=_optional(st.integers(1, 1 << 22)),
    ),
    seconds=st.floats(0, 1e6),
    ended_by=st.sampled_from(EndedBy),
    ended_at=st.just(reports.BOOT_TO_END),
    clock=st.just(reports.CLOCK),
    memory=st.builds(Memory, *[_optional(_bytes)] * 4),
    calls=st.builds(Calls, *[_counts] * 6),
    losses=st.builds(Losses, *[st.just(0) | _counts] * 4),
    threads=st.lists(st.builds(ThreadTotal, threads, _counts, _bytes, _bytes, stacks), max_size=4).map(tuple),
    findings=st.lists(findings, max_size=3).map(tuple),
    outstanding_mappings=_counts,
    outstanding_bytes=_bytes,
    unexplained_bytes=_bytes,
    undecided=_counts,
    executed=names,
    is_child=st.booleans(),
    threads_only=st.booleans(),
    notes=st.lists(names, max_size=2).map(tuple),
    cost=st.none()
    | st.builds(
        TracerCost, st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.none() | st.integers(0, 1 << 63)
    ),
)
