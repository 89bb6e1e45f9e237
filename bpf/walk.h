/* SPDX-License-Identifier: Apache-2.0
 * At the end of an address space: walks glibc's lists of stacks in use, in the memory of the dying task, and
 * sends every thread on them that has exited.  What stands there then was never joined.
 *
 * Python judges: it knows the versions of glibc.  A list that another thread changes meanwhile does not lead
 * back to where the walk came from; the walk then begins anew.
 */
#pragma once

#define WALK_COMPLETE 1
#define WALK_CHANGED 2
#define WALK_TOO_LONG 3
#define WALK_NO_LIST 4

#define END_DIES 1
#define END_EXECUTES 2

/* Of one program; 33 more follow it by tail calls (MAX_TAIL_CALL_CNT). */
#define NODES_AT_ONCE 256
#define MOST_PASSES 8

#define SIGNAL_GROUP_EXIT 4

struct link_t {
    u64 next;
    u64 prev;
};

/* A library was mapped to be executed: is it a libc that is known? */
static __always_inline void library_mapped(struct thread_t *thread, u64 inode, u32 device,
                                           u64 start, u64 offset)
{
    struct libc_key_t key = {.inode = inode, .device = device};
    struct library_t *library = library_of(thread->life.space);
    struct libc_t *libc;

    /* A second one is for what dlmopen(3) loads. */
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

/* From the head of the next list on; 0 where it can't be read. */
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
    /* Where it finds no room, fewer come than were sent: Python sees it. */
    send_event_quietly(&event);
    walk->sent++;
}

/*
 * Few branches: the verifier looks at each iteration, and remembers both ways of each branch.
 * Sums of what must be 0 take the place of tests.
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
    /* Whoever dies later looks again. */
    if (walk->stop != WALK_COMPLETE || walk->reason != END_DIES)
        free_walk(number);
}

/* 1: there is more to walk. */
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
    if (walk->stop == WALK_CHANGED && walk->again < MOST_PASSES) {
        walk->again++;
        if (begin_pass(walk))
            return 1;
        walk->stop = WALK_NO_LIST;
    }
    return 0;
}

/* 1: the walk has begun and is to be gone on with. */
static __always_inline int begin_walk(struct thread_t *thread, u32 reason)
{
    struct walk_t *walk = walk_of(thread->life.space);
    struct library_t *library = library_of(thread->life.space);

    if (!walk || !library || walk->tgid != thread->life.tgid || !claim_walk(thread->life.space))
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
    end_walk(thread->life.space, walk);
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
 * A task exits because its process ends: it had not exited before.  What it waited for tells whether it was
 * about to join another thread.
 */
static __always_inline void dies_with_process(struct thread_t *thread)
{
    struct walk_t *walk = walk_of(thread->life.space);
    struct space_t *space = space_at(thread->life.space);
    const struct pt_regs *registers = caller_registers();
    struct event_t event = {.kind = EVENT_AWAITED,
                            .space = thread->life.space,
                            .tid = thread->life.tid,
                            .call = {.at = bpf_ktime_get_ns()}};

    /* Others that share the memory may go on. */
    if (!walk || !space || walk->tgid != thread->life.tgid)
        return;
    thread->life.dies_with = 1;
    if (!walk->ended_at)
        walk->ended_at = event.call.at;
    if (CALL_NUMBER(registers) != NR_FUTEX)
        return;
    event.call.start = ARGUMENT_1(registers);
    emit(space, &event);
}
