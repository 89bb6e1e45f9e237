// SPDX-License-Identifier: Apache-2.0
/*
 * Samples the page faults of the traced threads: the address that is touched, and the signature of the user
 * stack.
 *
 * The kernel runs this at the end of each period of a perf event that counts the page faults of one thread
 * (PERF_COUNT_SW_PAGE_FAULTS), so the other faults cost nothing here.  The tables of threads and sites are
 * those of the ledger (bpf/ledger.c), which alone decides which threads are traced.
 */
#include <uapi/linux/ptrace.h>

#include "shared.h"

/* The words of the registers with which struct bpf_perf_event_data begins (struct pt_regs, user_pt_regs). */
#if defined(__aarch64__)
#define CONTEXT_REGISTERS 34
#else
#define CONTEXT_REGISTERS 21
#endif

struct fault_context_t {
    u64 registers[CONTEXT_REGISTERS]; /* the kernel's, if the kernel touched the memory */
    u64 period;                       /* faults of this thread since the last one that was sent */
    u64 address;
};

/* Offset of the event in struct bpf_perf_event_data_kern (include/linux/perf_event.h). */
#define CONTEXT_EVENT 16

/* layout.FAULT mirrors it. */
struct fault_t {
    u64 at;
    u64 address;
    u64 period;
    u64 site;
    u64 started_at; /* of the thread */
    u32 tid;
    u32 space;
    char name[NAME_BYTES];
};

/* The event that counts for a thread; by tid, for the thread that had it last. */
struct counter_t {
    u64 started_at;
    u64 event;
};

BPF_F_TABLE("hash", u32, struct thread_t, threads, MAX_THREADS, HASH_FLAGS);
#if FOLLOW_FORKS
BPF_TABLE("lru_hash", u64, struct site_t, sites, MAX_SITES);
#else
BPF_F_TABLE("hash", u64, struct site_t, sites, MAX_SITES, HASH_FLAGS);
#endif
#ifdef PID_NAMESPACE
BPF_TABLE("lru_hash", u64, u32, executing, 4096);
#endif
#if SETTLE_NS
BPF_TABLE("hash", u32, struct given_t, given, GIVEN_NUMBERS);
#endif
BPF_ARRAY(spaces, struct space_t, MAX_SPACES);
BPF_ARRAY(space_configs, struct space_config_t, MAX_SPACES);
BPF_RINGBUF_OUTPUT(copies, COPY_PAGES);

BPF_RINGBUF_OUTPUT(faults, FAULT_PAGES);
BPF_TABLE("lru_hash", u32, struct counter_t, counters, FAULT_COUNTERS);
BPF_PERCPU_ARRAY(fault_cpus, struct cpu_t, 1);
BPF_ARRAY(fault_copies, struct copy_t, CPUS);
BPF_PERCPU_ARRAY(lost_faults, u64, 1);

static __always_inline struct thread_t *find_thread(u32 tid)
{
    return threads.lookup(&tid);
}

static __always_inline struct space_t *space_at(u32 space)
{
    return spaces.lookup(&space);
}

static __always_inline struct space_config_t *space_config_of(u32 space)
{
    return space_configs.lookup(&space);
}

#if SETTLE_NS
static __always_inline struct given_t *find_given(u32 tid)
{
    return given.lookup(&tid);
}
#endif

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

static __always_inline struct site_t *find_site(u64 site)
{
    return sites.lookup(&site);
}

static __always_inline long add_site(u64 site, struct site_t *first)
{
    return sites.insert(&site, first);
}

static __always_inline struct cpu_t *this_cpu(u32 call)
{
    u32 zero = 0;
    return fault_cpus.lookup(&zero);
}

static __always_inline struct copy_t *copy_buffer(u32 call)
{
    u32 cpu = bpf_get_smp_processor_id();
    return fault_copies.lookup(&cpu);
}

/* No wake-up: the reader polls for the faults. */
static __always_inline long send_copy(struct copy_t *copy, u64 size)
{
    return copies.ringbuf_output(copy, size, BPF_RB_NO_WAKEUP);
}

/* Only copies of clone calls need the libc (copy_argument()). */
static __always_inline struct library_t *library_of(u32 space)
{
    return 0;
}

static __always_inline struct counter_t *find_counter(u32 tid)
{
    return counters.lookup(&tid);
}

static __always_inline void put_counter(u32 tid, struct counter_t *counter)
{
    counters.update(&tid, counter);
}

static __always_inline long send_fault(struct fault_t *fault)
{
    return faults.ringbuf_output(fault, sizeof(*fault), BPF_RB_NO_WAKEUP);
}

static __always_inline void lose_fault(void)
{
    u32 zero = 0;
    u64 *count = lost_faults.lookup(&zero);

    if (count)
        *count += 1;
}

#include "call.h"
#include "pids.h"
#include "sending.h"
#include "given.h"
#include "python.h"
#include "stacks.h"

/*
 * The event that was opened by the reader; the running one may be an inherited copy.  The copies of two
 * threads may be swapped at a context switch (kernel/events/core.c, perf_event_context_sched_out).
 */
static __always_inline u64 opened_event(struct fault_context_t *context)
{
    u64 event = 0, parent = 0;

    read_kernel(&event, sizeof(event), (void *)context + CONTEXT_EVENT);
    read_kernel(&parent, sizeof(parent), (void *)(event + EVENT_PARENT));
    return parent ? parent : event;
}

/*
 * A thread that was created during the attachment may be counted by two events: an inherited one and its own.
 * The one that is seen first counts, for the life of the thread.
 */
static __always_inline int is_counted_by(u32 tid, u64 started_at, u64 event)
{
    struct counter_t *known = find_counter(tid);
    struct counter_t counter = {.started_at = started_at, .event = event};

    if (known && known->started_at == started_at)
        return known->event == event;
    put_counter(tid, &counter);
    return 1;
}

int page_fault(struct fault_context_t *context)
{
    struct thread_t *thread = find_thread(current_tid());
    struct fault_t fault = {};

    if (!thread || thread->task.exited_at || thread->waits_for_exec)
        return PASS_ON;
    use_given_number(thread);
    if (thread->task.space >= MAX_SPACES)
        return PASS_ON;
    fault.started_at = thread->task.started_at;
    fault.tid = thread->task.tid;
    if (!is_counted_by(fault.tid, fault.started_at, opened_event(context)))
        return PASS_ON;
    fault.at = bpf_ktime_get_ns();
    fault.address = context->address;
    fault.period = context->period;
    fault.space = thread->task.space;
    bpf_get_current_comm(fault.name, sizeof(fault.name));
    fault.site = record_stack(thread, caller_registers(), CALL_FAULT, fault.at, 0);
    if (send_fault(&fault))
        lose_fault();
    return PASS_ON;
}
