/* SPDX-License-Identifier: Apache-2.0
 * Frees nearly all blocks of malloc, of the main thread and of threads with arenas of their own, but keeps the
 * last of each, so that malloc can give nothing back by itself.  malloc_free THREADS BLOCKS
 * At the end it says how many bytes are in the chunks that were freed.
 */
#include "target.h"

#define BLOCK 5000UL
#define CHUNK 5008UL /* with malloc's header, rounded up to 16 bytes */

static long blocks;
static pthread_barrier_t all;

static void *free_most(void *unused)
{
    char **kept = map_anonymous(blocks * sizeof(*kept));

    for (long i = 0; i < blocks; i++) {
        kept[i] = malloc(BLOCK);
        need(kept[i]);
        memset(kept[i], 1, BLOCK);
    }
    for (long i = 0; i < blocks - 1; i++)
        free(kept[i]);
    pthread_barrier_wait(&all);
    return unused;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[1]) : 0;
    pthread_t *threads = map_anonymous((count + 1) * sizeof(*threads));

    blocks = argc > 2 ? atol(argv[2]) : 0;
    need(blocks > 1);
    pthread_barrier_init(&all, NULL, count + 1);
    target_ready();
    for (int i = 0; i < count; i++)
        need(!pthread_create(&threads[i], NULL, free_most, NULL));
    free_most(NULL);
    for (int i = 0; i < count; i++)
        need(!pthread_join(threads[i], NULL));
    target_say("{\"event\": \"freed\", \"arenas\": %d, \"bytes\": %lu}\n", count + 1,
               (count + 1) * (blocks - 1) * CHUNK);
    target_done();
    return 0;
}
