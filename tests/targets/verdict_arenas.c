/* SPDX-License-Identifier: Apache-2.0
 * Threads that allocate from malloc's arenas, all at once, and are joined: verdict_arenas THREADS.
 * The arenas stay for later threads. A line tells of the heap (64 MiB, aligned) of each block.
 */
#include "target.h"

#define MOST 64
#define HEAP (64UL << 20)

static pthread_barrier_t all_here;
static void *blocks[MOST];

static void *allocates(void *slot)
{
    pthread_barrier_wait(&all_here);
    for (int i = 0; i < 100; i++) {
        *(void **)slot = malloc(1000);
        need(*(void **)slot);
    }
    /* Nobody leaves, and so gives its arena back, before all have one. */
    pthread_barrier_wait(&all_here);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST];
    int count = argc > 1 ? atoi(argv[1]) : 1;

    need(count <= MOST && !pthread_barrier_init(&all_here, NULL, count));
    target_ready();
    for (int i = 0; i < count; i++)
        need(!pthread_create(&threads[i], NULL, allocates, &blocks[i]));
    for (int i = 0; i < count; i++)
        need(!pthread_join(threads[i], NULL));
    for (int i = 0; i < count; i++)
        target_say("{\"event\": \"block\", \"heap\": %lu}\n",
                   (unsigned long)blocks[i] / HEAP * HEAP);
    target_done();
    return 0;
}
