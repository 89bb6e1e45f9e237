# SPDX-License-Identifier: Apache-2.0
"""Growing threads: live threads of one place that are created all through the window and do not end.

What most reports call a thread leak.  A pool that fills to a size and stays is none: its threads were created
at one time.  Where threads live longer than the window, each new one replaces one that ended: so the number
of threads of the process must have grown too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.growth import keeps_growing
from ebpftrace.diagnosis.origin import creator_frame
from ebpftrace.diagnosis.rule import LONG_ENOUGH, Context, Judgement
from ebpftrace.frames import called
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import count, duration, plural

_LEAST = 4
_NET = 0.5
"""Part of the threads that a place created in the window by which all threads must have grown."""
_WAITS_SHOWN = 3


def growing_threads(cases: Sequence[Case], context: Context) -> list[tuple[list[Case], Judgement]]:
    """Live threads that pile up, by the place that created them; ``cases`` are stacks of live threads."""
    by_place: dict[Hashable, list[Case]] = defaultdict(list)
    for case in cases:
        if case.outstanding.run is not None:
            by_place[case.facts.place].append(case)
    return [
        (group, _judge(group, context))
        for group in by_place.values()
        if len(group) >= _LEAST and _grows(group, context)
    ]


def _grows(cases: Sequence[Case], context: Context) -> bool:
    births = [case.outstanding.run.thread.born for case in cases if case.outstanding.run is not None]
    evidence = context.evidence
    if not keeps_growing(births, evidence.attached_at, evidence.judged_at):
        return False
    growth = evidence.thread_growth
    return growth is None or growth >= _NET * len(cases)


def _what_it_does(tid: int, context: Context) -> str:
    call = context.evidence.thread_waits.get(tid)
    return "running" if call is None else f"in {call}"


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    window = duration(context.window / NS)
    threads = plural(len(cases), "thread")
    why = [f"{threads} created over {window} all live, and none of this place ended for as many that began"]
    births = [case.outstanding.run.thread.born for case in cases if case.outstanding.run is not None]
    why.append(f"the first of these began {duration(context.age(min(births)) / NS)} before the report")
    waits = Counter(
        _what_it_does(case.outstanding.owner.id.tid, context)
        for case in cases
        if case.outstanding.owner is not None
    )
    if waits:
        shown = ", ".join(f"{count(number)} {name}" for name, number in waits.most_common(_WAITS_SHOWN))
        why.append(f"what they do: {shown}")
    is_leak = context.window >= LONG_ENOUGH
    if not is_leak:
        why.append(f"not called a leak yet: {window} are too short to tell")
    creator = creator_frame(cases[0].facts.stack)
    where = f" that {called(creator)} creates" if creator is not None else ""
    advice = f"have the threads{where} end, or bound their number (a pool)"
    certainty = Certainty.LIKELY if is_leak else Certainty.POSSIBLE
    return Judgement(Verdict.GROWING_THREADS, is_leak, tuple(why), advice, certainty)
