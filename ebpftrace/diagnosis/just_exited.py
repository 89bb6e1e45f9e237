"""Just exited: a join may still come, so it is too early to say anything."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Optional

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.origin import Origin
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.model import Verdict
from ebpftrace.text import duration

BEFORE_ITS_END = "have the report made while the program runs: a shorter -d, or a pause before it ends"


class _Reason(Enum):
    """Why it is too early to judge."""

    ENDED_WITH_TARGET = "the threads ended with the process: nothing was left behind"
    TOO_YOUNG = "the owner exited less than {min_age} before the report: a join or an unmap may still come"
    BOOKS_TOO_OLD = (
        "the target ended before glibc's books were read again: whether the thread was joined can't be told"
    )
    UNSEEN = "the thread exited since the first look, but nobody saw when: it may be about to be joined"


def _reason(case: Case, context: Context) -> Optional[_Reason]:
    if case.facts.exited_at is not None and context.age(case.facts.exited_at) < context.evidence.min_age:
        ended = context.evidence.target_exited_at is not None
        return _Reason.ENDED_WITH_TARGET if ended else _Reason.TOO_YOUNG
    if _is_younger_than_books(case, context):
        return _Reason.BOOKS_TOO_OLD
    return _Reason.UNSEEN if case.facts.exit_unseen else None


def _is_younger_than_books(case: Case, context: Context) -> bool:
    """The last reading of the books says nothing of it: its thread had not exited then, or just so."""
    books_read_at, exited_at = context.evidence.books_read_at, case.facts.exited_at
    return (
        books_read_at is not None
        and exited_at is not None
        and exited_at > books_read_at - context.evidence.min_age
        and case.facts.is_stack
        and case.facts.origin is not Origin.APPLICATION
    )


def _claims(case: Case, context: Context) -> bool:
    return _reason(case, context) is not None


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    reason = _reason(cases[0], context)
    assert reason is not None, "judged only where it claims"
    why = reason.value.format(min_age=duration(context.evidence.min_age / NS))
    if reason is _Reason.ENDED_WITH_TARGET:
        return Judgement(False, (why,), "nothing to do")
    if reason is _Reason.BOOKS_TOO_OLD:
        return Judgement(False, (why,), BEFORE_ITS_END, undecided=True)
    return Judgement(False, (why,), "trace longer, or look again: what is still there then is judged")


JUST_EXITED = Rule(Verdict.JUST_EXITED, _claims, _judge, _reason)
