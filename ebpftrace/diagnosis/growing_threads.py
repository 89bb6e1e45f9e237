# SPDX-License-Identifier: Apache-2.0
"""Growing threads: live threads of one site that are created all through the window and do not end.

This is what most bug reports call a thread leak.  A pool that fills up and then keeps its size is none: its
threads were created at about the same time.  Threads that live longer than the window may replace others
that ended in it, so the number of threads of the process must have grown too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.origin import creator_frame
from ebpftrace.diagnosis.rule import LONG_ENOUGH, Context, Judgement
from ebpftrace.diagnosis.timeseries import keeps_growing
from ebpftrace.frames import called
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import count, duration, plural

_MIN = 4
_NET = 0.5
"""The number of threads must grow by this part of the threads that the site created in the window."""
_WAITS_SHOWN = 3


def growing_threads(cases: Sequence[Case], context: Context) -> list[tuple[list[Case], Judgement]]:
    """Judge live threads that pile up, by the site that created them; ``cases`` are their stacks."""
    by_site: dict[Hashable, list[Case]] = defaultdict(list)
    for case in cases:
        if case.outstanding.run is not None:
            by_site[case.facts.site].append(case)
    return [
        (group, _judge(group, context))
        for group in by_site.values()
        if len(group) >= _MIN and _grows(group, context)
    ]


def _grows(cases: Sequence[Case], context: Context) -> bool:
    starts = [case.outstanding.run.thread.started_at for case in cases if case.outstanding.run is not None]
    evidence = context.evidence
    if not keeps_growing(starts, evidence.attached_at, evidence.judged_at):
        return False
    growth = evidence.thread_growth
    return growth is None or growth >= _NET * len(cases)


def _activity(tid: int, context: Context) -> str:
    call = context.evidence.thread_waits.get(tid)
    return "running" if call is None else f"in {call}"


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    window = duration(context.window / NS)
    threads = plural(len(cases), "thread")
    why = [f"{threads} created over {window} all live, and none of this place ended for as many that began"]
    starts = [case.outstanding.run.thread.started_at for case in cases if case.outstanding.run is not None]
    why.append(f"the first of these began {duration(context.age(min(starts)) / NS)} before the report")
    waits = Counter(
        _activity(case.outstanding.owner.id.tid, context)
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
