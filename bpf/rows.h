// SPDX-License-Identifier: Apache-2.0
/* The rows of the ledger: found, entered, taken out; told where a match of starts won't do. */
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

/* What is kept of a place: of small ones, all that touched them but larger calls; of large ones, these ... */
#define SMALL_PLACE 0
#define LARGE_PLACE_BY_LARGE_CALLS 1
/* ... and all. */
#define LARGE_PLACE 2

/* Without a branch: the verifier would follow both ways of each. */
static __always_inline u64 later(u64 one, u64 other)
{
    s64 more = other - one;
    s64 is_less = more >> 63;

    asm volatile("" : "+r"(is_less));
    return one + (more & ~is_less);
}

static __always_inline void note(struct touched_t *touched, u64 hard_at, u64 moved_at)
{
    touched->hard_at = later(touched->hard_at, hard_at);
    touched->moved_at = later(touched->moved_at, moved_at);
}

/* It is not known what the call touched. */
static __always_inline void touch_all(struct space_t *space, u64 hard_at, u64 moved_at)
{
    note(&space->latest, hard_at, moved_at);
    note(&space->everywhere, hard_at, moved_at);
}

static __always_inline struct touched_t *place_of(u32 kind, u64 number)
{
    return place_at(mix(mix(0, kind), number) % PLACES);
}

/* Ranges are of keys: space and address go together. */
static __always_inline int spans_two(u64 key, u64 pages, u32 shift)
{
    return ((key + pages) >> shift) - (key >> shift) <= 1;
}

static __always_inline void touch_places(u32 kind, u32 shift, u64 key, u64 pages, u64 hard_at,
                                         u64 moved_at)
{
    struct touched_t *first = place_of(kind, key >> shift);
    struct touched_t *last = place_of(kind, (key + pages) >> shift);

    if (!first || !last)
        return;
    note(first, hard_at, moved_at);
    note(last, hard_at, moved_at);
}

static __always_inline void find_places(struct touched_t *found, u32 kind, u32 shift, u64 key,
                                        u64 pages)
{
    struct touched_t *first = place_of(kind, key >> shift);
    struct touched_t *last = place_of(kind, (key + pages) >> shift);

    if (!first || !last)
        return;
    note(found, first->hard_at, first->moved_at);
    note(found, last->hard_at, last->moved_at);
}

/*
 * Notes that a call which a start match can't settle touched a range.  It is noted by place: else one such
 * call would make all rows that stand ambiguous, and the reader be told of the end of each.
 */
static __always_inline void touch(struct space_t *space, u64 key, u64 length, u64 hard_at,
                                  u64 moved_at)
{
    u64 pages = length >> LEAST_PAGE_SHIFT;
    int is_small = spans_two(key, pages, SMALL_SHIFT);

    if (!spans_two(key, pages, LARGE_SHIFT)) {
        touch_all(space, hard_at, moved_at);
        return;
    }
    note(&space->latest, hard_at, moved_at);
    touch_places(LARGE_PLACE, LARGE_SHIFT, key, pages, hard_at, moved_at);
    touch_places(is_small ? SMALL_PLACE : LARGE_PLACE_BY_LARGE_CALLS,
                 is_small ? SMALL_SHIFT : LARGE_SHIFT, key, pages, hard_at, moved_at);
}

/* When a range was touched last, or near it. */
static __always_inline struct touched_t last_touched(struct space_t *space, u64 key, u64 length)
{
    u64 pages = length >> LEAST_PAGE_SHIFT;
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

/* Of shmat and io_setup only the first page is known here. */
static __always_inline u64 reach_of(struct mapping_t *row)
{
    return row->prot & SIZE_UNKNOWN ? 1ULL << (ADDRESS_BITS - 1) : row->length;
}

/* No call since this row was made could have cut it or put another row inside it, nor is it in the
 * baseline: Python need not hear of its end. */
static __always_inline int is_clean(struct thread_t *thread, struct space_t *space, u64 key,
                                    struct mapping_t *row)
{
    struct told_t *told = told_of(thread->life.space);

    return told && row->since > told->baseline_at &&
           (row->since > space->latest.hard_at ||
            row->since > last_touched(space, key, reach_of(row)).hard_at);
}

/* A part of this row may lie elsewhere by now. */
static __always_inline int may_have_moved(struct space_t *space, u64 key, struct mapping_t *row)
{
    return row->since <= space->latest.moved_at &&
           row->since <= last_touched(space, key, reach_of(row)).moved_at;
}

/*
 * The thread that mapped a row has one more or one less outstanding.  Only rows of which nothing can
 * be left are taken off: of others Python may know remains, and must be able to name their mapper.
 * Exited threads that stay for that are swept away by Python (ebpftrace/kernel/sweeper.py).
 */
static __always_inline void count_outstanding(struct thread_t *thread, struct mapping_t *row,
                                              s64 change)
{
    struct thread_t *mapper = thread;
    struct life_key_t key = {.born = row->mapper_born, .tid = row->mapper_tid};
    struct life_t *life;

    if (row->mapper_tid != thread->life.tid)
        mapper = find_living(row->mapper_tid);
    if (mapper && mapper->life.born == row->mapper_born) {
        __sync_fetch_and_add(&mapper->life.outstanding, change);
        return;
    }
    life = find_exited(&key);
    if (!life)
        return;
    __sync_fetch_and_add(&life->outstanding, change);
    /* Nothing is left to say of it: make room. */
    if (life->outstanding <= 0 && !life->brk_growth && !life->stack && !life->stood)
        drop_exited(&key);
}

static __always_inline void send_hole(struct thread_t *thread, struct space_t *space, u64 at,
                                      u64 done_at, u64 start, u64 length)
{
    struct event_t event = {
        .kind = EVENT_HOLE,
        .space = thread->life.space,
        .tid = thread->life.tid,
        .call = {.at = at, .done_at = done_at, .start = untagged(start), .length = length}};

    emit(space, &event);
}

static __always_inline void emit_hole(struct thread_t *thread, struct space_t *space, u64 at,
                                      u64 done_at, u64 start, u64 length)
{
    touch(space, key_of(thread->life.space, start), length, done_at, 0);
    send_hole(thread, space, at, done_at, start, length);
}

static __always_inline void emit_displaced(struct thread_t *thread, struct space_t *space, u64 key,
                                           struct mapping_t *row)
{
    struct event_t event = {.kind = EVENT_DISPLACED,
                            .space = thread->life.space,
                            .tid = row->mapper_tid,
                            .row = {.since = row->since,
                                    .made_at = row->made_at,
                                    .start = address_of(key),
                                    .length = row->length,
                                    .mapper_born = row->mapper_born,
                                    .site = row->site,
                                    .prot = row->prot,
                                    .flags = row->flags}};

    emit(space, &event);
}

/*
 * A newer row, of that time and length, has the place of `older`, which stood in the ledger although the
 * place was free or replaced: more of it may still stand, and what else the call did that freed it is
 * not known here.
 */
static __always_inline void displace(struct thread_t *thread, struct space_t *space, u64 key,
                                     struct mapping_t *older, u64 since, u64 length)
{
    /* By place would be longer to verify than all else, and this is rare. */
    if (older->length > length || older->since <= space->latest.moved_at)
        emit_displaced(thread, space, key, older);
    else
        count_outstanding(thread, older, -1);
    touch(space, key, older->length, since - 1, 0);
}

/* The row counts as its mapper's already. */
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
        /* One call, which is long: the verifier takes its time for each. */
        if (other)
            displace(thread, space, key, &older, since, length);
        if (since > row->since)
            return;
        error = put_mapping(key, row);
    }
    if (error) {
        __sync_fetch_and_add(&space->lost_mappings, 1);
        count_outstanding(thread, row, -1);
    }
}

static __always_inline int keeps(struct thread_t *thread, u64 key)
{
    return thread->newest.key == key && thread->newest.row.length;
}

static __always_inline u32 *keeper_of(u64 key)
{
    return keeper_at(mix(0, key) % KEEPERS);
}

/* The thread's newest mapping becomes a row that all find, and this one its newest. */
static __always_inline void keep(struct thread_t *thread, struct space_t *space, u64 key,
                                 struct mapping_t *row)
{
    u32 *keeper = keeper_of(key);
    int shares = thread->shares || !keeper;
    /* One call of insert(), which is long: clang and the verifier take their time for each. */
    struct mapping_t *given = shares ? row : &thread->newest.row;
    u64 given_key = shares ? key : thread->newest.key;

    if (shares && thread->newest.row.length) {
        emit_displaced(thread, space, thread->newest.key, &thread->newest.row);
        thread->newest.row.length = 0;
    }
    if (given->length)
        insert(thread, space, given_key, given);
    if (shares)
        return;
    thread->newest.key = key;
    thread->newest.row = *row;
    thread->newest.check = check_of(&thread->newest);
    *keeper = thread->life.tid;
}

/* The thread exits. */
static __always_inline void leave_newest(struct thread_t *thread)
{
    struct space_t *space = space_at(thread->life.space);

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
 * Where another thread keeps the row, this call can't be settled by a match of starts; the other is
 * asked to share what it maps from now on.
 */
static __always_inline struct mapping_t *find_row(struct thread_t *thread, u64 key)
{
    struct mapping_t *row;
    struct thread_t *other;
    u32 *keeper;

    if (keeps(thread, key))
        return &thread->newest.row;
    row = find_mapping(key);
    if (row)
        return row;
    keeper = keeper_of(key);
    other = keeper ? find_living(*keeper) : 0;
    if (other && keeps(other, key))
        other->shares = 1;
    return 0;
}

/* Whether a thread keeps a row of this key, which nobody else can take from it. */
static __always_inline int is_kept(u64 key)
{
    u32 *keeper = keeper_of(key);
    struct thread_t *other = keeper ? find_living(*keeper) : 0;

    return other && keeps(other, key);
}

/*
 * Whether other rows may lie in a range of which a whole row was unmapped, in parts that it had lost before,
 * or in its place, kept by another thread: then they are gone as well, and the range is touched.  Else it
 * need not be, which would make the rows beside it ambiguous, and the end of each of them others, without
 * an end.
 */
static __always_inline int has_rows_inside(u64 key, u64 length)
{
    if (length > SMALL_PAGES * PAGE_BYTES)
        return 1;
#pragma nounroll
    for (u32 i = 0; i < SMALL_PAGES; i++) {
        if (i * PAGE_BYTES >= length)
            break;
        if (find_mapping(key) || is_kept(key))
            return 1;
        key += PAGE_BYTES >> LEAST_PAGE_SHIFT;
    }
    return 0;
}

static __always_inline long drop_row(struct thread_t *thread, u64 key)
{
    if (!keeps(thread, key))
        return drop_mapping(key);
    thread->newest.row.length = 0;
    return 0;
}

/* Takes the row out of the ledger and keeps it with the thread until the call returns. */
static __always_inline void take(struct thread_t *thread, u64 key, struct mapping_t *row)
{
    thread->row = *row;
    thread->has_row = !drop_row(thread, key);
}

/* The call failed and changed nothing: the row comes back, unless a newer one has its place. */
static __always_inline void restore(struct thread_t *thread, struct space_t *space, u64 start)
{
    u64 key = key_of(thread->life.space, start);
    struct newest_t *newest = &thread->newest;

    if (newest->key == key && newest->row.since == thread->row.since) {
        newest->row.length = thread->row.length;
    } else if (add_mapping(key, &thread->row)) {
        __sync_fetch_and_add(&space->lost_mappings, 1);
        count_outstanding(thread, &thread->row, -1);
    }
}
