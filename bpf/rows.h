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

/* No call since this row was made could have cut it or put another row inside it, nor is it in the
 * baseline: Python need not hear of its end. */
static __always_inline int is_clean(struct thread_t *thread, struct space_t *space,
                                    struct mapping_t *row)
{
    struct told_t *told = told_of(thread->life.space);

    return told && row->since > told->baseline_at && row->since > space->hard_at;
}

static __always_inline void mark_hard(struct space_t *space, u64 at)
{
    if (space->hard_at < at)
        space->hard_at = at;
}

static __always_inline void mark_moved(struct space_t *space, u64 at)
{
    mark_hard(space, at);
    if (space->moved_at < at)
        space->moved_at = at;
}

/* A part of this row may lie elsewhere by now. */
static __always_inline int may_have_moved(struct space_t *space, struct mapping_t *row)
{
    return row->since <= space->moved_at;
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

static __always_inline void emit_hole(struct thread_t *thread, struct space_t *space, u64 at,
                                      u64 done_at, u64 start, u64 length)
{
    struct event_t event = {
        .kind = EVENT_HOLE,
        .space = thread->life.space,
        .tid = thread->life.tid,
        .call = {.at = at, .done_at = done_at, .start = untagged(start), .length = length}};

    mark_hard(space, done_at);
    emit(space, &event);
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
 * `newer` has the place of `older`, which stood in the ledger although the place was free or replaced:
 * more of it may still stand, and what else the call did that freed it is not known here.
 */
static __always_inline void displace(struct thread_t *thread, struct space_t *space, u64 key,
                                     struct mapping_t *older, struct mapping_t *newer)
{
    if (older->length > newer->length || may_have_moved(space, older))
        emit_displaced(thread, space, key, older);
    else
        count_outstanding(thread, older, -1);
    mark_hard(space, newer->since - 1);
}

/* The row counts as its mapper's already. */
static __always_inline void insert(struct thread_t *thread, struct space_t *space, u64 key,
                                   struct mapping_t *row)
{
    long error = add_mapping(key, row);
    struct mapping_t *other;

    if (error == -EEXIST) {
        other = find_mapping(key);
        if (other && other->since > row->since) {
            displace(thread, space, key, row, other);
            return;
        }
        if (other)
            displace(thread, space, key, other, row);
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
