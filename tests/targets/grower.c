/* SPDX-License-Identifier: Apache-2.0
 * Grows in known steps.  grower MODE:
 *   once   one thread moves the break, the main thread maps, enlarges and cuts one mapping, unmaps one
 *          that was there before, and maps and unmaps many that leave nothing
 *   timer  moves the break every second, six times; says when it was late
 */
#include "target.h"

#define MIB (1UL << 20)
#define STEP (64UL << 10)

/* Not to be inlined: the test looks for their names. */
__attribute__((noinline)) static void move_break(size_t bytes)
{
    need(sbrk(bytes) != (void *)-1);
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) static void *map_some(size_t bytes)
{
    void *start = map_anonymous(bytes);

    __asm__ volatile("" ::: "memory");
    return start;
}

static void *breaker(void *unused)
{
    need(!pthread_setname_np(pthread_self(), "breaker"));
    move_break(MIB);
    return unused;
}

static void once(void *old)
{
    pthread_t thread;
    char *start;

    need(!pthread_create(&thread, NULL, breaker, NULL));
    need(!pthread_join(thread, NULL));
    start = mremap(map_some(3 * MIB), 3 * MIB, 5 * MIB, MREMAP_MAYMOVE);
    need(start != MAP_FAILED);
    need(!munmap(start + MIB, MIB));
    need(!munmap(old, 7 * MIB));
    for (int i = 0; i < 2000; i++)
        need(!munmap(map_some(MIB), MIB));
}

static void timer(void)
{
    struct timespec turn, now;
    double late;

    need(!clock_gettime(CLOCK_MONOTONIC, &turn));
    for (int i = 0; i < 6; i++) {
        turn.tv_sec++;
        need(!clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &turn, NULL));
        move_break(STEP);
        need(!clock_gettime(CLOCK_MONOTONIC, &now));
        late = now.tv_sec - turn.tv_sec + (now.tv_nsec - turn.tv_nsec) / 1e9;
        if (late > 0.1)
            target_say("{\"event\": \"late\", \"seconds\": %f}\n", late);
    }
}

int main(int argc, char **argv)
{
    void *old = map_anonymous(7 * MIB);

    target_ready();
    if (argc > 1 && !strcmp(argv[1], "once"))
        once(old);
    else
        timer();
    target_done();
    return 0;
}
