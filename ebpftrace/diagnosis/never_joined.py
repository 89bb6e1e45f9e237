"""Never-joined thread: it has exited, and nothing will ever free its stack.  A leak, proved.

glibc keeps a thread's stack on its list of stacks in use until it is joined, or at exit if it is
detached (nptl/nptl-stack.c, __nptl_free_tcb).  musl has no list, but keeps no stack either: a detached
thread unmaps its own, a join unmaps the other's (src/thread/pthread_create.c, pthread_join.c), so a
stack that is still there is that of a thread nobody joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from ebpftrace.diagnosis.cases import Case
from ebpftrace.diagnosis.evidence import NS
from ebpftrace.diagnosis.just_exited import BEFORE_ITS_END
from ebpftrace.diagnosis.origin import Libc, Origin, creator_frame, fills_mapping
from ebpftrace.diagnosis.rule import Context, Judgement, Rule
from ebpftrace.frames import called
from ebpftrace.model import Verdict
from ebpftrace.text import duration, plural


def _claims(case: Case, context: Context) -> bool:
    booked = case.facts.booked
    if booked is not None:
        return not booked.user_stack and not booked.detached
    return (
        context.libc is Libc.MUSL
        and case.facts.is_stack
        and case.facts.origin is not Origin.APPLICATION
        and fills_mapping(case.outstanding)
    )


def _judge(cases: Sequence[Case], context: Context) -> Judgement:
    if context.evidence.books_read_at is not None:
        return _judge_ended(cases, context, context.evidence.books_read_at)
    threads = plural(len(cases), "thread has", "threads have")
    if context.libc is Libc.MUSL:
        proof = f"{threads} exited and still have a stack: musl keeps no stack cache, so nothing joined them"
    else:
        are = "is" if len(cases) == 1 else "are"
        proof = (
            f"{threads} exited but {are} on glibc's list of stacks in use: "
            "neither joined nor detached, so no stack is ever freed (proved)"
        )
    return Judgement(True, (proof,), _advice(cases))


def _judge_ended(cases: Sequence[Case], context: Context, books_read_at: int) -> Judgement:
    """Of a target that is gone: what joins all its threads in its last moments leaves the same books."""
    threads, earlier = plural(len(cases), "thread"), duration(context.age(books_read_at) / NS)
    proof = (
        f"{threads} that had exited stood on glibc's list of stacks in use {earlier} before the process "
        "ended: neither joined nor detached by then"
    )
    if context.keeps_growing(cases):
        return Judgement(True, (proof, "they piled up from the beginning to the end"), _advice(cases))
    return Judgement(False, (f"{proof}, and after that can't be told",), BEFORE_ITS_END, undecided=True)


def _advice(cases: Sequence[Case]) -> str:
    creator = creator_frame(cases[0].facts.stack)
    where = f" the threads that {called(creator)} creates" if creator is not None else " these threads"
    return f"join{where} (pthread_join), or detach them: pthread_detach or PTHREAD_CREATE_DETACHED"


NEVER_JOINED = Rule(Verdict.NEVER_JOINED, _claims, _judge, only_stacks=True)
