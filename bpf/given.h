// SPDX-License-Identifier: Apache-2.0
/*
 * Numbers that user space gives to followed processes that call nothing for a while (capture/silent.py).  Only
 * a task itself writes its entry in the table of threads, so it takes the number when a program runs for it.
 */
#pragma once

#if SETTLE_NS
static __always_inline int use_given_number(struct thread_t *thread)
{
    struct given_t *number;
    struct space_t *space;

    if (thread->task.space != NO_SPACE)
        return 0;
    number = find_given(thread->task.tid);
    space = number && number->started_at == thread->task.started_at ? space_at(number->space) : 0;
    if (!space)
        return 0;
    space->brk = thread->brk;
    thread->task.space = number->space;
    /* It is in the baseline, if it is still there. */
    thread->newest.row.length = 0;
    return 1;
}
#else
static __always_inline void use_given_number(struct thread_t *thread)
{
}
#endif
