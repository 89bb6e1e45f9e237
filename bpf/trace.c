// SPDX-License-Identifier: Apache-2.0
/*
 * The calls of some tasks, one record each, sent when the call returns.
 *
 * Python attaches entered(), returned() and leaves() to the tracepoints of the selected system calls; other
 * calls cost nothing.  The filters are constants.
 *
 * bcc rewrites map accesses only in this file.  So it holds the maps, the functions that access
 * them and the probes; the rules are in the headers.
 */
#include <uapi/linux/ptrace.h>

#include "trace_shared.h"

BPF_F_TABLE("hash", u32, struct traced_t, threads, MAX_THREADS, HASH_FLAGS);
BPF_F_TABLE("hash", u32, u64, breaks, MAX_THREADS, HASH_FLAGS);
#ifdef PID_NAMESPACE
/* By task: its tid when it began to execute.  The map evicts stale entries by itself. */
BPF_TABLE("lru_hash", u64, u32, executing, 4096);
#endif
/* By the process that executed the program.  The map evicts stale entries by itself. */
BPF_TABLE("lru_hash", u32, struct python_t, pythons, PYTHON_PROCESSES);
BPF_PERCPU_ARRAY(totals, struct total_t, MAX_NUMBERS);
BPF_PERCPU_ARRAY(exec_buffers, struct exec_t, 1);
/* By CPU; not a per-CPU map, whose elements can't exceed 32 KiB. */
BPF_ARRAY(stack_buffers, struct stack_t, CPUS);
BPF_ARRAY(losses, struct lost_t, 1);
BPF_RINGBUF_OUTPUT(records, RECORD_PAGES);

static __always_inline struct traced_t *find_traced(u32 tid)
{
    return threads.lookup(&tid);
}

static __always_inline long put_traced(u32 tid, struct traced_t *traced)
{
    return threads.update(&tid, traced);
}

static __always_inline void drop_traced(u32 tid)
{
    threads.delete(&tid);
}

static __always_inline u64 *find_break(u32 tgid)
{
    return breaks.lookup(&tgid);
}

static __always_inline void put_break(u32 tgid, u64 end)
{
    breaks.update(&tgid, &end);
}

static __always_inline void drop_break(u32 tgid)
{
    breaks.delete(&tgid);
}

#ifdef PID_NAMESPACE
static __always_inline void put_executing(u64 task, u32 tid)
{
    executing.update(&task, &tid);
}

static __always_inline u32 *find_executing(u64 task)
{
    return executing.lookup(&task);
}
#endif

static __always_inline struct total_t *total_of(u32 number)
{
    return totals.lookup(&number);
}

static __always_inline struct exec_t *exec_buffer(void)
{
    u32 zero = 0;
    return exec_buffers.lookup(&zero);
}

static __always_inline struct stack_t *stack_buffer(void)
{
    u32 cpu = bpf_get_smp_processor_id();
    return stack_buffers.lookup(&cpu);
}

static __always_inline struct python_t *python_of(u32 image)
{
    return pythons.lookup(&image);
}

static __always_inline struct lost_t *lost(void)
{
    u32 zero = 0;
    return losses.lookup(&zero);
}

static __always_inline long send_record(void *record, u64 size)
{
    return records.ringbuf_output(record, size, BPF_RB_NO_WAKEUP);
}

#include "call.h"
#include "pids.h"
#include "sending.h"
#include "python.h"
#include "trace_calls.h"
#include "trace_tasks.h"

/* The fields that all sys_exit_* have (include/trace/syscall.h, kernel/trace/trace_syscalls.c). */
struct returned_t {
    u64 common;
    u64 number;
    s64 returned;
};

int entered(void *context)
{
    struct traced_t *traced = current_traced();

    if (traced)
        traced->entered_at = bpf_ktime_get_ns();
    return PASS_ON;
}

int returned(struct returned_t *context)
{
    struct traced_t *traced = current_traced();

    if (traced)
        call_returned(traced, context->returned);
    return PASS_ON;
}

/* exit and exit_group never return. */
int leaves(void *context)
{
    struct traced_t *traced = current_traced();

    if (traced)
        call_leaves(traced);
    return PASS_ON;
}

int executes(void *context)
{
    struct traced_t *traced = find_traced(current_tid());

    if (traced)
        call_executes(traced);
    return PASS_ON;
}

/* Fires in the parent, inside the clone call, before the child can run (copy_process()). */
#ifdef PID_NAMESPACE
/* The tracepoint's own arguments have only tids of the initial namespace. */
RAW_TRACEPOINT_PROBE(task_newtask)
{
    struct traced_t *traced = current_traced();

    if (traced)
        task_created(traced, tid_of(ctx->args[0]), ctx->args[1]);
    return PASS_ON;
}

/* A thread that executes gets the tid of its leader: save the tid that it had. */
TRACEPOINT_PROBE(syscalls, sys_enter_execve)
{
    remember_executing();
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_enter_execveat)
{
    remember_executing();
    return PASS_ON;
}
#else
TRACEPOINT_PROBE(task, task_newtask)
{
    struct traced_t *traced = current_traced();

    if (traced)
        task_created(traced, args->pid, args->clone_flags);
    return PASS_ON;
}
#endif

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    struct traced_t *traced = find_traced(current_tid());

    if (traced)
        task_ended(traced);
    return PASS_ON;
}

TRACEPOINT_PROBE(sched, sched_process_exec)
{
    u32 old_tid = tid_before_exec(args->old_pid);
    struct traced_t *traced = find_traced(old_tid);

    if (traced)
        task_executed(traced, old_tid, current_tid());
    return PASS_ON;
}
