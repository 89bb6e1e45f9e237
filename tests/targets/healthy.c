/* SPDX-License-Identifier: Apache-2.0
 * Programs without a leak that look like one.  healthy MODE:
 *   detached, joined   thread churn
 *   spawn, system      storms of posix_spawn (shares the address space until exec) and fork
 *   handed-over        workers map buffers and exit, the main thread unmaps them later
 *   malloc-pool        threads allocate much, and free what others allocated
 *   late-join          workers exit at once and are joined a second later, before "done"
 *   later-join         the same, joined only when stdin closes: at "done" they wait for their join
 */
#include "target.h"

#include <spawn.h>
#include <sys/wait.h>

#define WORKERS 8
#define ROUNDS 40
#define SLOTS 64
#define BUFFER (1UL << 20)

extern char **environ;

static void *say_own_tid(void *slot)
{
    __atomic_store_n((pid_t *)slot, own_tid(), __ATOMIC_RELEASE);
    return NULL;
}

static void detached(void)
{
    pthread_attr_t attributes;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED));
    for (int round = 0; round < ROUNDS; round++) {
        static pid_t tids[WORKERS];

        memset(tids, 0, sizeof(tids));
        for (int i = 0; i < WORKERS; i++) {
            pthread_t thread;

            need(!pthread_create(&thread, &attributes, say_own_tid, &tids[i]));
        }
        for (int i = 0; i < WORKERS; i++) {
            while (!__atomic_load_n(&tids[i], __ATOMIC_ACQUIRE))
                pause_ms(1);
            await_thread_gone(tids[i]);
        }
    }
}

static void start_workers(pthread_t *threads, void *(*routine)(void *), void *slots, size_t slot)
{
    for (int i = 0; i < WORKERS; i++)
        need(!pthread_create(&threads[i], NULL, routine, (char *)slots + i * slot));
}

static void join_workers(pthread_t *threads)
{
    for (int i = 0; i < WORKERS; i++)
        need(!pthread_join(threads[i], NULL));
}

static void joined(void)
{
    pthread_t threads[WORKERS];
    pid_t tids[WORKERS];

    for (int round = 0; round < ROUNDS; round++) {
        start_workers(threads, say_own_tid, tids, sizeof(*tids));
        join_workers(threads);
    }
}

static void *spawn_some(void *unused)
{
    char *arguments[] = {"true", NULL};

    for (int i = 0; i < 10; i++) {
        pid_t child;
        int status;

        need(!posix_spawnp(&child, "true", NULL, NULL, arguments, environ));
        need(waitpid(child, &status, 0) == child && status == 0);
    }
    return unused;
}

static void spawn_storm(void)
{
    pthread_t threads[WORKERS];
    char slots[WORKERS];

    start_workers(threads, spawn_some, slots, 1);
    join_workers(threads);
}

static void system_storm(void)
{
    for (int i = 0; i < 50; i++)
        need(system("exit 0") == 0);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();

        need(child >= 0);
        if (!child) {
            /* A fork's own mappings are in another address space. */
            map_anonymous(BUFFER);
            _exit(0);
        }
        need(waitpid(child, NULL, 0) == child);
    }
}

static void *map_buffer(void *slot)
{
    *(void **)slot = map_anonymous(BUFFER);
    return NULL;
}

static void handed_over(void)
{
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[WORKERS];
        void *buffers[WORKERS];

        start_workers(threads, map_buffer, buffers, sizeof(*buffers));
        join_workers(threads);
        for (int i = 0; i < WORKERS; i++)
            need(!munmap(buffers[i], BUFFER));
    }
}

static void *shared_slots[SLOTS];

static void *allocate_and_free(void *slot)
{
    unsigned seed = (unsigned long)slot;

    for (int i = 0; i < 3000; i++) {
        /* Mostly small, some above the mmap threshold. */
        size_t size = rand_r(&seed) % (rand_r(&seed) % 32 ? 4096 : BUFFER);
        char *block = malloc(size + 1);

        need(block);
        block[size] = 1;
        free(__atomic_exchange_n(&shared_slots[rand_r(&seed) % SLOTS], block, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

static void malloc_pool(void)
{
    pthread_t threads[WORKERS];
    char slots[WORKERS];

    for (int round = 0; round < 4; round++) {
        start_workers(threads, allocate_and_free, slots, 1);
        join_workers(threads);
    }
    for (int i = 0; i < SLOTS; i++)
        free(shared_slots[i]);
}

static void late_join(int after_done)
{
    pthread_t threads[WORKERS];
    pid_t tids[WORKERS] = {0};

    start_workers(threads, say_own_tid, tids, sizeof(*tids));
    for (int i = 0; i < WORKERS; i++) {
        while (!__atomic_load_n(&tids[i], __ATOMIC_ACQUIRE))
            pause_ms(1);
        await_thread_gone(tids[i]);
    }
    if (after_done)
        target_done();
    else
        pause_ms(1000);
    join_workers(threads);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";

    target_ready();
    if (!strcmp(mode, "detached"))
        detached();
    else if (!strcmp(mode, "joined"))
        joined();
    else if (!strcmp(mode, "spawn"))
        spawn_storm();
    else if (!strcmp(mode, "system"))
        system_storm();
    else if (!strcmp(mode, "handed-over"))
        handed_over();
    else if (!strcmp(mode, "malloc-pool"))
        malloc_pool();
    else if (!strcmp(mode, "late-join"))
        late_join(0);
    else if (!strcmp(mode, "later-join"))
        late_join(1);
    else
        return 64;
    if (strcmp(mode, "later-join"))
        target_done();
    return 0;
}
