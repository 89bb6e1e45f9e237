/* SPDX-License-Identifier: Apache-2.0
 * Random memory calls of eight threads, as fast as they can: exact SEED MILLISECONDS [PAUSE_US].
 *
 * Each of eight roles has a window of addresses that only it touches, and areas that the kernel
 * placed for it elsewhere.  One thread after the other plays a role, so a role's memory has several
 * mappers.  Each role keeps its own record of what it holds and which thread mapped it; mapper 0
 * means that it was there before "ready".  All threads fight over one shared area, of which no
 * record is kept.  At the end everything is quiet and the records are printed.
 * With PAUSE_US a thread rests so long after every 16 calls.  Each role makes LEAST_CALLS, however slow the
 * machine.
 */
#include "target.h"

#include <malloc.h>

#define ROLES 8
#define WINDOW_PAGES 256
#define WINDOW (WINDOW_PAGES * page)
#define SHARED_PAGES 64
#define SHARED_SIZE (SHARED_PAGES * page)
#define EXTENTS 1024
#define ELSEWHERE 24
#define CALLS_OF_A_LIFE 4000
#define LEAST_CALLS 1000
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)

/*
 * Far below where the kernel places mappings of its own choice (top down), so nobody else's lands
 * in a window.
 */
#define FIRST_WINDOW 0x100000000000UL
#define WINDOW_STRIDE (16 * WINDOW)
#define SHARED_AREA (FIRST_WINDOW - WINDOW_STRIDE)

struct extent {
    unsigned long start, end;
    pid_t mapper;
};

struct role {
    unsigned long window;
    unsigned seed;
    int count;
    unsigned long calls, failed;
    struct extent extents[EXTENTS];
};

static struct role roles[ROLES];
static unsigned long page; /* the kernel's own: what it rounds up is recorded */
static int file;
static struct timespec deadline;
static long rest_us;
static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE,
                                  PROT_READ | PROT_EXEC};

static unsigned pick(struct role *role, unsigned below)
{
    return rand_r(&role->seed) % below;
}

static unsigned long up_to_page(unsigned long length)
{
    return (length + page - 1) & ~(page - 1);
}

/* --- the record of a role ------------------------------------------------------------------- */

static void record(struct role *role, unsigned long start, unsigned long end, pid_t mapper)
{
    need(role->count < EXTENTS);
    role->extents[role->count++] = (struct extent){start, end, mapper};
}

static void forget(struct role *role, unsigned long start, unsigned long end)
{
    for (int i = 0; i < role->count;) {
        struct extent old = role->extents[i];

        if (old.end <= start || end <= old.start) {
            i++;
            continue;
        }
        role->extents[i] = role->extents[--role->count];
        if (old.start < start)
            record(role, old.start, start, old.mapper);
        if (end < old.end)
            record(role, end, old.end, old.mapper);
        /* What was put back does not overlap, looking at it again is harmless. */
    }
}

/* Records at target what is recorded in [start, end); gaps of the source leave the target alone. */
static void record_copy(struct role *role, unsigned long start, unsigned long end,
                        unsigned long target)
{
    struct extent copies[EXTENTS];
    int count = 0;

    for (int i = 0; i < role->count; i++) {
        struct extent copy = role->extents[i];

        if (copy.end <= start || end <= copy.start)
            continue;
        copy.start = (copy.start < start ? start : copy.start) - start + target;
        copy.end = (copy.end > end ? end : copy.end) - start + target;
        copies[count++] = copy;
    }
    for (int i = 0; i < count; i++) {
        forget(role, copies[i].start, copies[i].end);
        record(role, copies[i].start, copies[i].end, copies[i].mapper);
    }
}

static int in_window(struct role *role, unsigned long address)
{
    return role->window <= address && address < role->window + WINDOW;
}

/* --- calls in the window of a role --------------------------------------------------------- */

static unsigned long random_range(struct role *role, unsigned long *start)
{
    unsigned pages = pick(role, 8) ? 1 + pick(role, 12) : 1 + pick(role, WINDOW_PAGES / 2);

    *start = role->window + pick(role, WINDOW_PAGES - pages + 1) * page;
    return pages * page;
}

static int elsewhere_count(struct role *role)
{
    int count = 0;

    for (int i = 0; i < role->count; i++)
        count += !in_window(role, role->extents[i].start);
    return count;
}

static void map_some(struct role *role)
{
    static const int kinds[] = {MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE, 0};
    unsigned long start;
    unsigned long length = random_range(role, &start);
    int placement = kinds[pick(role, 4)];
    int protection = protections[pick(role, 4)];
    int flags = pick(role, 4) ? ANONYMOUS : MAP_SHARED | MAP_ANONYMOUS;
    int descriptor = -1;
    void *hint = (void *)start;

    if (placement == 0 && elsewhere_count(role) >= ELSEWHERE)
        return;
    if (!pick(role, 4)) {
        flags = pick(role, 2) ? MAP_PRIVATE : MAP_SHARED;
        descriptor = file;
    }
    if (placement == 0 && pick(role, 2))
        hint = NULL;
    if (!pick(role, 16))
        length -= pick(role, page); /* the kernel rounds up */
    if (!pick(role, 32))
        hint = (char *)hint + 1; /* fails when fixed, else the kernel takes another place */
    if (!pick(role, 64))
        length = 0;
    if (!pick(role, 64)) {
        flags &= ~MAP_ANONYMOUS;
        descriptor = 999;
    }

    void *got = mmap(hint, length, protection, flags | placement, descriptor, 0);
    if (got == MAP_FAILED) {
        role->failed++;
        return;
    }
    start = (unsigned long)got;
    forget(role, start, start + up_to_page(length));
    record(role, start, start + up_to_page(length), own_tid());
}

static void unmap_some(struct role *role)
{
    unsigned long start, length;

    if (role->count && pick(role, 2)) {
        /* One of its areas: whole, or its head, tail or middle. */
        struct extent area = role->extents[pick(role, role->count)];
        unsigned pages = (area.end - area.start) / page;

        start = area.start;
        if (pick(role, 2))
            start += pick(role, pages) * page;
        length = area.end - start;
        if (pick(role, 2))
            length = (1 + pick(role, length / page)) * page;
    } else {
        length = random_range(role, &start);
    }
    if (!pick(role, 16))
        length -= pick(role, page);
    if (!pick(role, 32))
        start += 1 + pick(role, page - 1);
    if (!pick(role, 32))
        length = 0;
    if (munmap((void *)start, length)) {
        role->failed++;
        return;
    }
    forget(role, start, start + up_to_page(length));
}

static void protect_some(struct role *role)
{
    unsigned long start;
    unsigned long length = random_range(role, &start);

    role->failed += mprotect((void *)start, length, protections[pick(role, 4)]) != 0;
}

/* Moves to a place of the window; nothing else of the call may be in doubt when it fails. */
static void move_fixed(struct role *role, unsigned long start, unsigned long length, int flags)
{
    unsigned pages = length / page;
    unsigned long target = role->window + pick(role, WINDOW_PAGES - pages + 1) * page;

    if (mremap((void *)start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED | flags,
               (void *)target) != MAP_FAILED) {
        if (flags & MREMAP_DONTUNMAP) {
            /* It makes a mapping beside the old one. */
            forget(role, target, target + length);
            record(role, target, target + length, own_tid());
        } else {
            record_copy(role, start, start + length, target);
            forget(role, start, start + length);
        }
        return;
    }
    role->failed++;
    /* A failed call may have cleared its target, or not: now it is clear. */
    if (start + length <= target || target + length <= start) {
        need(!munmap((void *)target, length));
        forget(role, target, target + length);
    }
}

static void duplicate_shared(struct role *role, unsigned long start, unsigned long length)
{
    if (elsewhere_count(role) >= ELSEWHERE)
        return;
    void *copy = mremap((void *)start, 0, length, MREMAP_MAYMOVE);
    if (copy == MAP_FAILED) {
        role->failed++;
        return;
    }
    record(role, (unsigned long)copy, (unsigned long)copy + length, own_tid());
}

static void resize(struct role *role, struct extent area, int flags)
{
    unsigned long old = area.end - area.start;
    unsigned long new = (1 + pick(role, 2 * old / page)) * page;

    if (in_window(role, area.start) && area.start + new > role->window + WINDOW)
        return; /* in place it would grow into the next window */
    if (new > old && (flags & MREMAP_MAYMOVE) && elsewhere_count(role) >= ELSEWHERE)
        return;
    void *got = mremap((void *)area.start, old, new, flags);
    if (got == MAP_FAILED) {
        role->failed++;
        return;
    }
    forget(role, area.start, area.end);
    record(role, (unsigned long)got, (unsigned long)got + new, area.mapper);
}

static void remap_some(struct role *role)
{
    unsigned long start, length;

    if (!role->count)
        return;
    struct extent area = role->extents[pick(role, role->count)];

    switch (pick(role, 6)) {
    case 0:
        /* Any range, holes and borders of mappings in it. */
        length = random_range(role, &start);
        move_fixed(role, start, length, 0);
        break;
    case 1:
        length = area.end - area.start;
        if (length <= WINDOW)
            move_fixed(role, area.start, length, pick(role, 2) ? MREMAP_DONTUNMAP : 0);
        break;
    case 2:
        duplicate_shared(role, area.start, (1 + pick(role, 8)) * page);
        break;
    case 3:
        resize(role, area, 0);
        break;
    default:
        resize(role, area, MREMAP_MAYMOVE);
    }
}

/* --- calls in the shared area -------------------------------------------------------------- */

static void fight(struct role *role)
{
    unsigned pages = 1 + pick(role, 8);
    char *start = (char *)SHARED_AREA + pick(role, SHARED_PAGES - pages + 1) * page;
    char *target = (char *)SHARED_AREA + pick(role, SHARED_PAGES - pages + 1) * page;
    size_t length = pages * page;

    switch (pick(role, 8)) {
    case 0:
    case 1:
    case 2:
        mmap(start, length, PROT_READ, ANONYMOUS | MAP_FIXED, -1, 0);
        break;
    case 3:
        mmap(start, length, PROT_READ, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        break;
    case 4:
        mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, target);
        break;
    case 5:
        mremap(start, length, page, 0);
        break;
    default:
        munmap(start, length);
    }
}

/* --- lives --------------------------------------------------------------------------------- */

static int time_is_up(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > deadline.tv_sec ||
           (now.tv_sec == deadline.tv_sec && now.tv_nsec >= deadline.tv_nsec);
}

static int is_over(const struct role *role)
{
    return role->calls >= LEAST_CALLS && time_is_up();
}

static void *play(void *argument)
{
    struct role *role = argument;
    int calls = 1 + pick(role, CALLS_OF_A_LIFE);

    for (int i = 0; i < calls; i++) {
        if (i % 16 == 0) {
            if (is_over(role))
                break;
            if (rest_us)
                usleep(rest_us);
        }
        switch (pick(role, 10)) {
        case 0:
        case 1:
        case 2:
        case 3:
            map_some(role);
            break;
        case 4:
        case 5:
        case 6:
            unmap_some(role);
            break;
        case 7:
            protect_some(role);
            break;
        case 8:
            remap_some(role);
            break;
        default:
            fight(role);
        }
        role->calls++;
    }
    return NULL;
}

/* Plays one role with thread after thread. */
static void *cast(void *argument)
{
    struct role *role = argument;

    while (!is_over(role)) {
        pthread_t player;

        need(!pthread_create(&player, NULL, play, role));
        need(!pthread_join(player, NULL));
    }
    return NULL;
}

static void move_break(void)
{
    unsigned seed = roles[0].seed;

    while (!time_is_up()) {
        intptr_t size = 1 + rand_r(&seed) % (64 * page);

        need(sbrk(size) != (void *)-1);
        need(sbrk(-size) != (void *)-1);
        pause_ms(1);
    }
}

int main(int argc, char **argv)
{
    unsigned seed = argc > 1 ? atoi(argv[1]) : 1;
    long milliseconds = argc > 2 ? atol(argv[2]) : 1000;
    unsigned long calls = 0, failed = 0;
    pthread_t casts[ROLES];

    page = sysconf(_SC_PAGESIZE);
    /* So that no other thread's malloc moves the break while the main thread does. */
    need(mallopt(M_ARENA_MAX, 4 * ROLES));
    rest_us = argc > 3 ? atol(argv[3]) : 0;
    file = memfd_create("exact", 0);
    need(file >= 0 && !ftruncate(file, WINDOW));
    for (int i = 0; i < ROLES; i++) {
        struct role *role = &roles[i];

        role->window = FIRST_WINDOW + i * WINDOW_STRIDE;
        role->seed = seed * ROLES + i + 1;
        if (i % 2)
            continue;
        /* Half of the windows are taken before the tracer comes. */
        need(mmap((void *)role->window, WINDOW, PROT_NONE, ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                  0) == (void *)role->window);
        record(role, role->window, role->window + WINDOW, 0);
    }

    target_ready();
    need(!clock_gettime(CLOCK_MONOTONIC, &deadline));
    deadline.tv_sec += milliseconds / 1000;
    deadline.tv_nsec += milliseconds % 1000 * 1000000;
    if (deadline.tv_nsec >= 1000000000) {
        deadline.tv_sec++;
        deadline.tv_nsec -= 1000000000;
    }
    for (int i = 0; i < ROLES; i++)
        need(!pthread_create(&casts[i], NULL, cast, &roles[i]));
    move_break();
    for (int i = 0; i < ROLES; i++)
        need(!pthread_join(casts[i], NULL));

    for (int i = 0; i < ROLES; i++) {
        target_say("{\"event\": \"window\", \"start\": %lu, \"length\": %lu}\n", roles[i].window,
                   WINDOW);
        for (int j = 0; j < roles[i].count; j++) {
            struct extent *extent = &roles[i].extents[j];

            target_say("{\"event\": \"holds\", \"start\": %lu, \"length\": %lu, \"mapper\": %d}\n",
                       extent->start, extent->end - extent->start, extent->mapper);
        }
        calls += roles[i].calls;
        failed += roles[i].failed;
    }
    target_say("{\"event\": \"shared\", \"start\": %lu, \"length\": %lu}\n", SHARED_AREA,
               SHARED_SIZE);
    target_say("{\"event\": \"made\", \"calls\": %lu, \"failed\": %lu}\n", calls, failed);
    target_done();
    return 0;
}
