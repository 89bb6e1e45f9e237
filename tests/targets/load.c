/* SPDX-License-Identifier: Apache-2.0
 * As much as a process can have, or do at once.  load MODE:
 *   mappings N          N mappings stand; then they go, and a worker makes as many and exits
 *   threads N           N threads stand; then as many more mappings are made, one by each
 *   births N RATE       then N threads are created, RATE a second (0: all it can), each maps, unmaps and ends
 *   flood N MS          then N threads map and unmap for MS milliseconds as fast as they can
 * Every second mapping is read-only, so that no two of them become one area.
 */
#include "target.h"

#define LENGTH (2 * PAGE)
#define STACK_SIZE (16UL << 10)

static int amount;
static int milliseconds;
static char **mappings;
static pthread_barrier_t begins, ends;
static volatile long pairs;

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void *map_all(void *unused)
{
    for (int i = 0; i < amount; i++) {
        int protection = i % 2 ? PROT_READ : PROT_READ | PROT_WRITE;

        mappings[i] = mmap(NULL, LENGTH, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        need(mappings[i] != MAP_FAILED);
    }
    return unused;
}

static void in_thread(void *(*routine)(void *), void *argument)
{
    pthread_t thread;

    need(!pthread_create(&thread, NULL, routine, argument));
    need(!pthread_join(thread, NULL));
}

static void *map_once(void *unused)
{
    pthread_barrier_wait(&begins);
    map_anonymous(LENGTH);
    pthread_barrier_wait(&ends);
    pause();
    return unused;
}

static void *live_shortly(void *unused)
{
    need(!munmap(map_anonymous(LENGTH), LENGTH));
    return unused;
}

static void *flood(void *unused)
{
    double until = now() + milliseconds / 1000.0;
    long done = 0;

    while (now() < until)
        for (int i = 0; i < 16; i++, done++)
            need(!munmap(map_anonymous(LENGTH), LENGTH));
    __atomic_fetch_add(&pairs, done, __ATOMIC_RELAXED);
    return unused;
}

static void give_birth(double rate)
{
    double start = now();
    pthread_t thread;

    for (int i = 0; i < amount; i++) {
        need(!pthread_create(&thread, NULL, live_shortly, NULL));
        need(!pthread_join(thread, NULL));
        if (rate > 0 && i > (now() - start) * rate)
            pause_ms((i / rate - (now() - start)) * 1000 + 1);
    }
    target_say("{\"event\": \"created\", \"seconds\": %f}\n", now() - start);
}

static void start_threads(void *(*routine)(void *))
{
    pthread_attr_t attributes;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, STACK_SIZE));
    need(!pthread_attr_setguardsize(&attributes, 0));
    for (int i = 0; i < amount; i++) {
        pthread_t thread;

        need(!pthread_create(&thread, &attributes, routine, NULL));
    }
}

static void flood_in_threads(void)
{
    pthread_t *threads = calloc(amount, sizeof(*threads));

    for (int i = 0; i < amount; i++)
        need(!pthread_create(&threads[i], NULL, flood, NULL));
    for (int i = 0; i < amount; i++)
        need(!pthread_join(threads[i], NULL));
    target_say("{\"event\": \"flooded\", \"pairs\": %ld}\n", pairs);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    amount = argc > 2 ? atoi(argv[2]) : 1;
    milliseconds = argc > 3 ? atoi(argv[3]) : 0;
    mappings = calloc(amount, sizeof(*mappings));
    need(mappings && !pthread_barrier_init(&begins, NULL, amount + 1));
    need(!pthread_barrier_init(&ends, NULL, amount + 1));
    if (!strcmp(mode, "mappings"))
        map_all(NULL);
    if (!strcmp(mode, "threads"))
        start_threads(map_once);
    target_ready();
    if (!strcmp(mode, "mappings")) {
        for (int i = 0; i < amount; i++)
            need(!munmap(mappings[i], LENGTH));
        in_thread(map_all, NULL);
    }
    if (!strcmp(mode, "threads")) {
        pthread_barrier_wait(&begins);
        pthread_barrier_wait(&ends);
    }
    if (!strcmp(mode, "births"))
        give_birth(milliseconds);
    if (!strcmp(mode, "flood"))
        flood_in_threads();
    target_done();
    return 0;
}
