// SPDX-License-Identifier: Apache-2.0
/* Traced address spaces: their threads, the keys of their mappings, their lost events. */
#pragma once

/*
 * User addresses stay below bit ADDRESS_BITS, and mappings begin on pages of 4 KiB at least; the number of
 * the space goes above.  What a caller tags or makes up beyond must not lead into another space.
 */
#define MIN_PAGE_SHIFT 12

/* An address as the kernel sees it: arm64 ignores the top byte. */
static __always_inline u64 untagged(u64 address)
{
    return address & ((1ULL << ADDRESS_BITS) - 1);
}

static __always_inline u64 key_of(u32 space, u64 address)
{
    return untagged(address) >> MIN_PAGE_SHIFT | (u64)space << SPACE_SHIFT;
}

static __always_inline u64 address_of(u64 key)
{
    return (key & ((1ULL << SPACE_SHIFT) - 1)) << MIN_PAGE_SHIFT;
}

/* The thread that has this tid now; tids are reused. */
static __always_inline struct thread_t *find_living(u32 tid)
{
    struct thread_t *thread = find_thread(tid);

    return thread && !thread->task.exited_at ? thread : 0;
}

/* For tasks that are not traced, this look-up is all that a probe does. */
static __always_inline struct thread_t *current_thread(void)
{
    struct thread_t *thread = find_living(current_tid());

    if (!thread || thread->waits_for_exec)
        return 0;
    use_given_number(thread);
    return thread;
}

static __always_inline void count_call(struct thread_t *thread, u32 call)
{
    thread->calls[call]++;
    thread->has_called = 1;
}

static __always_inline u64 round_to_pages(u64 length)
{
    return (length + PAGE_BYTES - 1) & ~(u64)(PAGE_BYTES - 1);
}

static __always_inline void lose_event(struct space_t *space)
{
    __sync_fetch_and_add(&space->lost_events, 1);
}

static __always_inline void emit(struct space_t *space, struct event_t *event)
{
    if (send_event(event))
        lose_event(space);
}
