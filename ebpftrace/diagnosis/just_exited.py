"""Just exited: a join may still come, so it is too early to say anything."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.model import Verdict
from ebpftrace.report.text import duration

_ENDED_WITH_TARGET = "the threads ended with the process: nothing was left behind"
_JOINING = "glibc's books: a pthread_join waits for the thread, or it is detached; its stack will go"
_UNSEEN = "the thread exited during the trace, but nobody saw when: it may be about to be joined"


def _why(case: Case, context: Context) -> str:
    if case.exited_at is not None and context.age(case.exited_at) < context.evidence.min_age:
        if context.evidence.target_exited_at is not None:
            return _ENDED_WITH_TARGET
        min_age = duration(context.evidence.min_age / NS)
        return f"the owner exited less than {min_age} before the report: a join or an unmap may still come"
    if case.booked is not None and case.booked.joining:
        return _JOINING
    return _UNSEEN if case.exit_unseen else ""


def _claims(case: Case, context: Context) -> bool:
    return bool(_why(case, context))


def _split(case: Case, context: Context) -> Hashable:
    return _why(case, context)


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    why = _why(cases[0], context)
    if why == _ENDED_WITH_TARGET:
        return Judgement(False, (why,), "nothing to do")
    return Judgement(False, (why,), "trace longer, or look again: what is still there then is judged")


JUST_EXITED = Rule(Verdict.JUST_EXITED, _claims, _judge, _split)
