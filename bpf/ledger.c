// SPDX-License-Identifier: Apache-2.0
/*
 * The ledger of an address space: which mappings stand, who made them, who runs on which stack.
 *
 * Insert at the exit of mmap, remove at the enter of munmap: neither can touch a mapping that
 * another thread got in between.  What a match by start address can't settle goes out as an
 * event, and Python finishes it with interval arithmetic (ebpftrace/ledger).
 *
 * bcc rewrites map accesses only in this file.  So it holds the maps, the functions that access
 * them and the probes; the rules are in the headers.
 */
#include <uapi/linux/ptrace.h>

#include "shared.h"

BPF_F_TABLE("hash", u64, struct mapping_t, mappings, MAX_MAPPINGS, HASH_FLAGS);
BPF_F_TABLE("hash", u32, struct thread_t, threads, MAX_THREADS, HASH_FLAGS);
BPF_F_TABLE("hash", struct life_key_t, struct life_t, exited, MAX_EXITED, HASH_FLAGS);
#if FOLLOW_FORKS
/* Those of processes that have ended make room by themselves. */
BPF_TABLE("lru_hash", u64, struct site_t, sites, MAX_SITES);
#else
BPF_F_TABLE("hash", u64, struct site_t, sites, MAX_SITES, HASH_FLAGS);
#endif
/* How often a call failed; see failure_key(). */
BPF_F_TABLE("hash", u32, u64, failures, 1024, HASH_FLAGS);
#ifdef PID_NAMESPACE
/* By task: what it was called when it began to execute.  Stale ones make room by themselves. */
BPF_TABLE("lru_hash", u64, u32, executing, 4096);
#endif
/* Who kept a newest mapping, its tid, by a hash of the key; of two with one hash the later. */
BPF_ARRAY(keepers, u32, KEEPERS);
/* Whom a stack was given to, its tid, likewise. */
BPF_ARRAY(runners, u32, RUNNERS);
/* When a place was touched, by a hash of space and place; of those with one hash the last. */
BPF_ARRAY(places, struct touched_t, PLACES);
BPF_ARRAY(spaces, struct space_t, MAX_SPACES);
BPF_ARRAY(told, struct told_t, MAX_SPACES);
BPF_PERCPU_ARRAY(cpus, struct cpu_t, RECORDED_CALLS);
/* By CPU and call; what the kernel calls per-CPU holds no more than 32 KiB. */
BPF_ARRAY(copy_buffers, struct copy_t, COPY_BUFFERS);
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_RINGBUF_OUTPUT(copies, COPY_PAGES);
BPF_PERCPU_ARRAY(unannounced, u64, 3);
/* For an mmap call and for an exec. */
BPF_PERCPU_ARRAY(image_buffers, struct image_t, 2);
BPF_RINGBUF_OUTPUT(images, IMAGE_PAGES);

/* The libcs that are known, the libc of each address space, and the walk at the end of each. */
BPF_TABLE("hash", struct libc_key_t, struct libc_t, libcs, MAX_LIBCS);
BPF_ARRAY(libraries, struct library_t, MAX_SPACES);
BPF_ARRAY(walks, struct walk_t, MAX_SPACES);
/* Address spaces that are being walked or have been; and of the tasks that walk, which one. */
BPF_TABLE("hash", u32, u32, claims, MAX_SPACES);
BPF_TABLE("hash", u64, u32, walkers, MAX_SPACES);
BPF_PROG_ARRAY(further, 1);
/* Numbers for address spaces of processes that are followed. */
BPF_QUEUE(numbers, u32, MAX_SPACES);
/* How many processes were followed, and how many could not be. */
BPF_PERCPU_ARRAY(processes, u64, 2);

static __always_inline struct space_t *space_at(u32 space)
{
    return spaces.lookup(&space);
}

static __always_inline struct told_t *told_of(u32 space)
{
    return told.lookup(&space);
}

static __always_inline struct mapping_t *find_mapping(u64 key)
{
    return mappings.lookup(&key);
}

/* Returns -EEXIST where the key is taken, -E2BIG where the table is full. */
static __always_inline long add_mapping(u64 key, struct mapping_t *row)
{
    return mappings.insert(&key, row);
}

static __always_inline long put_mapping(u64 key, struct mapping_t *row)
{
    return mappings.update(&key, row);
}

static __always_inline long drop_mapping(u64 key)
{
    return mappings.delete(&key);
}

static __always_inline u32 *keeper_at(u32 index)
{
    return keepers.lookup(&index);
}

static __always_inline u32 *runner_at(u32 index)
{
    return runners.lookup(&index);
}

static __always_inline struct touched_t *place_at(u32 index)
{
    return places.lookup(&index);
}

static __always_inline struct thread_t *find_thread(u32 tid)
{
    return threads.lookup(&tid);
}

/* Returns -EEXIST where there is one of that number, -E2BIG where the table is full. */
static __always_inline long add_thread(u32 tid, struct thread_t *thread)
{
    return threads.insert(&tid, thread);
}

static __always_inline long put_thread(u32 tid, struct thread_t *thread)
{
    return threads.update(&tid, thread);
}

static __always_inline void drop_thread(u32 tid)
{
    threads.delete(&tid);
}

static __always_inline struct life_t *find_exited(struct life_key_t *key)
{
    return exited.lookup(key);
}

static __always_inline long put_exited(struct life_key_t *key, struct life_t *life)
{
    return exited.update(key, life);
}

static __always_inline void drop_exited(struct life_key_t *key)
{
    exited.delete(key);
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

static __always_inline struct site_t *find_site(u64 site)
{
    return sites.lookup(&site);
}

static __always_inline long add_site(u64 site, struct site_t *first)
{
    return sites.insert(&site, first);
}

static __always_inline u64 *find_failures(u32 key)
{
    return failures.lookup(&key);
}

static __always_inline long add_failures(u32 key, u64 count)
{
    return failures.insert(&key, &count);
}

static __always_inline struct cpu_t *this_cpu(u32 call)
{
    u32 index = index_of(call);
    return cpus.lookup(&index);
}

static __always_inline struct copy_t *copy_buffer(u32 call)
{
    u32 index = bpf_get_smp_processor_id() * RECORDED_CALLS + index_of(call);
    return copy_buffers.lookup(&index);
}

/*
 * A reader that is woken by every record costs the target more than the record.  So each CPU wakes it
 * when it has sent its share of a quarter of the buffer since.
 */
static __always_inline u64 wake_up_after(u32 buffer, u64 bytes, u64 pages)
{
    u64 *sent = unannounced.lookup(&buffer);

    if (!sent)
        return BPF_RB_FORCE_WAKEUP;
    *sent += bytes;
    if (*sent < pages * PAGE_BYTES / 4 / CPUS)
        return BPF_RB_NO_WAKEUP;
    *sent = 0;
    return BPF_RB_FORCE_WAKEUP;
}

static __always_inline long send_event(struct event_t *event)
{
    u64 flags = wake_up_after(0, sizeof(*event), EVENT_PAGES);

    /* Another program, or code that no signature knows yet, or the end: the reader should look at once. */
    if (event->kind == EVENT_EXEC || event->kind == EVENT_CODE || event->kind == EVENT_WALKED ||
        event->kind == EVENT_SETTLED)
        flags = BPF_RB_FORCE_WAKEUP;
    return events.ringbuf_output(event, sizeof(*event), flags);
}

/* One of many at once, of which the last wakes the reader. */
static __always_inline long send_event_quietly(struct event_t *event)
{
    return events.ringbuf_output(event, sizeof(*event), BPF_RB_NO_WAKEUP);
}

static __always_inline long send_copy(struct copy_t *copy, u64 size)
{
    return copies.ringbuf_output(copy, size, wake_up_after(1, size, COPY_PAGES));
}

static __always_inline struct image_t *image_buffer(u32 program)
{
    return image_buffers.lookup(&program);
}

static __always_inline long send_image(struct image_t *image, u64 size)
{
    return images.ringbuf_output(image, size, wake_up_after(2, size, IMAGE_PAGES));
}

static __always_inline struct libc_t *find_libc(struct libc_key_t *key)
{
    return libcs.lookup(key);
}

static __always_inline struct library_t *library_of(u32 space)
{
    return libraries.lookup(&space);
}

static __always_inline struct walk_t *walk_of(u32 space)
{
    return walks.lookup(&space);
}

/* 1: nobody walks this address space, and nobody else will. */
static __always_inline int claim_walk(u32 space)
{
    u64 task = bpf_get_current_pid_tgid();
    u32 one = 1;

    if (claims.insert(&space, &one))
        return 0;
    walkers.update(&task, &space);
    return 1;
}

static __always_inline void free_walk(u32 space)
{
    claims.delete(&space);
}

/* 0, or an error where there is none left. */
static __always_inline long take_number(u32 *number)
{
    return (long)numbers.pop(number);
}

static __always_inline void count_in(u32 index)
{
    u64 *count = processes.lookup(&index);

    if (count)
        *count += 1;
}

static __always_inline void count_process(void)
{
    count_in(0);
}

static __always_inline void lose_process(void)
{
    count_in(1);
}

#include "call.h"
#include "pids.h"
#include "sending.h"
#include "space.h"
#include "python.h"
#include "stacks.h"
#include "walk.h"
#include "images.h"
#include "rows.h"
#include "threads.h"
#include "mappings.h"

TRACEPOINT_PROBE(syscalls, sys_exit_mmap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        mmap_exit(thread, args->ret);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_enter_munmap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        munmap_enter(thread, args->addr, args->len);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_exit_munmap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        munmap_exit(thread, args->ret);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_enter_mremap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        mremap_enter(thread, args->addr, args->old_len, args->new_len, args->flags, args->new_addr);
    return PASS_ON;
}

/* It serves shmat and io_setup as well (ebpftrace/kernel/loader.py). */
TRACEPOINT_PROBE(syscalls, sys_exit_mremap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        mremap_exit(thread, args->ret);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_exit_brk)
{
    struct thread_t *thread = current_thread();

    if (thread)
        brk_exit(thread, args->ret);
    return PASS_ON;
}

#ifdef HAS_SHARED_MEMORY
/* These two serve io_destroy as well (ebpftrace/kernel/loader.py). */
TRACEPOINT_PROBE(syscalls, sys_enter_shmdt)
{
    struct thread_t *thread = current_thread();

    if (thread)
        unmap_whole_enter(thread, (u64)args->shmaddr);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_exit_shmdt)
{
    struct thread_t *thread = current_thread();

    if (thread)
        unmap_whole_exit(thread, ARGUMENT_1(caller_registers()), args->ret);
    return PASS_ON;
}
#endif

/* Fires in the parent, inside the clone call, before the child can run (copy_process()). */
#ifdef PID_NAMESPACE
/* The tracepoint itself knows the kernel's numbers only. */
RAW_TRACEPOINT_PROBE(task_newtask)
{
    struct thread_t *thread = current_thread();

    if (thread)
        thread_born(thread, tid_of(ctx->args[0]), ctx->args[1]);
    return PASS_ON;
}

#else
TRACEPOINT_PROBE(task, task_newtask)
{
    struct thread_t *thread = current_thread();

    if (thread)
        thread_born(thread, args->pid, args->clone_flags);
    return PASS_ON;
}
#endif

/* Tail-called where a walk begins, and by itself as long as there is more. */
int walk_further(void *context)
{
    u64 task = bpf_get_current_pid_tgid();
    u32 *space = walkers.lookup(&task);
    struct walk_t *walk = space ? walk_of(*space) : 0;
    struct library_t *library = space ? library_of(*space) : 0;

    if (!walk || !library)
        return PASS_ON;
    if (walk_on(*space, walk, library)) {
        further.call(context, 0);
        walk->stop = WALK_TOO_LONG;
    }
    end_walk(*space, walk);
    walkers.delete(&task);
    return PASS_ON;
}

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    struct thread_t *thread = find_living(current_tid());
    int walks_on = 0;

    if (thread) {
        if (process_is_dying())
            dies_with_process(thread);
#ifdef EXIT_HAS_MEMORY
        /* The last one: nobody changes the lists any more. */
        if (args->group_dead)
            walks_on = begin_walk(thread, END_DIES);
#endif
        note_stand(thread, USER_SP(caller_registers()), bpf_ktime_get_ns());
        leave_newest(thread);
        thread_left(thread);
    }
    if (walks_on)
        further.call(args, 0);
    return PASS_ON;
}

#ifndef EXIT_HAS_MEMORY
/* Before Linux 6.16 a task that exits has no memory any more when the tracepoint above tells of it. */
TRACEPOINT_PROBE(syscalls, sys_enter_exit_group)
{
    struct thread_t *thread = current_thread();

    if (thread && begin_walk(thread, END_DIES))
        further.call(args, 0);
    return PASS_ON;
}

/* Those that stop, go on or are ignored by default (signal(7)): CHLD to URG, WINCH. */
#define KILLS (~(0x7fULL << 17 | 1ULL << 28))

TRACEPOINT_PROBE(signal, signal_deliver)
{
    struct thread_t *thread;

    if (args->sa_handler || !(KILLS >> (args->sig & 63) & 1))
        return PASS_ON;
    thread = current_thread();
    if (thread && begin_walk(thread, END_DIES))
        further.call(args, 0);
    return PASS_ON;
}
#endif

#ifdef HAS_PREPARE_EXEC
/* The old program is still there, and there is no way back to it. */
TRACEPOINT_PROBE(sched, sched_prepare_exec)
{
    struct thread_t *thread = current_thread();

    if (thread && begin_walk(thread, END_EXECUTES))
        further.call(args, 0);
    return PASS_ON;
}
#endif

#if defined(PID_NAMESPACE) || !defined(HAS_PREPARE_EXEC)
static __always_inline int execution_begins(void)
{
#ifdef PID_NAMESPACE
    /* A thread that executes takes its leader's number: the one it had is lost by then. */
    remember_executing();
#endif
#ifndef HAS_PREPARE_EXEC
    /* The call may fail yet: then nobody asks for what this walk told. */
    struct thread_t *thread = current_thread();

    return thread && begin_walk(thread, END_EXECUTES);
#else
    return 0;
#endif
}

TRACEPOINT_PROBE(syscalls, sys_enter_execve)
{
    if (execution_begins())
        further.call(args, 0);
    return PASS_ON;
}

TRACEPOINT_PROBE(syscalls, sys_enter_execveat)
{
    if (execution_begins())
        further.call(args, 0);
    return PASS_ON;
}
#endif

TRACEPOINT_PROBE(sched, sched_process_exec)
{
    struct thread_t *thread = find_living(tid_before_exec(args->old_pid));

    if (thread)
        thread_executed(thread, current_tid());
    return PASS_ON;
}
