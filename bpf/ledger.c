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
BPF_F_TABLE("hash", u64, struct site_t, sites, MAX_SITES, HASH_FLAGS);
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

    /* Another program, or code that no signature knows yet: the reader should look at once. */
    if (event->kind == EVENT_EXEC || event->kind == EVENT_CODE)
        flags = BPF_RB_FORCE_WAKEUP;
    return events.ringbuf_output(event, sizeof(*event), flags);
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

#include "call.h"
#include "pids.h"
#include "sending.h"
#include "space.h"
#include "python.h"
#include "stacks.h"
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
        mremap_enter(thread, args->addr, args->old_len, args->flags);
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

/* A thread that executes takes its leader's number: the one it had is lost by then. */
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
    struct thread_t *thread = current_thread();

    if (thread)
        thread_born(thread, args->pid, args->clone_flags);
    return PASS_ON;
}
#endif

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    struct thread_t *thread = find_living(current_tid());

    if (thread) {
        note_stand(thread, USER_SP(caller_registers()), bpf_ktime_get_ns());
        leave_newest(thread);
        thread_left(thread);
    }
    return PASS_ON;
}

TRACEPOINT_PROBE(sched, sched_process_exec)
{
    struct thread_t *thread = find_living(tid_before_exec(args->old_pid));

    if (thread)
        thread_executed(thread, current_tid());
    return PASS_ON;
}
