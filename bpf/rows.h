// SPDX-License-Identifier: Apache-2.0
/*
 * The rows of the ledger: find, insert and remove them; send an event where a start match can't settle a
 * call.
 */
#pragma once

#define EEXIST 17
#define ROW_WORDS (sizeof(struct mapping_t) / sizeof(u64))

/* Each word with a weight of its own (layout.CHECK_WEIGHTS). */
static __always_inline u64 check_of(struct newest_t *newest)
{
    const u64 *words = (const u64 *)&newest->row;
    u64 sum = newest->key;

#pragma unroll
    for (int i = 0; i < ROW_WORDS; i++)
        sum += words[i] * (2 * i + 3);
    return sum;
}

/* A small place is a range of 1 << SMALL_SHIFT pages; it records the calls that fit into two of them. */
#define SMALL_PLACE 0
/*
 * A large place is a range of 1 << LARGE_SHIFT pages; this kind records the calls that no small place does.
 */
#define LARGE_PLACE_BY_LARGE_CALLS 1
/* This kind records all calls that touched a large place. */
#define LARGE_PLACE 2

/* The maximum, without a branch: the verifier would follow both sides. */
static __always_inline u64 later(u64 one, u64 other)
{
    s64 more = other - one;
    s64 is_less = more >> 63;

    asm volatile("" : "+r"(is_less));
    return one + (more & ~is_less);
}

static __always_inline void note(struct touched_t *touched, u64 ambiguous_at, u64 moved_at)
{
    touched->ambiguous_at = later(touched->ambiguous_at, ambiguous_at);
    touched->moved_at = later(touched->moved_at, moved_at);
}

/* For a call whose range is unknown, or too large to record by place. */
static __always_inline void touch_all(struct space_t *space, u64 ambiguous_at, u64 moved_at)
{
    note(&space->latest, ambiguous_at, moved_at);
    note(&space->everywhere, ambiguous_at, moved_at);
}

static __always_inline struct touched_t *place_of(u32 kind, u64 number)
{
    return place_at(mix(mix(0, kind), number) % PLACES);
}

/* Whether a range lies in at most two neighbouring places; keys contain the space and the address. */
static __always_inline int spans_two(u64 key, u64 pages, u32 shift)
{
    return ((key + pages) >> shift) - (key >> shift) <= 1;
}

static __always_inline void touch_places(u32 kind, u32 shift, u64 key, u64 pages, u64 ambiguous_at,
                                         u64 moved_at)
{
    struct touched_t *first = place_of(kind, key >> shift);
    struct touched_t *last = place_of(kind, (key + pages) >> shift);

    if (!first || !last)
        return;
    note(first, ambiguous_at, moved_at);
    note(last, ambiguous_at, moved_at);
}

static __always_inline void find_places(struct touched_t *found, u32 kind, u32 shift, u64 key,
                                        u64 pages)
{
    struct touched_t *first = place_of(kind, key >> shift);
    struct touched_t *last = place_of(kind, (key + pages) >> shift);

    if (!first || !last)
        return;
    note(found, first->ambiguous_at, first->moved_at);
    note(found, last->ambiguous_at, last->moved_at);
}

/*
 * Records that a call which a start match can't settle touched a range.  It is recorded by place: otherwise
 * one such call would make all rows ambiguous, and the end of each would have to be sent.
 */
static __always_inline void touch(struct space_t *space, u64 key, u64 length, u64 ambiguous_at,
                                  u64 moved_at)
{
    u64 pages = length >> MIN_PAGE_SHIFT;
    int is_small = spans_two(key, pages, SMALL_SHIFT);

    if (!spans_two(key, pages, LARGE_SHIFT)) {
        touch_all(space, ambiguous_at, moved_at);
        return;
    }
    note(&space->latest, ambiguous_at, moved_at);
    touch_places(LARGE_PLACE, LARGE_SHIFT, key, pages, ambiguous_at, moved_at);
    touch_places(is_small ? SMALL_PLACE : LARGE_PLACE_BY_LARGE_CALLS,
                 is_small ? SMALL_SHIFT : LARGE_SHIFT, key, pages, ambiguous_at, moved_at);
}

/* When the range, or something in the same place, was touched last. */
static __always_inline struct touched_t last_touched(struct space_t *space, u64 key, u64 length)
{
    u64 pages = length >> MIN_PAGE_SHIFT;
    struct touched_t found = space->everywhere;
    u32 kind = LARGE_PLACE;

    if (!spans_two(key, pages, LARGE_SHIFT))
        return space->latest;
    if (spans_two(key, pages, SMALL_SHIFT)) {
        find_places(&found, SMALL_PLACE, SMALL_SHIFT, key, pages);
        kind = LARGE_PLACE_BY_LARGE_CALLS;
    }
    find_places(&found, kind, LARGE_SHIFT, key, pages);
    return found;
}

/* The length of what shmat and io_setup mapped is not known here: assume half the address space. */
static __always_inline u64 reach_of(struct mapping_t *row)
{
    return row->prot & SIZE_UNKNOWN ? 1ULL << (ADDRESS_BITS - 1) : row->length;
}

/* Whether Python need not know of the row's end: the row is not in the baseline, and no call since it was
 * made could have cut it or put another row inside it. */
static __always_inline int is_clean(struct thread_t *thread, struct space_t *space, u64 key,
                                    struct mapping_t *row)
{
    struct space_config_t *config = space_config_of(thread->task.space);

    return config && row->since > config->baseline_at &&
           (row->since > space->latest.ambiguous_at ||
            row->since > last_touched(space, key, reach_of(row)).ambiguous_at);
}

/* Whether mremap may have moved a part of the row elsewhere. */
static __always_inline int may_have_moved(struct space_t *space, u64 key, struct mapping_t *row)
{
    return row->since <= space->latest.moved_at &&
           row->since <= last_touched(space, key, reach_of(row)).moved_at;
}

/*
 * Counts a row more or less for the thread that mapped it.  Only rows that are unmapped for certain are
 * subtracted: if a part may remain, Python must be able to name its mapper.  Python removes the exited
 * threads that are kept only for that (ebpftrace/capture/sweeper.py).
 */
static __always_inline void count_outstanding(struct thread_t *thread, struct mapping_t *row,
                                              s64 change)
{
    struct thread_t *mapper = thread;
    struct task_key_t key = {.started_at = row->mapper_started_at, .tid = row->mapper_tid};
    struct task_t *task;

    if (row->mapper_tid != thread->task.tid)
        mapper = find_living(row->mapper_tid);
    if (mapper && mapper->task.started_at == row->mapper_started_at) {
        __sync_fetch_and_add(&mapper->task.outstanding, change);
        return;
    }
    task = find_exited(&key);
    if (!task)
        return;
    __sync_fetch_and_add(&task->outstanding, change);
    /* The report needs nothing of this thread any more. */
    if (task->outstanding <= 0 && !task->brk_growth && !task->stack && !task->last_sp)
        drop_exited(&key);
}

static __always_inline void send_unmapped(struct thread_t *thread, struct space_t *space, u64 at,
                                          u64 done_at, u64 start, u64 length)
{
    struct event_t event = {
        .kind = EVENT_UNMAPPED,
        .space = thread->task.space,
        .tid = thread->task.tid,
        .call = {.at = at, .done_at = done_at, .start = untagged(start), .length = length}};

    emit(space, &event);
}

static __always_inline void emit_unmapped(struct thread_t *thread, struct space_t *space, u64 at,
                                          u64 done_at, u64 start, u64 length)
{
    touch(space, key_of(thread->task.space, start), length, done_at, 0);
    send_unmapped(thread, space, at, done_at, start, length);
}

static __always_inline void emit_evicted(struct thread_t *thread, struct space_t *space, u64 key,
                                         struct mapping_t *row)
{
    struct event_t event = {.kind = EVENT_EVICTED,
                            .space = thread->task.space,
                            .tid = row->mapper_tid,
                            .row = {.since = row->since,
                                    .made_at = row->made_at,
                                    .start = address_of(key),
                                    .length = row->length,
                                    .mapper_started_at = row->mapper_started_at,
                                    .site = row->site,
                                    .prot = row->prot,
                                    .flags = row->flags}};

    emit(space, &event);
}

/*
 * A newer row (made at `since`, of `length` bytes) has the start of `older`, whose unmapping was missed.
 * A part of the old row may still be mapped: it goes to user space, which works out what is left.
 */
static __always_inline void evict(struct thread_t *thread, struct space_t *space, u64 key,
                                  struct mapping_t *older, u64 since, u64 length)
{
    /* Not last_touched(): this is rare, and the verifier would take longer for it than for all the rest. */
    if (older->length > length || older->since <= space->latest.moved_at)
        emit_evicted(thread, space, key, older);
    else
        count_outstanding(thread, older, -1);
    touch(space, key, older->length, since - 1, 0);
}

/* The row has already been counted for its mapper. */
static __always_inline void insert(struct thread_t *thread, struct space_t *space, u64 key,
                                   struct mapping_t *row)
{
    long error = add_mapping(key, row);
    struct mapping_t older, *other;
    u64 since = row->since;
    u64 length = row->length;

    if (error == -EEXIST) {
        other = find_mapping(key);
        if (other && other->since > since) {
            older = *row;
            since = other->since;
            length = other->length;
        } else if (other) {
            older = *other;
        }
        /* A single call of this inlined function: the verifier takes long for each. */
        if (other)
            evict(thread, space, key, &older, since, length);
        if (since > row->since)
            return;
        error = put_mapping(key, row);
    }
    if (error) {
        __sync_fetch_and_add(&space->lost_mappings, 1);
        count_outstanding(thread, row, -1);
    }
}

static __always_inline int has_cached(struct thread_t *thread, u64 key)
{
    return thread->newest.key == key && thread->newest.row.length;
}

static __always_inline u32 *cache_owner_of(u64 key)
{
    return cache_owner_at(mix(0, key) % CACHE_OWNERS);
}

/* Moves the thread's newest mapping into the table and caches `row` as its newest. */
static __always_inline void cache_newest(struct thread_t *thread, struct space_t *space, u64 key,
                                         struct mapping_t *row)
{
    u32 *owner = cache_owner_of(key);
    int cache_disabled = thread->cache_disabled || !owner;
    /* A single call of insert(): clang and the verifier take long for each inlined copy. */
    struct mapping_t *given = cache_disabled ? row : &thread->newest.row;
    u64 given_key = cache_disabled ? key : thread->newest.key;

    if (cache_disabled && thread->newest.row.length) {
        emit_evicted(thread, space, thread->newest.key, &thread->newest.row);
        thread->newest.row.length = 0;
    }
    if (given->length)
        insert(thread, space, given_key, given);
    if (cache_disabled)
        return;
    thread->newest.key = key;
    thread->newest.row = *row;
    thread->newest.check = check_of(&thread->newest);
    *owner = thread->task.tid;
}

/* The thread exits: its cached row moves into the table. */
static __always_inline void leave_newest(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->task.space);

    if (!space || !thread->has_called || !thread->newest.row.length)
        return;
    insert(thread, space, thread->newest.key, &thread->newest.row);
    thread->newest.row.length = 0;
}

static __always_inline void mark_stack(struct thread_t *thread, struct mapping_t *row)
{
    row->is_stack = 1;
    if (row == &thread->newest.row)
        thread->newest.check = check_of(&thread->newest);
}

/*
 * A row that another thread has cached is not found: the call can't be settled by a start match.  Then
 * that thread is made to put its rows into the table from now on.
 */
static __always_inline struct mapping_t *find_row(struct thread_t *thread, u64 key)
{
    struct mapping_t *row;
    struct thread_t *other;
    u32 *owner;

    if (has_cached(thread, key))
        return &thread->newest.row;
    row = find_mapping(key);
    if (row)
        return row;
    owner = cache_owner_of(key);
    other = owner ? find_living(*owner) : 0;
    if (other && has_cached(other, key))
        other->cache_disabled = 1;
    return 0;
}

/* Whether a thread has cached a row of this key. */
static __always_inline int is_cached(u64 key)
{
    u32 *owner = cache_owner_of(key);
    struct thread_t *other = owner ? find_living(*owner) : 0;

    return other && has_cached(other, key);
}

/*
 * A whole row was unmapped.  Whether other rows may be in its range: in parts that it had lost before, or in
 * its place, cached by another thread.  They are gone as well then, and the range must be touched. Otherwise
 * it must not: that would make the neighbouring rows ambiguous, their ends the next ones, and so on.
 */
static __always_inline int has_rows_inside(u64 key, u64 length)
{
    if (length > SMALL_PAGES * PAGE_BYTES)
        return 1;
#pragma nounroll
    for (u32 i = 0; i < SMALL_PAGES; i++) {
        if (i * PAGE_BYTES >= length)
            break;
        if (find_mapping(key) || is_cached(key))
            return 1;
        key += PAGE_BYTES >> MIN_PAGE_SHIFT;
    }
    return 0;
}

static __always_inline long drop_row(struct thread_t *thread, u64 key)
{
    if (!has_cached(thread, key))
        return drop_mapping(key);
    thread->newest.row.length = 0;
    return 0;
}

/* Removes the row from the ledger and saves it in the thread until the call returns. */
static __always_inline void take(struct thread_t *thread, u64 key, struct mapping_t *row)
{
    thread->row = *row;
    thread->has_row = !drop_row(thread, key);
}

/* The call failed and changed nothing: put the row back, unless a newer one has the same start. */
static __always_inline void restore(struct thread_t *thread, struct space_t *space, u64 start)
{
    u64 key = key_of(thread->task.space, start);
    struct newest_t *newest = &thread->newest;

    if (newest->key == key && newest->row.since == thread->row.since) {
        newest->row.length = thread->row.length;
    } else if (add_mapping(key, &thread->row)) {
        __sync_fetch_and_add(&space->lost_mappings, 1);
        count_outstanding(thread, &thread->row, -1);
    }
}
