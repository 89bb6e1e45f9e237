// SPDX-License-Identifier: Apache-2.0
/* Creation, stack and end of the tasks in a traced address space. */
#pragma once

#define CLONE_VM 0x100
#define CLONE_VFORK 0x4000
#define CLONE_UNTRACED 0x800000
#define CLONE_THREAD 0x10000

/* If only the top of a stack is known (clone), a stack pointer this far below it counts as on that stack. */
#define CLONE_STACK_BYTES (1 << 20)

/* struct clone_args, include/uapi/linux/sched.h: the part that every clone3 caller passes. */
struct clone_args_t {
    u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

/* The stack that the running clone call gives to its child; 0 if the child shares its parent's. */
static __always_inline u64 stack_of_child(const struct pt_regs *registers, u64 *size)
{
    struct clone_args_t arguments = {};
    u64 pointer = ARGUMENT_2(registers);

    /* The verifier rejects one load instruction for both pointers: keep the loads apart. */
    asm volatile("" : "+r"(pointer));
    *size = 0;
    if (CALL_NUMBER(registers) == NR_CLONE)
        return untagged(pointer);
    if (CALL_NUMBER(registers) != NR_CLONE3 ||
        read_user(&arguments, sizeof(arguments), (void *)ARGUMENT_1(registers)))
        return 0;
    *size = arguments.stack_size;
    return untagged(arguments.stack);
}

/*
 * A thread may leave the stack that it was given for one of its own choice.  Its last stack pointer is stored
 * with a time, because another mapping may be at that address later.
 */
static __always_inline void note_stack_pointer(struct thread_t *thread, u64 sp, u64 at)
{
    u64 size = thread->task.stack_size;
    u64 depth = size ? sp - thread->task.stack : thread->task.stack - sp;

    /* A vfork child was given no stack, and some threads unmap theirs before they exit. */
    if (!thread->task.stack && thread->task.creator_tid)
        return;
    if (thread->task.stack && depth < (size ? size : CLONE_STACK_BYTES))
        return;
    thread->task.last_sp = sp;
    thread->task.last_sp_at = at;
}

/*
 * Detaches a stack, which was unmapped or gets another user, from the thread that uses it.  An exited thread
 * is dropped now, a living one at its exit.  Returns where to store the next user's tid.
 */
static __always_inline u32 *free_stack(u32 space, u64 stack)
{
    u32 *user = stack_user_at(mix(mix(0, space), stack) % STACK_USERS);
    struct thread_t *thread = user && *user ? find_thread(*user) : 0;

    if (thread && thread->task.space == space && thread->task.stack == stack) {
        /* Before the test of exited_at, as the thread may be exiting on another CPU. */
        thread->task.stack = 0;
        if (thread->task.exited_at)
            drop_thread(*user);
        *user = 0;
    }
    return user;
}

static __always_inline void give_stack(struct thread_t *parent, struct thread_t *child)
{
    const struct pt_regs *registers = caller_registers();
    struct mapping_t *row;
    u32 *user;

    child->task.stack = stack_of_child(registers, &child->task.stack_size);
    if (!child->task.stack)
        return;
    child->task.creator_sp = USER_SP(registers);
    child->task.site = record_stack(parent, registers, CALL_CLONE, child->task.started_at, 0);
    row = find_row(parent, key_of(child->task.space, child->task.stack));
    if (row)
        mark_stack(parent, row);
    user = free_stack(child->task.space, child->task.stack);
    if (user)
        *user = child->task.tid;
}

/*
 * The tid of an exited thread is reused; the thread moves to the other table if its stack may still be
 * mapped.
 */
static __always_inline void keep_exited(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->task.space);
    struct task_key_t key = {.started_at = thread->task.started_at, .tid = thread->task.tid};
    struct task_t *task;

    if (!space || !thread->task.exited_at || !thread->task.stack)
        return;
    task = find_exited(&key);
    if (task) {
        task->stack = thread->task.stack; /* the exit stored everything else */
        return;
    }
    /* The other table counts the rows of exited threads, and had no entry: no row is left. */
    thread->task.outstanding = 0;
    if (put_exited(&key, &thread->task))
        __sync_fetch_and_add(&space->lost_threads, 1);
}

/*
 * Whether the clone call makes a thread: a task that shares the memory while its creator goes on.  The
 * kernel's own workers (io_uring: kernel/fork.c, create_io_thread()) run no code of the program and do not
 * count.
 */
static __always_inline int makes_thread(u64 clone_flags)
{
    return (clone_flags & CLONE_VM) && !(clone_flags & (CLONE_VFORK | CLONE_UNTRACED));
}

#if SETTLE_NS
/* Returns 0 if user space has given it another number. */
static __always_inline int claim_number(struct thread_t *thread, u32 number)
{
    struct given_t wanted = {.started_at = thread->task.started_at, .space = number};

    return !add_given(thread->task.tid, &wanted);
}
#endif

/*
 * Gives a followed process a number for its address space, and so a ledger: when it creates its first thread.
 * Most processes never do that, and cost no more than an entry in the table of threads.
 */
static __always_inline int settle(struct thread_t *thread)
{
    struct event_t event = {.kind = EVENT_SETTLED,
                            .tid = thread->task.tid,
                            .settled = {.at = bpf_ktime_get_ns(),
                                        .started_at = thread->task.started_at,
                                        .tgid = thread->task.tgid,
                                        .image = thread->image,
                                        .parent = thread->parent}};
    struct newest_t *newest = &thread->newest;
    struct library_t *library;
    struct space_t *space;
    struct space_config_t *config;
    struct walk_t *walk;
    struct libc_t *libc;
    u32 number = 0;
    u32 *owner;

    if (take_number(&number))
        return 0;
#if SETTLE_NS
    if (!claim_number(thread, number)) {
        return_number(number);
        return use_given_number(thread);
    }
#endif
    space = space_at(number);
    config = space_config_of(number);
    walk = walk_of(number);
    library = library_of(number);
    if (!space || !config || !walk || !library)
        return 0;
    __builtin_memset(space, 0, sizeof(*space));
    __builtin_memset(config, 0, sizeof(*config));
    __builtin_memset(walk, 0, sizeof(*walk));
    __builtin_memset(library, 0, sizeof(*library));
    space->settled_at = event.settled.at;
    space->brk = thread->brk;
    /* Until user space has sent the ranges of code, every word of the stack counts for the signature. */
    config->all_code.end = config->code[0].end = 1ULL << ADDRESS_BITS;
    config->baseline_at = ~0ULL;
    walk->tgid = thread->task.tgid;
    libc = thread->libc.inode ? find_libc(&thread->libc) : 0;
    if (libc) {
        library->key = thread->libc;
        library->base = thread->libc_base;
        library->libc = *libc;
        library->is_known = 1;
    }
    free_walk(number);
    thread->task.space = number;
    if (newest->row.length) {
        /* The stack of its first thread, most likely. */
        newest->key = key_of(number, address_of(newest->key));
        newest->check = check_of(newest);
        thread->task.outstanding = 1;
        owner = cache_owner_of(newest->key);
        if (owner)
            *owner = thread->task.tid;
    }
    bpf_get_current_comm(event.settled.name, NAME_BYTES);
    event.space = number;
    emit(space, &event);
    return 1;
}

/* Like settle(); if no number is left, the process is counted as lost and followed no longer. */
static __always_inline int must_settle(struct thread_t *thread)
{
    if (settle(thread))
        return 1;
    lose_process();
    /* Counted once; its later calls are ignored, since a part of them proves nothing. */
    thread->task.space = LOST_SPACE;
    return 0;
}

#if SETTLE_NS
/* A process without threads that still maps memory SETTLE_NS after its start may grow: follow it as well. */
static __always_inline void settle_late(struct thread_t *thread)
{
    if (thread->task.space == NO_SPACE && bpf_ktime_get_ns() - thread->task.started_at >= SETTLE_NS)
        must_settle(thread);
}

/* The traced process executed another program, and is followed from its first call on. */
static __always_inline void settle_now(u32 tid)
{
    struct thread_t *thread = find_living(tid);

    if (thread && thread->task.space == NO_SPACE)
        must_settle(thread);
}
#else
static __always_inline void settle_late(struct thread_t *thread)
{
}

static __always_inline void settle_now(u32 tid)
{
}
#endif

/* The `parent` of a process that this task forks or becomes: the nearest process that has a number. */
static __always_inline u32 parent_of_new(struct thread_t *thread)
{
    struct walk_t *walk = space_at(thread->task.space) ? walk_of(thread->task.space) : 0;

    return walk ? walk->tgid : thread->parent;
}

/* A followed process begins, by fork or exec.  It has no number yet. */
static __always_inline void put_process(struct thread_t *process, u32 tid, u32 image, u32 parent)
{
    struct thread_t *former;

    process->task.started_at = bpf_ktime_get_ns();
    process->task.tid = tid;
    process->task.tgid = tid;
    process->task.space = NO_SPACE;
    process->task.is_thread = 1;
    process->image = image;
    process->parent = parent;
    bpf_get_current_comm(process->task.name, NAME_BYTES);
    count_process();
    if (!add_thread(tid, process))
        return;
    former = find_thread(tid);
    if (former)
        keep_exited(former);
    if (put_thread(tid, process))
        lose_process();
}

static __always_inline void process_forked(struct thread_t *parent, struct thread_t *child, u32 tid)
{
    struct library_t *library = library_of(parent->task.space);
    struct space_t *space = space_at(parent->task.space);

    __builtin_memset(child, 0, sizeof(*child));
    child->libc = parent->libc;
    child->libc_base = parent->libc_base;
    child->brk = space ? space->brk : parent->brk;
    if (library && library->is_known) {
        child->libc = library->key;
        child->libc_base = library->base;
    }
    put_process(child, tid, parent->image, parent_of_new(parent));
}

static __always_inline int thread_created(struct thread_t *parent, u32 tid, u64 clone_flags)
{
    struct space_t *space = space_at(parent->task.space);
    struct cpu_t *cpu = this_cpu(CALL_CLONE);
    struct thread_t *child;
    struct thread_t *former;

    if (makes_thread(clone_flags))
        count_call(parent, CALL_CLONE);
    else if (!(clone_flags & CLONE_UNTRACED))
        count_call(parent, CALL_FORK);
    if (!cpu)
        return 0;
    if (FOLLOW_FORKS && (!(clone_flags & CLONE_VM) || (!space && (clone_flags & CLONE_VFORK)))) {
        process_forked(parent, &cpu->child, tid);
        return 0;
    }
    if (!space && parent->task.space == NO_SPACE && makes_thread(clone_flags)) {
        if (!must_settle(parent))
            return 0;
        space = space_at(parent->task.space);
    }
    if (!space || !(clone_flags & CLONE_VM))
        return 0;
    child = &cpu->child;
    __builtin_memset(child, 0, sizeof(*child));
    child->task.started_at = bpf_ktime_get_ns();
    child->task.tid = tid;
    child->task.tgid = clone_flags & CLONE_THREAD ? parent->task.tgid : tid;
    child->task.space = parent->task.space;
    child->image = parent->image;
    child->parent = parent->parent;
    child->task.is_thread = makes_thread(clone_flags);
    child->task.creator_tid = parent->task.tid;
    child->task.creator_started_at = parent->task.started_at;
    bpf_get_current_comm(child->task.name, NAME_BYTES);
    __builtin_memcpy(child->task.creator_name, child->task.name, NAME_BYTES);
    give_stack(parent, child);
    if (!add_thread(tid, child))
        return 0;
    former = find_thread(tid);
    if (former)
        keep_exited(former);
    if (put_thread(tid, child))
        __sync_fetch_and_add(&space->lost_threads, 1);
    return 0;
}

/* The task leaves the address space: it exits, or it executes another program. */
static __always_inline int thread_left(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->task.space);
    struct task_key_t key = {.started_at = thread->task.started_at, .tid = thread->task.tid};
    struct task_t left;

    bpf_get_current_comm(thread->task.name, NAME_BYTES);
    thread->task.inner_tid = inner_tid();
    thread->task.exited_at = bpf_ktime_get_ns();
    if (space) {
        if (thread->task.is_thread)
            __sync_fetch_and_add(&space->calls[CALL_THREAD_EXIT], 1);
        if (thread->has_called) {
#pragma unroll
            for (int i = 0; i < CALLS; i++)
                if (thread->calls[i])
                    __sync_fetch_and_add(&space->calls[i], thread->calls[i]);
        }
        if (thread->task.outstanding > 0 || thread->task.brk_growth || thread->task.last_sp) {
            left = thread->task;
            /* The entry in the table of threads keeps the stack. */
            left.stack = 0;
            if (put_exited(&key, &left))
                __sync_fetch_and_add(&space->lost_threads, 1);
        }
    }
#if SETTLE_NS
    if (thread->task.tid == thread->task.tgid)
        drop_given(thread->task.tid);
#endif
    if (!thread->task.stack)
        drop_thread(key.tid);
    return 0;
}

static __always_inline int thread_executed(struct thread_t *thread, u32 tid)
{
    struct space_t *space = space_at(thread->task.space);
    struct cpu_t *cpu = this_cpu(CALL_BRK);
    struct event_t event = {.kind = EVENT_EXEC,
                            .space = thread->task.space,
                            .tid = tid,
                            .call = {.at = bpf_ktime_get_ns()}};
    struct walk_t *walk = walk_of(thread->task.space);
    /* Also true of a vfork child. */
    int is_child = walk && walk->tgid != thread->task.tgid;
    int is_followed = (is_child ? FOLLOW_FORKS : FOLLOW_EXEC) && !thread->waits_for_exec;

    program_executed(is_followed ? NO_SPACE : thread->task.space, tid, event.call.at);
    if (space)
        emit(space, &event);
    /* Rare: a vfork child has mapped memory in its parent's address space. */
    if (space && thread->newest.row.length)
        emit_evicted(thread, space, thread->newest.key, &thread->newest.row);
    if (thread->waits_for_exec) {
        /* COMMAND begins: from here on this is the traced address space. */
        thread->waits_for_exec = 0;
        thread->task.started_at = event.call.at;
        bpf_get_current_comm(thread->task.name, NAME_BYTES);
        return 0;
    }
    thread_left(thread);
    if (!is_followed || !cpu)
        return 0;
    __builtin_memset(&cpu->child, 0, sizeof(cpu->child));
    put_process(&cpu->child, tid, tid, is_child ? parent_of_new(thread) : thread->parent);
    if (space && !is_child)
        settle_now(tid);
    return 0;
}
