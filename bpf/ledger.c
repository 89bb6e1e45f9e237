// SPDX-License-Identifier: Apache-2.0
/*
 * The ledger of an address space: the present mappings, the threads that made them and those on their stacks.
 *
 * Insert at the exit of mmap, remove at the entry of munmap: neither can affect a mapping that another thread
 * gets in between.  Calls that a match of start addresses can't settle are sent as events, which Python
 * applies with interval arithmetic (ebpftrace/ledger).
 *
 * bcc rewrites map accesses only in this file.  So it holds the maps, the functions that access
 * them and the probes; the rules are in the headers.
 */
#include <uapi/linux/ptrace.h>

#include "shared.h"

BPF_F_TABLE("hash", u64, struct mapping_t, mappings, MAX_MAPPINGS, HASH_FLAGS);
BPF_F_TABLE("hash", u32, struct thread_t, threads, MAX_THREADS, HASH_FLAGS);
BPF_F_TABLE("hash", struct task_key_t, struct task_t, exited, MAX_EXITED, HASH_FLAGS);
#if FOLLOW_FORKS
/* The map evicts the sites of processes that have ended by itself. */
BPF_TABLE("lru_hash", u64, struct site_t, sites, MAX_SITES);
#else
BPF_F_TABLE("hash", u64, struct site_t, sites, MAX_SITES, HASH_FLAGS);
#endif
/* Number of failed calls; see failure_key(). */
BPF_F_TABLE("hash", u32, u64, failures, 1024, HASH_FLAGS);
#ifdef PID_NAMESPACE
/* By task: its tid when it began to execute.  The map evicts stale entries by itself. */
BPF_TABLE("lru_hash", u64, u32, executing, 4096);
#endif
/* The tid of the thread that cached a row, by a hash of the key; the latest of those with the same hash. */
BPF_ARRAY(cache_owners, u32, CACHE_OWNERS);
/* The tid of the thread that was given a stack, likewise. */
BPF_ARRAY(stack_users, u32, STACK_USERS);
/* When a place was touched last, by a hash of space and place. */
BPF_ARRAY(places, struct touched_t, PLACES);
BPF_ARRAY(spaces, struct space_t, MAX_SPACES);
BPF_ARRAY(space_configs, struct space_config_t, MAX_SPACES);
BPF_PERCPU_ARRAY(cpus, struct cpu_t, RECORDED_CALLS);
/* By CPU and call; not a per-CPU map, whose elements can't exceed 32 KiB. */
BPF_ARRAY(copy_buffers, struct copy_t, COPY_BUFFERS);
BPF_RINGBUF_OUTPUT(events, EVENT_PAGES);
BPF_RINGBUF_OUTPUT(copies, COPY_PAGES);
BPF_PERCPU_ARRAY(bytes_since_wakeup, u64, 3);
/* For an mmap call and for an exec. */
BPF_PERCPU_ARRAY(image_buffers, struct image_t, 2);
BPF_RINGBUF_OUTPUT(images, IMAGE_PAGES);

/* The known libcs, the libc of each address space, and the walk at the end of each. */
BPF_TABLE("hash", struct libc_key_t, struct libc_t, libcs, MAX_LIBCS);
BPF_ARRAY(libraries, struct library_t, MAX_SPACES);
BPF_ARRAY(walks, struct walk_t, MAX_SPACES);
/* The address spaces that are or were walked, and the address space that each walking task walks. */
BPF_TABLE("hash", u32, u32, claims, MAX_SPACES);
BPF_TABLE("hash", u64, u32, walkers, MAX_SPACES);
BPF_PROG_ARRAY(further, 1);
#ifdef FENTRY
/* All programs of such an array must be of one type, and attached to functions with the same BTF type. */
BPF_PROG_ARRAY(further_from_exit_group, 1);
BPF_PROG_ARRAY(further_from_execve, 1);
BPF_PROG_ARRAY(further_from_execveat, 1);
#endif
/* Free numbers for the address spaces of followed processes. */
BPF_QUEUE(numbers, u32, MAX_SPACES);
#if SETTLE_NS
/* By process: the first to add an entry, a call of the process or user space, gives it its number. */
BPF_TABLE("hash", u32, struct given_t, given, GIVEN_NUMBERS);
#endif
/* Number of processes that were followed, and of those that could not be. */
BPF_PERCPU_ARRAY(processes, u64, 2);

static __always_inline struct space_t *space_at(u32 space)
{
    return spaces.lookup(&space);
}

static __always_inline struct space_config_t *space_config_of(u32 space)
{
    return space_configs.lookup(&space);
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

static __always_inline u32 *cache_owner_at(u32 index)
{
    return cache_owners.lookup(&index);
}

static __always_inline u32 *stack_user_at(u32 index)
{
    return stack_users.lookup(&index);
}

static __always_inline struct touched_t *place_at(u32 index)
{
    return places.lookup(&index);
}

static __always_inline struct thread_t *find_thread(u32 tid)
{
    return threads.lookup(&tid);
}

/* Returns -EEXIST where the tid has an entry, -E2BIG where the table is full. */
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

static __always_inline struct task_t *find_exited(struct task_key_t *key)
{
    return exited.lookup(key);
}

static __always_inline long put_exited(struct task_key_t *key, struct task_t *task)
{
    return exited.update(key, task);
}

static __always_inline void drop_exited(struct task_key_t *key)
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
 * To wake the reader for every record would cost the target more than the record itself.  So each CPU wakes
 * it after sending its share of a quarter of the buffer.
 */
static __always_inline u64 wake_up_after(u32 buffer, u64 bytes, u64 pages)
{
    u64 *sent = bytes_since_wakeup.lookup(&buffer);

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

    /* The reader must act on these at once: a new program, new code, the end. */
    if (event->kind == EVENT_EXEC || event->kind == EVENT_CODE || event->kind == EVENT_WALKED ||
        event->kind == EVENT_SETTLED)
        flags = BPF_RB_FORCE_WAKEUP;
    return events.ringbuf_output(event, sizeof(*event), flags);
}

/* For events that come in groups: the last one of the group wakes the reader. */
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

/* Returns 1 if no other task walks or has walked this address space; none will then. */
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

/* Returns 0, or an error where no number is left. */
static __always_inline long take_number(u32 *number)
{
    return (long)numbers.pop(number);
}

#if SETTLE_NS
static __always_inline struct given_t *find_given(u32 tid)
{
    return given.lookup(&tid);
}

/* Returns 0, or an error where the process has an entry. */
static __always_inline long add_given(u32 tid, struct given_t *number)
{
    return given.insert(&tid, number);
}

static __always_inline void drop_given(u32 tid)
{
    given.delete(&tid);
}

static __always_inline void return_number(u32 number)
{
    numbers.push(&number, 0);
}
#endif

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
#include "given.h"
#include "space.h"
#include "python.h"
#include "stacks.h"
#include "walk.h"
#include "images.h"
#include "rows.h"
#include "threads.h"
#include "mappings.h"

/*
 * Programs at the entry and at the exit of a system call.  One at a tracepoint makes the kernel take the slow
 * path for each call of each process.  With FENTRY they are at the call's own function instead, which is
 * passed the caller's registers (syscall_wrapper.h in arch/x86/include/asm and in arch/arm64/include/asm).
 */
#ifdef FENTRY
#define CALL_ENTERS(call) int fentry__##call(u64 *args)
#define CALL_RETURNS(call) int fexit__##call(u64 *args)
#define PASSED(number, field) ARGUMENT_##number(caller_registers())
#define RETURNED ((s64)args[1])
/* The verifier allows no other value. */
#define CALL_DONE 0
#else
#define CALL_ENTERS(call) TRACEPOINT_PROBE(syscalls, sys_enter_##call)
#define CALL_RETURNS(call) TRACEPOINT_PROBE(syscalls, sys_exit_##call)
#define PASSED(number, field) args->field
#define RETURNED args->ret
#define CALL_DONE PASS_ON
#endif

CALL_RETURNS(mmap)
{
    struct thread_t *thread = current_thread();

    if (!thread)
        return CALL_DONE;
    settle_late(thread);
    mmap_exit(thread, RETURNED);
    return CALL_DONE;
}

CALL_ENTERS(munmap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        munmap_enter(thread, PASSED(1, addr), PASSED(2, len));
    return CALL_DONE;
}

CALL_RETURNS(munmap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        munmap_exit(thread, RETURNED);
    return CALL_DONE;
}

CALL_ENTERS(mremap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        mremap_enter(thread, PASSED(1, addr), PASSED(2, old_len), PASSED(3, new_len),
                     PASSED(4, flags), PASSED(5, new_addr));
    return CALL_DONE;
}

/* This program is attached to shmat and io_setup as well (ebpftrace/capture/loader.py). */
CALL_RETURNS(mremap)
{
    struct thread_t *thread = current_thread();

    if (thread)
        mremap_exit(thread, RETURNED);
    return CALL_DONE;
}

CALL_RETURNS(brk)
{
    struct thread_t *thread = current_thread();

    if (!thread)
        return CALL_DONE;
    settle_late(thread);
    brk_exit(thread, RETURNED);
    return CALL_DONE;
}

#ifdef HAS_SHARED_MEMORY
/* These two programs are attached to io_destroy as well (ebpftrace/capture/loader.py). */
CALL_ENTERS(shmdt)
{
    struct thread_t *thread = current_thread();

    if (thread)
        unmap_whole_enter(thread, (u64)PASSED(1, shmaddr));
    return CALL_DONE;
}

CALL_RETURNS(shmdt)
{
    struct thread_t *thread = current_thread();

    if (thread)
        unmap_whole_exit(thread, ARGUMENT_1(caller_registers()), RETURNED);
    return CALL_DONE;
}
#endif

/* Fires in the parent, inside the clone call, before the child can run (copy_process()). */
#ifdef PID_NAMESPACE
/* The tracepoint's own arguments have only tids of the initial namespace. */
RAW_TRACEPOINT_PROBE(task_newtask)
{
    struct thread_t *thread = current_thread();

    if (thread)
        thread_created(thread, tid_of(ctx->args[0]), ctx->args[1]);
    return PASS_ON;
}

#else
TRACEPOINT_PROBE(task, task_newtask)
{
    struct thread_t *thread = current_thread();

    if (thread)
        thread_created(thread, args->pid, args->clone_flags);
    return PASS_ON;
}
#endif

/* Returns 1 if there is more to walk. */
static __always_inline int continue_walk(void)
{
    u64 task = bpf_get_current_pid_tgid();
    u32 *space = walkers.lookup(&task);
    struct walk_t *walk = space ? walk_of(*space) : 0;
    struct library_t *library = space ? library_of(*space) : 0;

    return walk && library && walk_on(*space, walk, library);
}

static __always_inline void finish_walk(int is_cut)
{
    u64 task = bpf_get_current_pid_tgid();
    u32 *space = walkers.lookup(&task);
    struct walk_t *walk = space ? walk_of(*space) : 0;

    if (!walk)
        return;
    if (is_cut)
        walk->stop = WALK_TOO_LONG;
    end_walk(*space, walk);
    walkers.delete(&task);
}

/* Tail-called when a walk has begun, and by itself as long as there is more to walk. */
int walk_further(void *context)
{
    int is_cut = continue_walk();

    if (is_cut)
        further.call(context, 0);
    finish_walk(is_cut);
    return PASS_ON;
}

/* Written out for each array: bcc does not rewrite accesses to a map in a macro. */
#ifdef FENTRY
#ifndef EXIT_HAS_MEMORY
int walk_further_from_exit_group(void *context)
{
    int is_cut = continue_walk();

    if (is_cut)
        further_from_exit_group.call(context, 0);
    finish_walk(is_cut);
    return CALL_DONE;
}
#endif

#ifndef HAS_PREPARE_EXEC
int walk_further_from_execve(void *context)
{
    int is_cut = continue_walk();

    if (is_cut)
        further_from_execve.call(context, 0);
    finish_walk(is_cut);
    return CALL_DONE;
}

int walk_further_from_execveat(void *context)
{
    int is_cut = continue_walk();

    if (is_cut)
        further_from_execveat.call(context, 0);
    finish_walk(is_cut);
    return CALL_DONE;
}
#endif
#endif

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    struct thread_t *thread = find_living(current_tid());
    int walk_begun = 0;

    if (thread) {
        use_given_number(thread);
        if (process_is_dying())
            dies_with_process(thread);
#ifdef EXIT_HAS_MEMORY
        /* The last task of the process: nobody changes the lists any more. */
        if (args->group_dead)
            walk_begun = begin_walk(thread, END_DIES);
#endif
        note_stack_pointer(thread, USER_SP(caller_registers()), bpf_ktime_get_ns());
        leave_newest(thread);
        thread_left(thread);
    }
    if (walk_begun)
        further.call(args, 0);
    return PASS_ON;
}

#ifndef EXIT_HAS_MEMORY
/* Before Linux 6.16 an exiting task has lost its memory when the tracepoint above fires. */
CALL_ENTERS(exit_group)
{
    struct thread_t *thread = current_thread();

    if (thread && begin_walk(thread, END_DIES))
#ifdef FENTRY
        further_from_exit_group.call(args, 0);
#else
        further.call(args, 0);
#endif
    return CALL_DONE;
}

/* All signals except those that stop, continue or are ignored by default (signal(7)): CHLD to URG, WINCH. */
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
/* Here the old program's memory is still present, and the exec can't fail any more. */
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
    /* A thread that executes gets the tid of its leader: save the tid that it had. */
    remember_executing();
#endif
#ifndef HAS_PREPARE_EXEC
    /* The call may still fail: then user space ignores this walk. */
    struct thread_t *thread = current_thread();

    return thread && begin_walk(thread, END_EXECUTES);
#else
    return 0;
#endif
}

CALL_ENTERS(execve)
{
    if (execution_begins())
#ifdef FENTRY
        further_from_execve.call(args, 0);
#else
        further.call(args, 0);
#endif
    return CALL_DONE;
}

CALL_ENTERS(execveat)
{
    if (execution_begins())
#ifdef FENTRY
        further_from_execveat.call(args, 0);
#else
        further.call(args, 0);
#endif
    return CALL_DONE;
}
#endif

TRACEPOINT_PROBE(sched, sched_process_exec)
{
    struct thread_t *thread = find_living(tid_before_exec(args->old_pid));

    if (thread) {
        use_given_number(thread);
        thread_executed(thread, current_tid());
    }
    return PASS_ON;
}
