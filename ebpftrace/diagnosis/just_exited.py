# SPDX-License-Identifier: Apache-2.0
"""Just exited: a join or an unmap may still come, so it is too early for a verdict.

This rule claims only orphans that were not searched for.  The result of a search needs no age: an orphan is
lost as soon as nothing refers to it, and one that is referred to is judged by other rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.origin import Origin
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.model import Certainty, Verdict
from ebpftrace.text import duration

BEFORE_ITS_END = "have the report made while the program runs: a shorter -d, or a pause before it ends"


class _Reason(Enum):
    """Why it is too early to judge."""

    ENDED_WITH_TARGET = "the threads ended with the process: nothing was left behind"
    TOO_YOUNG = "the owner exited less than {min_age} before the report: a join or an unmap may still come"
    LISTS_TOO_OLD = (
        "the target ended before glibc's thread lists were read again: it is unknown whether "
        "the thread was joined"
    )
    UNSEEN = "the thread exited since the first reading, but its exit was not seen: a join may still come"


def _reason(case: Case, context: Context) -> Optional[_Reason]:
    exited_at = case.facts.exited_at
    if exited_at is not None and context.ended and context.age(exited_at) < 0:
        return _Reason.ENDED_WITH_TARGET
    if context.evidence.lists_final and case.facts.is_stack:
        return None
    if exited_at is not None and not context.ended and context.age(exited_at) < context.evidence.min_age:
        return _Reason.TOO_YOUNG
    if _is_younger_than_lists(case, context):
        return _Reason.LISTS_TOO_OLD
    return _Reason.UNSEEN if case.facts.exit_unseen and not context.ended else None


def _is_younger_than_lists(case: Case, context: Context) -> bool:
    """Whether the last reading of the thread lists is too old: the thread exited after it, or just before."""
    lists_read_at, exited_at = context.evidence.lists_read_at, case.facts.exited_at
    return (
        lists_read_at is not None
        and exited_at is not None
        and exited_at > lists_read_at - context.evidence.min_age
        and case.facts.is_stack
        and case.facts.origin is not Origin.APPLICATION
    )


def _claims(case: Case, context: Context) -> bool:
    return case.reach is None and not case.facts.cached and _reason(case, context) is not None


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    reason = _reason(cases[0], context)
    assert reason is not None, "judged only where it claims"
    why = reason.value.format(min_age=duration(context.evidence.min_age / NS))
    if reason is _Reason.ENDED_WITH_TARGET:
        return Judgement(Verdict.JUST_EXITED, False, (why,), "nothing to do", Certainty.PROVED)
    if reason is _Reason.LISTS_TOO_OLD:
        return Judgement(
            Verdict.JUST_EXITED, False, (why,), BEFORE_ITS_END, Certainty.POSSIBLE, undecided=True
        )
    advice = "trace longer, or run it again: what is still mapped then is judged"
    return Judgement(Verdict.JUST_EXITED, False, (why,), advice, Certainty.POSSIBLE)


JUST_EXITED = Rule(_claims, _judge, _reason)
