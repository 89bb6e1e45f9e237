/* The rules of the ledger: what each call does to the rows. */
#pragma once

#define PROT_EXEC 4
#define MAP_FIXED 0x10
#define MAP_HUGETLB 0x40000
#define MAP_FIXED_NOREPLACE 0x100000
#define MAP_HUGE_SHIFT 26
#define MAP_HUGE_MASK 0x3f
#define MREMAP_FIXED 2
#define MREMAP_DONTUNMAP 4

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

/* A reader that was told a moment ago looks again a moment later (jobs/watch.py). */
static __always_inline void code_mapped(struct thread_t *thread, struct space_t *space, u64 at)
{
    struct event_t event = {.kind = EVENT_CODE,
                            .space = thread->life.space,
                            .tid = thread->life.tid,
                            .call = {.at = at}};

    if (at - space->code_at < CODE_REST_NS)
        return;
    space->code_at = at;
    emit(space, &event);
}

static __always_inline int mmap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space = space_at(thread->life.space);
    const struct pt_regs *registers;
    struct mapping_t row = {};
    struct mapping_t *old;
    u64 start = returned;
    u64 key = key_of(thread->life.space, start);

    count_call(thread, CALL_MMAP);
    if (!space || has_failed(returned))
        return 0;
    registers = caller_registers();
    row.prot = ARGUMENT_3(registers);
    row.flags = ARGUMENT_4(registers);
    row.length = mapped_length(ARGUMENT_2(registers), row.flags);
    row.mapper_tid = thread->life.tid;
    row.mapper_born = thread->life.born;
    row.since = bpf_ktime_get_ns();
    row.made_at = row.since;
    row.site = record_stack(thread, registers, CALL_MMAP, row.made_at, 0);
    note_stand(thread, USER_SP(registers), row.since);
    if ((row.flags & MAP_FIXED) && !(row.flags & MAP_FIXED_NOREPLACE)) {
        old = find_row(thread, key);
        if (old && old->length == row.length && is_clean(thread, space, old)) {
            count_outstanding(thread, old, -1);
            drop_row(thread, key);
        } else {
            emit_hole(thread, space, row.since, row.since - 1, start, row.length);
        }
    }
    __sync_fetch_and_add(&thread->life.outstanding, 1);
    keep(thread, space, key, &row);
    if (row.prot & PROT_EXEC) {
        image_mapped(thread, registers, row.since, start, row.length, row.flags);
        code_mapped(thread, space, row.since);
    }
    return 0;
}

/*
 * At the exit of a call whose enter was not seen: we came in its midst, or the kernel skipped our
 * program (ebpftrace/kernel/losses.py).  What the thread holds is of an earlier call.
 */
static __always_inline void require_enter(struct thread_t *thread, u32 call)
{
    if (thread->entered != call) {
        thread->has_row = 0;
        thread->is_hard = 1;
        thread->entered_at = bpf_ktime_get_ns();
    }
    thread->entered = 0;
}

static __always_inline int munmap_enter(struct thread_t *thread, u64 start, u64 length)
{
    struct space_t *space = space_at(thread->life.space);
    u64 key = key_of(thread->life.space, start);
    struct mapping_t *row;

    length = round_to_pages(length);
    count_call(thread, CALL_MUNMAP);
    thread->entered = CALL_MUNMAP;
    thread->has_row = 0;
    thread->is_hard = 1;
    if (!space)
        return 0;
    row = find_row(thread, key);
    if (row && row->length <= length) {
        thread->is_hard = row->length != length || !is_clean(thread, space, row);
        take(thread, key, row);
    }
    if (thread->is_hard) {
        thread->entered_at = bpf_ktime_get_ns();
        mark_hard(space, thread->entered_at);
    }
    return 0;
}

static __always_inline int munmap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space;
    const struct pt_regs *registers;

    require_enter(thread, CALL_MUNMAP);
    if (!returned && !thread->is_hard && !thread->has_row)
        return 0;
    if (!returned && !thread->is_hard) {
        count_outstanding(thread, &thread->row, -1);
        if (!thread->row.is_stack)
            return 0;
    }
    space = space_at(thread->life.space);
    if (!space)
        return 0;
    registers = caller_registers();
    if (returned) {
        if (thread->has_row)
            restore(thread, space, ARGUMENT_1(registers));
        return 0;
    }
    if (thread->has_row && thread->row.is_stack)
        free_stack(thread->life.space, ARGUMENT_1(registers));
    if (!thread->is_hard)
        return 0;
    if (thread->has_row && may_have_moved(space, &thread->row))
        emit_displaced(thread, space, key_of(thread->life.space, ARGUMENT_1(registers)),
                       &thread->row);
    else if (thread->has_row)
        count_outstanding(thread, &thread->row, -1);
    emit_hole(thread, space, thread->entered_at, bpf_ktime_get_ns(), ARGUMENT_1(registers),
              round_to_pages(ARGUMENT_2(registers)));
    return 0;
}

static __always_inline int mremap_enter(struct thread_t *thread, u64 start, u64 length, u64 flags)
{
    struct space_t *space = space_at(thread->life.space);
    u64 key = key_of(thread->life.space, start);
    struct mapping_t *row;

    count_call(thread, CALL_MREMAP);
    thread->entered = CALL_MREMAP;
    thread->has_row = 0;
    thread->is_hard = 1;
    if (!space)
        return 0;
    row = find_row(thread, key);
    thread->entered_at = bpf_ktime_get_ns();
    if (row && row->length == round_to_pages(length) && is_clean(thread, space, row) &&
        !(flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))) {
        take(thread, key, row);
        thread->is_hard = !thread->has_row;
    }
    if (thread->is_hard)
        mark_moved(space, thread->entered_at);
    return 0;
}

static __always_inline int mremap_exit(struct thread_t *thread, s64 returned)
{
    struct space_t *space = space_at(thread->life.space);
    const struct pt_regs *registers = caller_registers();
    u64 now = bpf_ktime_get_ns();
    u64 new_length = round_to_pages(ARGUMENT_3(registers));
    struct mapping_t row;

    require_enter(thread, CALL_MREMAP);
    if (!space)
        return 0;
    if (has_failed(returned)) {
        if (thread->has_row)
            restore(thread, space, ARGUMENT_1(registers));
        return 0;
    }
    if (thread->has_row) {
        row = thread->row;
        row.length = new_length;
        row.since = now;
        insert(thread, space, key_of(thread->life.space, returned), &row);
    } else {
        struct event_t event = {.kind = EVENT_MOVE,
                                .space = thread->life.space,
                                .tid = thread->life.tid,
                                .call = {.at = thread->entered_at,
                                         .done_at = now,
                                         .start = ARGUMENT_1(registers),
                                         .length = round_to_pages(ARGUMENT_2(registers)),
                                         .new_start = returned,
                                         .new_length = new_length,
                                         .flags = ARGUMENT_4(registers)}};

        mark_moved(space, now);
        emit(space, &event);
    }
    return 0;
}

/* The break belongs to the address space; who moved it is told by thread and site. */
static __always_inline int brk_exit(struct thread_t *thread, u64 returned)
{
    struct space_t *space = space_at(thread->life.space);
    u64 before;
    s64 growth;

    count_call(thread, CALL_BRK);
    if (!space)
        return 0;
    before = space->brk;
    space->brk = returned;
    if (!before || before == returned)
        return 0;
    growth = returned - before;
    thread->life.brk_growth += growth;
    record_stack(thread, caller_registers(), CALL_BRK, bpf_ktime_get_ns(), growth);
    return 0;
}
