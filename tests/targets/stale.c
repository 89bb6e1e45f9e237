/* SPDX-License-Identifier: Apache-2.0
 * Leaves rows behind in the tracer's ledger: mappings that are overlaid, as Java overlays the guard
 * pages of its stacks, or that lie side by side, and end by one munmap of the whole.  No address is
 * ever used twice.  stale ROUNDS: at each "go" so many rounds, each with a thread of its own; one
 * thread leaves a mapping for good.
 */
#include "target.h"

#define STACK (64 * PAGE)
#define LENGTH (16 * PAGE)
#define DISTANCE (1UL << 21)

static char *place = (char *)0x100000000000UL;

static char *map_at(char *start, unsigned long length, int flags)
{
    char *mapped =
        mmap(start, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

    need(mapped == start);
    return mapped;
}

static void *overlay(void *stack)
{
    map_at(stack, 2 * PAGE, MAP_FIXED);
    map_at((char *)stack + 3 * PAGE, PAGE, MAP_FIXED);
    return NULL;
}

static void *map_and_exit(void *start)
{
    say_mapped(map_at(start, LENGTH, MAP_FIXED_NOREPLACE), LENGTH, own_tid(), own_tid());
    return NULL;
}

static void run_thread(char *stack, void *(*routine)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;

    map_at(stack, STACK, MAP_FIXED_NOREPLACE);
    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstack(&attributes, stack, STACK));
    need(!pthread_create(&thread, &attributes, routine, argument));
    need(!pthread_join(thread, NULL));
}

static void one_round(void)
{
    char *stack = place;
    char *neighbour = stack + STACK;

    run_thread(stack, overlay, stack);
    map_at(neighbour, PAGE, MAP_FIXED_NOREPLACE);
    need(!munmap(stack, STACK + PAGE));
    place += DISTANCE;
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1;

    for (;;) {
        target_ready();
        for (int i = 0; i < rounds; i++)
            one_round();
        run_thread(place, map_and_exit, place + STACK);
        need(!munmap(place, STACK));
        place += DISTANCE;
        target_say("done\n");
    }
}
