// SPDX-License-Identifier: Apache-2.0
/*
 * Calls whose stacks only the kernel side can get wrong.
 *
 *   ways   two ways to one call that part further up than a signature looks: often() maps and unmaps, much more
 *          than can be copied; seldom() maps and keeps
 *   fresh  threads map while a large buffer, not used yet, lies between mmap and their start routine
 */
#include "target.h"

#define APART __attribute__((noinline, noclone))
#define LENGTH (1UL << 20)
#define CALLS 60000
#define EACH 1000
#define THREADS 20

static volatile int sink;

APART static void *leaf(void)
{
    void *map = map_anonymous(LENGTH);

    sink++;
    return map;
}

APART static void *common(int depth, volatile char *above)
{
    volatile char buffer[200];
    void *map;

    buffer[depth] = above[0];
    map = depth ? common(depth - 1, buffer) : leaf();
    sink += buffer[depth];
    return map;
}

APART static void *often(void)
{
    volatile char buffer[64] = {0};
    void *map = common(8, buffer);

    sink++;
    return map;
}

APART static void *seldom(void)
{
    volatile char buffer[64] = {0};
    void *map = common(8, buffer);

    /* Not what often() does: the compiler would make one function of the two. */
    sink += 2;
    return map;
}

APART static void load(volatile char *buffer)
{
    leaf();
    buffer[0] = 1;
}

APART static void with_buffer(void)
{
    volatile char buffer[9000];

    load(buffer);
    sink += buffer[0];
}

static void *thread_main(void *argument)
{
    with_buffer();
    sink++;
    return argument;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    need(argc == 2);
    target_ready();
    if (!strcmp(argv[1], "fresh")) {
        for (int i = 0; i < THREADS; i++) {
            need(!pthread_create(&thread, NULL, thread_main, NULL));
            need(!pthread_join(thread, NULL));
        }
    } else {
        for (int i = 1; i <= CALLS; i++) {
            need(!munmap(often(), LENGTH));
            if (i % EACH == 0)
                seldom();
        }
    }
    target_done();
    return 0;
}
