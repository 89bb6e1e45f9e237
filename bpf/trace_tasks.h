// SPDX-License-Identifier: Apache-2.0
/* The traced tasks: their creation, execution and end. */
#pragma once

#define CLONE_THREAD 0x10000

static __always_inline int task_created(struct traced_t *parent, u32 tid, u64 clone_flags)
{
    struct traced_t child = {};
    struct lost_t *losses = lost();

    if (!(clone_flags & CLONE_THREAD) && !FOLLOW_FORKS)
        return 0;
    child.image = parent->image;
    child.tgid = clone_flags & CLONE_THREAD ? parent->tgid : tid;
    if (put_traced(tid, &child) && losses)
        __sync_fetch_and_add(&losses->threads, 1);
    return 0;
}

static __always_inline int task_ended(struct traced_t *traced)
{
    struct call_t call = {};
    u32 code = 0;

    if (PRINTED && !traced->waits_for_exec) {
        read_kernel(&code, sizeof(code), (void *)(bpf_get_current_task() + EXIT_CODE_OFFSET));
        fill(&call, traced, RECORD_ENDED);
        call.returned = code;
        send(&call, sizeof(call));
    }
    if (traced->tgid == current_tid())
        drop_break(traced->tgid);
    drop_traced(current_tid());
    return 0;
}

/* A thread that executes takes the leader's tid; the other threads have ended by now. */
static __always_inline int task_executed(struct traced_t *traced, u32 old_tid, u32 tid)
{
    struct traced_t executed = *traced;
    struct call_t call = {};

    executed.waits_for_exec = 0;
    executed.image = executed.tgid;
    if (old_tid != tid)
        drop_traced(old_tid);
    put_traced(tid, &executed);
    drop_break(executed.tgid);
    if (!PRINTED)
        return 0;
    fill(&call, &executed, RECORD_EXECUTED);
    call.returned = old_tid;
    send(&call, sizeof(call));
    return 0;
}
