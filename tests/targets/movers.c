/* SPDX-License-Identifier: Apache-2.0
 * Threads that move what they hold between places, stacks and registers, without a pause.
 * movers HANDLES MAPPINGS THREADS PLACES MIB: so many handles of threads that have exited, and pointers to
 * mappings; so many threads that move them between so many places, each on a page of its own; so much memory
 * besides, which nobody touches.  Each is always somewhere, at times in a register only.
 *
 * With a line on stdin it drops one of them; with the last one, it ends.
 */
#include "target.h"

#include <stdint.h>

#define MOST 256
#define LENGTH (64 * 1024)
#define ROUNDS 64

static uintptr_t in_bss[MOST / 4][PAGE / sizeof(uintptr_t)];
static uintptr_t *places[MOST];
static int place_count;
static pthread_barrier_t started;

static void *return_it(void *value)
{
    return value;
}

static __attribute__((noinline)) void wipe(void)
{
    volatile char area[1 << 15];

    for (size_t i = 0; i < sizeof(area); i++)
        area[i] = 0;
}

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uintptr_t take(uint64_t *state)
{
    for (;;) {
        uintptr_t value =
            __atomic_exchange_n(places[next(state) % place_count], 0, __ATOMIC_ACQ_REL);

        if (value)
            return value;
    }
}

static void put(uint64_t *state, uintptr_t value)
{
    for (;;) {
        uintptr_t empty = 0;

        if (__atomic_compare_exchange_n(places[next(state) % place_count], &empty, value, 0,
                                        __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
            return;
    }
}

/* In its own frame only. */
static __attribute__((noinline)) void hold_here(uint64_t *state)
{
    volatile uintptr_t here = take(state);

    for (int i = 0; i < ROUNDS; i++)
        (void)here;
    if (next(state) % 256 == 0)
        sched_yield();
    put(state, here);
    here = 0;
}

static __attribute__((noinline)) void hold_deep(uint64_t *state)
{
    volatile char frame[4096];

    for (size_t i = 0; i < sizeof(frame); i++)
        frame[i] = 0;
    hold_here(state);
    frame[0] = frame[1];
}

/* Across a system call, in a register that calls preserve or on the stack. */
static __attribute__((noinline)) void hold_in_call(uint64_t *state)
{
    uintptr_t value = take(state);

    if (next(state) % 64 == 0)
        usleep(200);
    put(state, value);
}

static __attribute__((noinline)) void hold_in_register(uint64_t *state)
{
    put(state, take(state));
}

/* Keeps nothing in its own frame: what is dropped must not be left there. */
static void *move(void *seed)
{
    void (*const ways[])(uint64_t *) = {hold_deep, hold_here, hold_in_call, hold_in_register};
    uint64_t state = (uintptr_t)seed;

    pthread_barrier_wait(&started);
    for (;;)
        ways[next(&state) % 4](&state);
    return seed;
}

static void make_places(int count)
{
    uintptr_t *shared =
        mmap(NULL, MOST * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    need(shared != MAP_FAILED && count <= MOST);
    for (int i = 0; i < count; i++) {
        switch (i % 4) {
        case 0:
            places[i] = in_bss[i / 4];
            break;
        case 1:
            need(!posix_memalign((void **)&places[i], PAGE, PAGE));
            break;
        case 2:
            places[i] = map_anonymous(PAGE);
            break;
        default:
            places[i] = shared + i * PAGE / sizeof(uintptr_t);
        }
        *places[i] = 0;
    }
    place_count = count;
}

static __attribute__((noinline)) void fill(int handles, int mappings, uint64_t *state)
{
    pthread_attr_t attributes;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, LENGTH));
    for (int i = 0; i < handles; i++) {
        pthread_t thread;

        need(!pthread_create(&thread, &attributes, return_it, NULL));
        target_say("{\"event\": \"handle\", \"secret\": %lu}\n", ~(unsigned long)thread);
        put(state, (uintptr_t)thread);
    }
    for (int i = 0; i < mappings; i++) {
        char *start = map_anonymous(LENGTH);

        start[0] = 1;
        target_say("{\"event\": \"mapping\", \"secret\": %lu}\n", ~(unsigned long)start);
        put(state, (uintptr_t)start);
    }
}

static __attribute__((noinline)) void drop_one(uint64_t *state)
{
    target_say("{\"event\": \"dropped\", \"secret\": %lu}\n", ~(unsigned long)take(state));
}

int main(int argc, char **argv)
{
    need(argc == 6);
    int handles = atoi(argv[1]), mappings = atoi(argv[2]), threads = atoi(argv[3]);
    uint64_t state = 88172645463325252ULL;
    size_t size = strtoul(argv[5], NULL, 10) << 20;
    char byte;

    make_places(atoi(argv[4]));
    need(!pthread_barrier_init(&started, NULL, threads + 1));
    if (size)
        memset(map_anonymous(size), 1, size);
    target_ready();
    fill(handles, mappings, &state);
    wipe();
    for (int i = 0; i < threads; i++) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, move, (void *)(0x9e3779b97f4a7c15UL * (i + 1))));
    }
    pthread_barrier_wait(&started);
    target_say("done\n");
    for (int left = handles + mappings; left && read(0, &byte, 1) == 1;)
        if (byte == '\n') {
            drop_one(&state);
            wipe();
            target_say("done\n");
            left--;
        }
    return 0;
}
