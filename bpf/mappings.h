// SPDX-License-Identifier: Apache-2.0
/* The rules of the ledger: what each call does to the rows. */
#pragma once

#define ENOMEM 12
#define PROT_EXEC 4
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_FIXED 0x10
#define MAP_HUGETLB 0x40000
#define MAP_FIXED_NOREPLACE 0x100000
#define MAP_HUGE_SHIFT 26
#define MAP_HUGE_MASK 0x3f
#define MREMAP_FIXED 2
#define MREMAP_DONTUNMAP 4

/* Failed calls of one thread that are sent in a second; a program may make any number. */
#define FAILURES_PER_SECOND 100

/* mmap rounds a huge mapping to its page size (mm/mmap.c: ksys_mmap_pgoff). */
static __always_inline u64 mapped_length(u64 length, u64 flags)
{
    u64 shift = (flags >> MAP_HUGE_SHIFT) & MAP_HUGE_MASK;
    u64 huge;

    if (!(flags & MAP_HUGETLB))
        return round_to_pages(length);
    huge = shift ? 1ULL << shift : HUGE_PAGE_BYTES;
    return (length + huge - 1) & ~(huge - 1);
}

/*
 * Sends that code was mapped, at most once in CODE_REST_NS; after that time user space reads the maps again
 * (sessions/watch.py).
 */
static __always_inline void code_mapped(struct thread_t *thread, struct space_t *space, u64 at)
{
    struct event_t event = {.kind = EVENT_CODE,
                            .space = thread->task.space,
                            .tid = thread->task.tid,
                            .call = {.at = at}};

    if (at - space->code_at < CODE_REST_NS)
        return;
    space->code_at = at;
    emit(space, &event);
}

/* Whether the call unmaps what is mapped in its range. */
static __always_inline int replaces(u64 flags)
{
    return (flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE);
}

/* The address space, the call and the errno. */
static __always_inline u32 failure_key(u32 space, u32 call, s64 returned)
{
    return space << 16 | call << 12 | (u32)-returned;
}

static __always_inline void count_failure(struct thread_t *thread, u32 call, s64 returned)
{
    u32 key = failure_key(thread->task.space, call, returned);
    u64 *count = find_failures(key);

    if (!count) {
        if (!add_failures(key, 1))
            return;
        count = find_failures(key);
    }
    if (count)
        __sync_fetch_and_add(count, 1);
}

/*
 * Some failed calls have changed something (is_doubtful): MAP_FIXED and MREMAP_FIXED unmap what they replace
 * before their last possible error, and an mremap of several areas stops at the first that can't be moved.
 * Python reads /proc/PID/maps then (ebpftrace/ledger/effects.py).
 */
static __always_inline void call_failed(struct thread_t *thread, struct space_t *space, u32 call,
                                        s64 returned, int is_doubtful)
{
    const struct pt_regs *registers;
    u64 now;

    count_failure(thread, call, returned);
    if (!is_doubtful && call != CALL_MUNMAP)
        return;
    now = bpf_ktime_get_ns();
    if (is_doubtful && call == CALL_MREMAP)
        touch_all(space, now, now);
    else if (is_doubtful)
        touch_all(space, now, 0);
    if (now - thread->failures_from > NS_PER_SECOND) {
        thread->failures_from = now;
        thread->failures_sent = 0;
    }
    if (thread->failures_sent >= FAILURES_PER_SECOND)
        return;
    thread->failures_sent++;
    registers = caller_registers();
    struct event_t event = {
        .kind = EVENT_FAILED,
        .space = thread->task.space,
        .tid = thread->task.tid,
        .call = {.at = now,
                 .done_at = now,
                 .start = untagged(ARGUMENT_1(registers)),
                 .length = round_to_pages(ARGUMENT_2(registers)),
                 .new_start = untagged(ARGUMENT_5(registers)),
                 .new_length = round_to_pages(ARGUMENT_3(registers)),
                 .flags = (u32)ARGUMENT_4(registers) | (u64)call << 32 | (u64)-returned << 40}};

    emit(space, &event);
}

/*
 * For a process without a number only the last mapping is recorded: when it creates its first thread, that
 * is usually the stack.
 */
static __always_inline void unnumbered_mmap_exit(struct thread_t *thread, u64 start)
{
    const struct pt_regs *registers = caller_registers();
    struct mapping_t *row = &thread->newest.row;

    row->prot = ARGUMENT_3(registers);
    row->flags = ARGUMENT_4(registers);
    row->length = mapped_length(ARGUMENT_2(registers), row->flags);
    row->since = bpf_ktime_get_ns();
    row->made_at = row->since;
    row->mapper_started_at = thread->task.started_at;
    row->mapper_tid = thread->task.tid;
    row->site = UNSEEN_SITE;
    row->is_stack = 0;
    thread->newest.key = key_of(NO_SPACE, start);
    thread->has_called = 1;
    if (row->prot & PROT_EXEC)
        image_mapped(thread, registers, row->since, start, row->length, row->flags);
}

/* Forgets the last mapping of a process without a number if the call touches it. */
static __always_inline void forget_unnumbered(struct thread_t *thread, u64 start, u64 length)
{
    u64 own = address_of(thread->newest.key);

    if (start < own + thread->newest.row.length && own < start + length)
        thread->newest.row.length = 0;
}

static __always_inline int mmap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space = space_at(thread->task.space);
    const struct pt_regs *registers;
    struct mapping_t row = {};
    struct mapping_t *old;
    u64 start = returned;
    u64 key = key_of(thread->task.space, start);

    count_call(thread, CALL_MMAP);
    if (!space) {
        if (thread->task.space == NO_SPACE && !has_failed(returned))
            unnumbered_mmap_exit(thread, start);
        return 0;
    }
    registers = caller_registers();
    if (has_failed(returned)) {
        call_failed(thread, space, CALL_MMAP, returned, replaces(ARGUMENT_4(registers)));
        return 0;
    }
    row.since = bpf_ktime_get_ns();
    row.made_at = row.since;
    /* First, as the verifier follows it once for each branch before it. */
    row.site = record_stack(thread, registers, CALL_MMAP, row.made_at, 0);
    row.prot = ARGUMENT_3(registers) & ~SIZE_UNKNOWN;
    row.flags = ARGUMENT_4(registers);
    row.length = forget_range(mapped_length(ARGUMENT_2(registers), row.flags), row.since);
    row.mapper_tid = thread->task.tid;
    row.mapper_started_at = thread->task.started_at;
    note_stack_pointer(thread, USER_SP(registers), row.since);
    if (replaces(row.flags)) {
        old = find_row(thread, key);
        if (old && old->length == row.length && is_clean(thread, space, key, old)) {
            count_outstanding(thread, old, -1);
            drop_row(thread, key);
        } else {
            emit_unmapped(thread, space, row.since, row.since - 1, start, row.length);
        }
    }
    __sync_fetch_and_add(&thread->task.outstanding, 1);
    cache_newest(thread, space, key, &row);
    if (row.prot & PROT_EXEC) {
        image_mapped(thread, registers, row.since, start, row.length, row.flags);
        code_mapped(thread, space, row.since);
    }
    return 0;
}

/*
 * If the entry or the exit of a call was not seen, the kernel skipped our program.  Before Linux 6.7 it does
 * not count that (kernel/trace/bpf_trace.c, trace_call_bpf), so this is the only sign.
 */
static __always_inline void lose_run(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->task.space);

    if (space)
        __sync_fetch_and_add(&space->lost_runs, 1);
}

static __always_inline void note_enter(struct thread_t *thread, u32 call)
{
    if (thread->entered)
        lose_run(thread);
    count_call(thread, call);
    thread->entered = call;
}

/*
 * If the entry of the returning call was not seen (tracing began during the call, or the kernel skipped our
 * program), the row and the time that the thread holds are those of an earlier call, and are discarded.
 */
static __always_inline void require_enter(struct thread_t *thread, u32 call, s64 returned)
{
    if (thread->entered != call) {
        /* A call that seccomp refuses fails without an entry event. */
        if (thread->has_called && !has_failed(returned))
            lose_run(thread);
        thread->has_row = 0;
        thread->needs_replay = 1;
        thread->entered_at = bpf_ktime_get_ns();
    }
    thread->entered = 0;
}

static __always_inline int munmap_enter(struct thread_t *thread, u64 start, u64 length)
{
    struct space_t *space = space_at(thread->task.space);
    u64 key = key_of(thread->task.space, start);
    struct mapping_t *row;
    int is_whole = 0;

    length = round_to_pages(length);
    note_enter(thread, CALL_MUNMAP);
    thread->has_row = 0;
    thread->needs_replay = 1;
    if (!space) {
        /* It may have a number when the call returns. */
        thread->entered_at = bpf_ktime_get_ns();
        forget_unnumbered(thread, start, length);
        return 0;
    }
    row = find_row(thread, key);
    if (row && row->length <= length) {
        is_whole = row->length == length;
        thread->needs_replay = !is_whole || !is_clean(thread, space, key, row);
        take(thread, key, row);
    }
    if (thread->needs_replay) {
        thread->entered_at = bpf_ktime_get_ns();
        if (is_whole && !has_rows_inside(key, length)) {
            thread->needs_replay = REPLAY_ALONE;
            space->alone_at = thread->entered_at;
        } else {
            touch(space, key, length, thread->entered_at, 0);
        }
    }
    return 0;
}

static __always_inline int munmap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space;
    const struct pt_regs *registers;
    u64 key, length, done_at;

    require_enter(thread, CALL_MUNMAP, returned);
    if (!returned && !thread->needs_replay && !thread->has_row)
        return 0;
    if (!returned && !thread->needs_replay) {
        count_outstanding(thread, &thread->row, -1);
        if (!thread->row.is_stack)
            return 0;
    }
    space = space_at(thread->task.space);
    if (!space)
        return 0;
    registers = caller_registers();
    key = key_of(thread->task.space, ARGUMENT_1(registers));
    if (returned) {
        if (thread->has_row)
            restore(thread, space, ARGUMENT_1(registers));
        call_failed(thread, space, CALL_MUNMAP, returned, 0);
        return 0;
    }
    if (thread->has_row && thread->row.is_stack)
        free_stack(thread->task.space, ARGUMENT_1(registers));
    if (!thread->needs_replay)
        return 0;
    if (thread->has_row && may_have_moved(space, key, &thread->row))
        emit_evicted(thread, space, key, &thread->row);
    else if (thread->has_row)
        count_outstanding(thread, &thread->row, -1);
    length = round_to_pages(ARGUMENT_2(registers));
    done_at = bpf_ktime_get_ns();
    if (thread->needs_replay == REPLAY_ALONE)
        space->alone_at = done_at;
    else
        touch(space, key, length, done_at, 0);
    send_unmapped(thread, space, thread->entered_at, done_at, ARGUMENT_1(registers), length);
    return 0;
}

/*
 * Whether the mremap makes a second mapping and keeps the old one: an old size of 0 duplicates a shared one.
 */
static __always_inline int keeps_old(u64 length, u64 flags)
{
    return !length || (flags & MREMAP_DONTUNMAP);
}

/*
 * The start of what shmat or io_setup mapped; 0 if the call failed.  Their arguments do not give the size:
 * the row gets one page, and SIZE_UNKNOWN in `prot` makes Python read the size from /proc.  The number of an
 * io_setup context is the address of its ring (fs/aio.c, ioctx_alloc).
 */
static __always_inline u64 start_of_unsized(const struct pt_regs *registers, s64 returned)
{
    u64 start = 0;

    if (CALL_NUMBER(registers) == NR_SHMAT)
        return has_failed(returned) ? 0 : returned;
    if (CALL_NUMBER(registers) == NR_IO_SETUP && !returned)
        read_user(&start, sizeof(start), (void *)ARGUMENT_2(registers));
    return start;
}

/* shmdt and io_destroy are given the start of what they unmap, and no size. */
static __always_inline int unmap_whole_enter(struct thread_t *thread, u64 start)
{
    u64 key = key_of(thread->task.space, start);
    struct mapping_t *row = find_row(thread, key);

    thread->has_row = 0;
    if (row && (row->prot & SIZE_UNKNOWN))
        take(thread, key, row);
    return 0;
}

static __always_inline int unmap_whole_exit(struct thread_t *thread, u64 start, s64 returned)
{
    struct space_t *space = space_at(thread->task.space);

    if (!space || !thread->has_row)
        return 0;
    thread->has_row = 0;
    if (returned)
        restore(thread, space, start);
    else
        count_outstanding(thread, &thread->row, -1);
    return 0;
}

/* An mremap touched a range. */
static __always_inline void touch_moved(struct space_t *space, u64 key, u64 length, u64 at)
{
    touch(space, key, round_to_pages(length), at, at);
}

static __always_inline int mremap_enter(struct thread_t *thread, u64 start, u64 length,
                                        u64 new_length, u64 flags, u64 new_start)
{
    struct space_t *space = space_at(thread->task.space);
    u64 key = key_of(thread->task.space, start);
    struct mapping_t *row;

    note_enter(thread, CALL_MREMAP);
    thread->has_row = 0;
    thread->needs_replay = 1;
    thread->entered_at = bpf_ktime_get_ns();
    if (!space) {
        forget_unnumbered(thread, start, length);
        return 0;
    }
    if (keeps_old(length, flags))
        return 0;
    row = find_row(thread, key);
    if (row && row->length == round_to_pages(length) && !(flags & MREMAP_FIXED) &&
        row->since > space->alone_at && is_clean(thread, space, key, row)) {
        take(thread, key, row);
        thread->needs_replay = !thread->has_row;
    }
    if (thread->needs_replay) {
        touch_moved(space, key, length, thread->entered_at);
        if (flags & MREMAP_FIXED)
            touch_moved(space, key_of(thread->task.space, new_start), new_length,
                        thread->entered_at);
    }
    return 0;
}

/* The program at the exit of mremap is attached to shmat and io_setup as well. */
static __always_inline int is_remapping(const struct pt_regs *registers)
{
    u32 number = CALL_NUMBER(registers);

    return number != NR_SHMAT && number != NR_IO_SETUP;
}

/*
 * Fills in the row of a mapping that the call made while it kept the old one, if there was one.  The kind of
 * call is read again after record_stack(): otherwise the verifier would follow that once for each kind.
 */
static __always_inline void fill_second(struct thread_t *thread, struct space_t *space,
                                        const struct pt_regs *registers, struct mapping_t *second,
                                        u64 start)
{
    struct mapping_t *old = 0;
    int is_mremap;

    second->made_at = second->since;
    second->site = record_stack(thread, registers, CALL_MREMAP, second->since, 0);
    is_mremap = is_remapping(registers);
    second->length = is_mremap ? round_to_pages(ARGUMENT_3(registers)) : PAGE_BYTES;
    second->mapper_tid = thread->task.tid;
    second->mapper_started_at = thread->task.started_at;
    if (is_mremap)
        old = find_row(thread, key_of(thread->task.space, ARGUMENT_1(registers)));
    second->prot = old ? old->prot : is_mremap ? 0 : SIZE_UNKNOWN;
    second->flags = old                                  ? old->flags
                    : ARGUMENT_2(registers) && is_mremap ? MAP_PRIVATE | MAP_ANONYMOUS
                                                         : MAP_SHARED;
    note_stack_pointer(thread, USER_SP(registers), second->since);
    if (is_mremap && (ARGUMENT_4(registers) & MREMAP_FIXED))
        emit_unmapped(thread, space, second->since, second->since - 1, start, second->length);
    __sync_fetch_and_add(&thread->task.outstanding, 1);
}

static __always_inline int mremap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space = space_at(thread->task.space);
    const struct pt_regs *registers = caller_registers();
    u64 now = bpf_ktime_get_ns();
    struct mapping_t row = {};
    int is_mremap = is_remapping(registers);
    int makes_second = 1;

    if (is_mremap)
        require_enter(thread, CALL_MREMAP, returned);
    if (!space)
        return 0;
    if (!is_mremap) {
        returned = start_of_unsized(registers, returned);
        if (!returned)
            return 0;
        thread->has_called = 1;
        thread->has_row = 0;
    } else if (has_failed(returned)) {
        if (thread->has_row)
            restore(thread, space, ARGUMENT_1(registers));
        call_failed(thread, space, CALL_MREMAP, returned, ARGUMENT_4(registers) & MREMAP_FIXED);
        return 0;
    } else {
        makes_second = keeps_old(ARGUMENT_2(registers), ARGUMENT_4(registers));
    }
    returned = forget_range(returned, now);
    if (thread->has_row || makes_second) {
        if (!makes_second) {
            row = thread->row;
            row.length = round_to_pages(ARGUMENT_3(registers));
        }
        row.since = now;
        if (makes_second)
            fill_second(thread, space, registers, &row, returned);
        insert(thread, space, key_of(thread->task.space, returned), &row);
    } else {
        struct event_t event = {.kind = EVENT_MOVE,
                                .space = thread->task.space,
                                .tid = thread->task.tid,
                                .call = {.at = thread->entered_at,
                                         .done_at = now,
                                         .start = untagged(ARGUMENT_1(registers)),
                                         .length = round_to_pages(ARGUMENT_2(registers)),
                                         .new_start = returned,
                                         .new_length = round_to_pages(ARGUMENT_3(registers)),
                                         .flags = ARGUMENT_4(registers)}};

        touch_moved(space, key_of(thread->task.space, event.call.start), event.call.length, now);
        touch_moved(space, key_of(thread->task.space, returned), event.call.new_length, now);
        emit(space, &event);
    }
    return 0;
}

/* The break belongs to the address space; its growth is counted for the calling thread and the site. */
static __always_inline int brk_exit(struct thread_t *thread, u64 returned)
{
    struct space_t *space = space_at(thread->task.space);
    const struct pt_regs *registers;
    u64 before, wanted;
    s64 growth;

    count_call(thread, CALL_BRK);
    if (!space) {
        thread->brk = returned;
        return 0;
    }
    registers = caller_registers();
    wanted = ARGUMENT_1(registers);
    before = space->brk;
    space->brk = returned;
    /* brk(0) only asks for the current break. */
    if (wanted && wanted != returned)
        count_failure(thread, CALL_BRK, -ENOMEM);
    if (!before || before == returned)
        return 0;
    growth = returned - before;
    thread->task.brk_growth += growth;
    if (BRK_STACKS)
        record_stack(thread, registers, CALL_BRK, bpf_ktime_get_ns(), growth);
    return 0;
}
