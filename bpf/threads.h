// SPDX-License-Identifier: Apache-2.0
/* Birth, stack and end of the tasks in a traced address space. */
#pragma once

#define CLONE_VM 0x100
#define CLONE_VFORK 0x4000
#define CLONE_UNTRACED 0x800000
#define CLONE_THREAD 0x10000

/* Where only the top of a stack is known, what is so near below it is taken for that stack. */
#define CLONE_STACK_BYTES (1 << 20)

/* struct clone_args, include/uapi/linux/sched.h: the part that every clone3 caller passes. */
struct clone_args_t {
    u64 flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
};

/* Which stack the running clone call gives to its child; 0 where the child shares its parent's. */
static __always_inline u64 stack_of_child(const struct pt_regs *registers, u64 *size)
{
    struct clone_args_t arguments = {};
    u64 pointer = ARGUMENT_2(registers);

    /* The verifier refuses one load instruction for registers and arguments[]: keep them apart. */
    asm volatile("" : "+r"(pointer));
    *size = 0;
    if (CALL_NUMBER(registers) == NR_CLONE)
        return pointer;
    if (CALL_NUMBER(registers) != NR_CLONE3 ||
        read_user(&arguments, sizeof(arguments), (void *)ARGUMENT_1(registers)))
        return 0;
    *size = arguments.stack_size;
    return arguments.stack;
}

/*
 * A thread may leave the stack that it was given for one of its own choice.  Where it stood last is told
 * together with when: what lies there may be another mapping by then.
 */
static __always_inline void note_stand(struct thread_t *thread, u64 sp, u64 at)
{
    u64 size = thread->life.stack_size;
    u64 depth = size ? sp - thread->life.stack : thread->life.stack - sp;

    /* Given none, or it is gone: a vfork child, and who unmaps his stack before he exits. */
    if (!thread->life.stack && thread->life.creator_tid)
        return;
    if (thread->life.stack && depth < (size ? size : CLONE_STACK_BYTES))
        return;
    thread->life.stood = sp;
    thread->life.stood_at = at;
}

/*
 * The stack is gone, or another's from now on: who exited on it goes with it, and who lives will when he
 * exits.  Returns where its next runner is to be noted.
 */
static __always_inline u32 *free_stack(u32 space, u64 stack)
{
    u32 *runner = runner_at(mix(mix(0, space), stack) % RUNNERS);
    struct thread_t *thread = runner && *runner ? find_thread(*runner) : 0;

    if (thread && thread->life.space == space && thread->life.stack == stack) {
        /* First this, then the look: it may be exiting. */
        thread->life.stack = 0;
        if (thread->life.exited_at)
            drop_thread(*runner);
        *runner = 0;
    }
    return runner;
}

static __always_inline void give_stack(struct thread_t *parent, struct thread_t *child)
{
    const struct pt_regs *registers = caller_registers();
    struct mapping_t *row;
    u32 *runner;

    child->life.stack = stack_of_child(registers, &child->life.stack_size);
    if (!child->life.stack)
        return;
    child->life.creator_sp = USER_SP(registers);
    child->life.site = record_stack(parent, registers, CALL_CLONE, child->life.born, 0);
    row = find_row(parent, key_of(child->life.space, child->life.stack));
    if (row)
        mark_stack(parent, row);
    runner = free_stack(child->life.space, child->life.stack);
    if (runner)
        *runner = child->life.tid;
}

/* Its number is another's now, but the stack that it was given may stand. */
static __always_inline void keep_exited(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->life.space);
    struct life_key_t key = {.born = thread->life.born, .tid = thread->life.tid};
    struct life_t *life;

    if (!space || !thread->life.exited_at || !thread->life.stack)
        return;
    life = find_exited(&key);
    if (life) {
        life->stack = thread->life.stack; /* all else was told at the exit */
        return;
    }
    /* What it had mapped is counted in the other table: there is nothing of it any more. */
    thread->life.outstanding = 0;
    if (put_exited(&key, &thread->life))
        __sync_fetch_and_add(&space->lost_threads, 1);
}

/*
 * A task that shares the memory and lives a life of its own.  Those that the kernel makes for itself (io_uring's
 * workers: kernel/fork.c, create_io_thread()) run no code of the program.
 */
static __always_inline int makes_thread(u64 clone_flags)
{
    return (clone_flags & CLONE_VM) && !(clone_flags & (CLONE_VFORK | CLONE_UNTRACED));
}

/*
 * A process that has threads gets a number of its own, and its mappings a ledger.  Most processes never do,
 * and cost no more than an entry among the threads.
 */
static __always_inline int settle(struct thread_t *thread)
{
    struct event_t event = {.kind = EVENT_SETTLED,
                            .tid = thread->life.tid,
                            .settled = {.at = bpf_ktime_get_ns(),
                                        .born = thread->life.born,
                                        .tgid = thread->life.tgid,
                                        .image = thread->image}};
    struct newest_t *newest = &thread->newest;
    struct library_t *library;
    struct space_t *space;
    struct told_t *told;
    struct walk_t *walk;
    struct libc_t *libc;
    u32 number = 0;
    u32 *keeper;

    if (take_number(&number))
        return 0;
    space = space_at(number);
    told = told_of(number);
    walk = walk_of(number);
    library = library_of(number);
    if (!space || !told || !walk || !library)
        return 0;
    __builtin_memset(space, 0, sizeof(*space));
    __builtin_memset(told, 0, sizeof(*told));
    __builtin_memset(walk, 0, sizeof(*walk));
    __builtin_memset(library, 0, sizeof(*library));
    space->settled_at = event.settled.at;
    /* Until it is known where code lies all words tell call paths apart. */
    told->all_code.end = told->code[0].end = 1ULL << ADDRESS_BITS;
    told->baseline_at = ~0ULL;
    walk->tgid = thread->life.tgid;
    libc = thread->libc.inode ? find_libc(&thread->libc) : 0;
    if (libc) {
        library->key = thread->libc;
        library->base = thread->libc_base;
        library->libc = *libc;
        library->is_known = 1;
    }
    free_walk(number);
    thread->life.space = number;
    if (newest->row.length) {
        /* The stack of its first thread, most likely. */
        newest->key = key_of(number, address_of(newest->key));
        newest->check = check_of(newest);
        thread->life.outstanding = 1;
        keeper = keeper_of(newest->key);
        if (keeper)
            *keeper = thread->life.tid;
    }
    bpf_get_current_comm(event.settled.name, NAME_BYTES);
    event.space = number;
    emit(space, &event);
    return 1;
}

/* A process of its own begins: it was forked, or executes a program.  It has no number yet. */
static __always_inline void put_lone(struct thread_t *lone, u32 tid, u32 image)
{
    struct thread_t *former;

    lone->life.born = bpf_ktime_get_ns();
    lone->life.tid = tid;
    lone->life.tgid = tid;
    lone->life.space = NO_SPACE;
    lone->life.is_thread = 1;
    lone->image = image;
    bpf_get_current_comm(lone->life.name, NAME_BYTES);
    count_process();
    if (!add_thread(tid, lone))
        return;
    former = find_thread(tid);
    if (former)
        keep_exited(former);
    if (put_thread(tid, lone))
        lose_process();
}

static __always_inline void lone_born(struct thread_t *parent, struct thread_t *child, u32 tid)
{
    struct library_t *library = library_of(parent->life.space);

    __builtin_memset(child, 0, sizeof(*child));
    child->libc = parent->libc;
    child->libc_base = parent->libc_base;
    if (library && library->is_known) {
        child->libc = library->key;
        child->libc_base = library->base;
    }
    put_lone(child, tid, parent->image);
}

static __always_inline int thread_born(struct thread_t *parent, u32 tid, u64 clone_flags)
{
    struct space_t *space = space_at(parent->life.space);
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
        lone_born(parent, &cpu->child, tid);
        return 0;
    }
    if (!space && parent->life.space == NO_SPACE && makes_thread(clone_flags)) {
        if (!settle(parent)) {
            lose_process();
            /* Counted once, and not judged by a part of what it does. */
            parent->life.space = LOST_SPACE;
            return 0;
        }
        space = space_at(parent->life.space);
    }
    if (!space || !(clone_flags & CLONE_VM))
        return 0;
    child = &cpu->child;
    __builtin_memset(child, 0, sizeof(*child));
    child->life.born = bpf_ktime_get_ns();
    child->life.tid = tid;
    child->life.tgid = clone_flags & CLONE_THREAD ? parent->life.tgid : tid;
    child->life.space = parent->life.space;
    child->image = parent->image;
    child->life.is_thread = makes_thread(clone_flags);
    child->life.creator_tid = parent->life.tid;
    child->life.creator_born = parent->life.born;
    bpf_get_current_comm(child->life.name, NAME_BYTES);
    __builtin_memcpy(child->life.creator_name, child->life.name, NAME_BYTES);
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

/* The task is out of the address space: it exits, or it executes another program. */
static __always_inline int thread_left(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->life.space);
    struct life_key_t key = {.born = thread->life.born, .tid = thread->life.tid};
    struct life_t left;

    bpf_get_current_comm(thread->life.name, NAME_BYTES);
    thread->life.exited_at = bpf_ktime_get_ns();
    if (space) {
        if (thread->life.is_thread)
            __sync_fetch_and_add(&space->calls[CALL_THREAD_EXIT], 1);
        if (thread->has_called) {
#pragma unroll
            for (int i = 0; i < CALLS; i++)
                if (thread->calls[i])
                    __sync_fetch_and_add(&space->calls[i], thread->calls[i]);
        }
        if (thread->life.outstanding > 0 || thread->life.brk_growth || thread->life.stood) {
            left = thread->life;
            /* That is told by the entry among the threads. */
            left.stack = 0;
            if (put_exited(&key, &left))
                __sync_fetch_and_add(&space->lost_threads, 1);
        }
    }
    if (!thread->life.stack)
        drop_thread(key.tid);
    return 0;
}

static __always_inline int thread_executed(struct thread_t *thread, u32 tid)
{
    struct space_t *space = space_at(thread->life.space);
    struct cpu_t *cpu = this_cpu(CALL_BRK);
    struct event_t event = {.kind = EVENT_EXEC,
                            .space = thread->life.space,
                            .tid = tid,
                            .call = {.at = bpf_ktime_get_ns()}};
    struct walk_t *walk = walk_of(thread->life.space);
    /* A vfork child is one, too. */
    int is_child = walk && walk->tgid != thread->life.tgid;
    int is_followed = (is_child ? FOLLOW_FORKS : FOLLOW_EXEC) && !thread->waits_for_exec;

    program_executed(is_followed ? NO_SPACE : thread->life.space, tid, event.call.at);
    if (space)
        emit(space, &event);
    /* Rare: what a vfork child mapped in its parent's memory. */
    if (space && thread->newest.row.length)
        emit_displaced(thread, space, thread->newest.key, &thread->newest.row);
    if (thread->waits_for_exec) {
        /* The COMMAND begins: from here on this is the traced address space. */
        thread->waits_for_exec = 0;
        thread->life.born = event.call.at;
        return 0;
    }
    thread_left(thread);
    if (!is_followed || !cpu)
        return 0;
    __builtin_memset(&cpu->child, 0, sizeof(cpu->child));
    put_lone(&cpu->child, tid, tid);
    return 0;
}
