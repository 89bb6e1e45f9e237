/* SPDX-License-Identifier: Apache-2.0
 * One thread maps, another unmaps at once, in turns.  handover ROUNDS [REPLACE]
 * With REPLACE the other puts a mapping of its own in the place first (MAP_FIXED).
 * The last mapping stays, and the thread that made it lives on.
 */
#include "target.h"

#include <semaphore.h>

#define LENGTH (4 * PAGE)

static sem_t mapped, unmapped;
static void *place;

static void *unmap_what_comes(void *argument)
{
    unsigned long *rounds = argument;

    for (unsigned long i = 0; i < rounds[0]; i++) {
        need(!sem_wait(&mapped));
        if (rounds[1])
            need(mmap(place, LENGTH, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
                 place);
        need(!munmap(place, LENGTH));
        need(!sem_post(&unmapped));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    unsigned long rounds[] = {argc > 1 ? strtoul(argv[1], NULL, 0) : 1000, argc > 2};
    pthread_t other;

    need(!sem_init(&mapped, 0, 0) && !sem_init(&unmapped, 0, 0));
    need(!pthread_create(&other, NULL, unmap_what_comes, rounds));
    target_ready();
    for (unsigned long i = 0; i < rounds[0]; i++) {
        place = map_anonymous(LENGTH);
        need(!sem_post(&mapped));
        need(!sem_wait(&unmapped));
    }
    say_mapped(map_anonymous(LENGTH), LENGTH, own_tid(), own_tid());
    target_done();
    return 0;
}
