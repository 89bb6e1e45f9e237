/* SPDX-License-Identifier: Apache-2.0
 * Walks glibc's lists of used stacks at the end of an address space, in the memory of the dying task, and
 * sends every thread on them that has exited: nobody can join these any more.
 *
 * Python decides what they mean, as it knows the versions of glibc.  If another thread changes a list during
 * the walk, a `prev` pointer does not match the node that the walk came from, and the walk starts again.
 */
#pragma once

#define WALK_COMPLETE 1
#define WALK_CHANGED 2
#define WALK_TOO_LONG 3
#define WALK_NO_LIST 4

#define END_DIES 1
#define END_EXECUTES 2

/* Nodes that one program visits; 33 more programs follow by tail calls (MAX_TAIL_CALL_CNT). */
#define NODES_AT_ONCE 256
#define MAX_PASSES 8

#define SIGNAL_GROUP_EXIT 4

struct link_t {
    u64 next;
    u64 prev;
};

/* A library was mapped with PROT_EXEC: record it if it is a known libc. */
static __always_inline void library_mapped(struct thread_t *thread, u64 inode, u32 device,
                                           u64 start, u64 offset)
{
    struct libc_key_t key = {.inode = inode, .device = device};
    struct library_t *library = library_of(thread->task.space);
    struct libc_t *libc;

    /* Only the first libc counts: dlmopen(3) loads further ones. */
    if (library ? library->is_known : thread->libc.inode)
        return;
    libc = find_libc(&key);
    if (!libc)
        return;
    if (!library) {
        thread->libc = key;
        thread->libc_base = start - offset - libc->text;
        return;
    }
    library->key = key;
    library->base = start - offset - libc->text;
    library->libc = *libc;
    library->is_known = 1;
}

/* Goes to the first node of the current list; returns 0 if it can't be read. */
static __always_inline int enter_list(struct walk_t *walk)
{
    struct link_t link = {};
    u64 head = walk->heads[walk->list & 1];

    if (read_user(&link, sizeof(link), (void *)head) || !link.next)
        return 0;
    walk->came_from = head;
    walk->node = link.next;
    return 1;
}

static __always_inline int begin_pass(struct walk_t *walk)
{
    walk->pass++;
    walk->list = 0;
    walk->seen = 0;
    walk->sent = 0;
    walk->stop = 0;
    return enter_list(walk);
}

static __always_inline int find_heads(struct walk_t *walk, struct library_t *library)
{
    u64 base = library->base;

    if (!library->is_known)
        return 0;
    if (library->libc.root &&
        (read_user(&base, sizeof(base), (void *)(library->base + library->libc.root)) || !base))
        return 0;
    walk->heads[0] = base + library->libc.used;
    walk->heads[1] = base + library->libc.user;
    return 1;
}

static __always_inline void send_listed(u32 space, struct walk_t *walk, struct libc_t *libc,
                                        u64 descriptor, u32 tid)
{
    struct event_t event = {
        .kind = EVENT_LISTED,
        .space = space,
        .tid = current_tid(),
        .listed = {.descriptor = descriptor, .tid = tid, .place = walk->list | walk->pass << 1}};

    read_user(&event.listed.cancelhandling, 4, (void *)(descriptor + libc->cancelhandling));
    read_user(&event.listed.setxid, 4, (void *)(descriptor + libc->setxid));
    read_user(&event.listed.join, 8, (void *)(descriptor + libc->join));
    read_user(&event.listed.start_routine, 8, (void *)(descriptor + libc->start_routine));
    read_user(&event.listed.block, 16, (void *)(descriptor + libc->block));
    /* If the buffer is full, Python receives fewer events than `sent` says, and notices. */
    send_event_quietly(&event);
    walk->sent++;
}

/*
 * Has few branches: the verifier checks each iteration, and both sides of each branch.  Errors are collected
 * in one word in place of separate tests.
 */
static __always_inline void walk_some(u32 space, struct walk_t *walk, struct library_t *library)
{
    struct libc_t *libc = &library->libc;
    u64 head = walk->heads[walk->list & 1];

#pragma nounroll
    for (int i = 0; i < NODES_AT_ONCE; i++) {
        struct link_t link = {};
        u64 node = walk->node;
        u64 descriptor = node - libc->link;
        u64 wrong;
        u32 tid = 1;

        if (node == head) {
            walk->stop = WALK_COMPLETE;
            return;
        }
        wrong = read_user(&link, sizeof(link), (void *)node);
        wrong |= read_user(&tid, sizeof(tid), (void *)(descriptor + libc->tid));
        wrong |= link.prev ^ walk->came_from;
        if (wrong) {
            walk->stop = WALK_CHANGED;
            return;
        }
        walk->seen++;
        walk->came_from = node;
        walk->node = link.next;
        if (!tid)
            send_listed(space, walk, libc, descriptor, tid);
    }
}

static __always_inline void end_walk(u32 number, struct walk_t *walk)
{
    struct space_t *space = space_at(number);
    struct event_t event = {.kind = EVENT_WALKED,
                            .space = number,
                            .tid = current_tid(),
                            .call = {.at = walk->ended_at,
                                     .done_at = bpf_ktime_get_ns(),
                                     .start = walk->seen,
                                     .length = walk->sent,
                                     .new_start = walk->stop,
                                     .new_length = walk->pass,
                                     .flags = walk->reason}};

    if (space)
        emit(space, &event);
    /* Allow another walk when the next task dies. */
    if (walk->stop != WALK_COMPLETE || walk->reason != END_DIES)
        free_walk(number);
}

/* Returns 1 if there is more to walk. */
static __always_inline int walk_on(u32 space, struct walk_t *walk, struct library_t *library)
{
    walk_some(space, walk, library);
    if (!walk->stop)
        return 1;
    if (walk->stop == WALK_COMPLETE && !walk->list) {
        walk->list = 1;
        walk->stop = 0;
        if (enter_list(walk))
            return 1;
        walk->stop = WALK_CHANGED;
    }
    if (walk->stop == WALK_CHANGED && walk->again < MAX_PASSES) {
        walk->again++;
        if (begin_pass(walk))
            return 1;
        walk->stop = WALK_NO_LIST;
    }
    return 0;
}

/* Returns 1 if the walk has begun; the caller then calls walk_further. */
static __always_inline int begin_walk(struct thread_t *thread, u32 reason)
{
    struct walk_t *walk = walk_of(thread->task.space);
    struct library_t *library = library_of(thread->task.space);

    if (!walk || !library || walk->tgid != thread->task.tgid || !claim_walk(thread->task.space))
        return 0;
    if (reason == END_EXECUTES || !walk->ended_at)
        walk->ended_at = bpf_ktime_get_ns();
    walk->reason = reason;
    walk->again = 0;
    if (find_heads(walk, library) && begin_pass(walk))
        return 1;
    walk->pass++;
    walk->seen = walk->sent = 0;
    walk->stop = WALK_NO_LIST;
    end_walk(thread->task.space, walk);
    return 0;
}

static __always_inline int process_is_dying(void)
{
    u64 signals = 0;
    u32 flags = 0;

    read_kernel(&signals, sizeof(signals), (void *)(bpf_get_current_task() + TASK_SIGNAL));
    read_kernel(&flags, sizeof(flags), (void *)(signals + SIGNAL_FLAGS));
    return flags & SIGNAL_GROUP_EXIT;
}

/*
 * A task exits because its process ends, so it had not exited by itself.  The futex that it waited for shows
 * whether it was joining another thread.
 */
static __always_inline void dies_with_process(struct thread_t *thread)
{
    struct walk_t *walk = walk_of(thread->task.space);
    struct space_t *space = space_at(thread->task.space);
    const struct pt_regs *registers = caller_registers();
    struct event_t event = {.kind = EVENT_AWAITED,
                            .space = thread->task.space,
                            .tid = thread->task.tid,
                            .call = {.at = bpf_ktime_get_ns()}};

    /* Other processes that share the memory may live on. */
    if (!walk || !space || walk->tgid != thread->task.tgid)
        return;
    thread->task.dies_with = 1;
    if (!walk->ended_at)
        walk->ended_at = event.call.at;
    if (CALL_NUMBER(registers) != NR_FUTEX)
        return;
    event.call.start = ARGUMENT_1(registers);
    emit(space, &event);
}
