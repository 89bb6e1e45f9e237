/* SPDX-License-Identifier: Apache-2.0
 * Exited threads, and memory of exited threads, that somebody still can free, and twins that nobody can:
 * kept KIND [COUNT].  KIND:
 *   batch        COUNT quick threads and a slow one, all joined once all are done, again and again
 *   fork-join    COUNT threads that are joined in order; the first one runs until the end
 *   result       a thread maps memory and returns it; it is joined two seconds later, again and again
 *   pool         a pool of COUNT stacks of the program's own, each used three times
 *   ring         a thread for each message maps a buffer, which a consumer unmaps when COUNT stand; goes on
 *   linked       COUNT buffers in a list: each holds the only pointer to the next, a global that to the first
 *   list-lost    the same, and the global is set to NULL
 *   regions      COUNT threads leave a region of 64 MiB, aligned as a heap of malloc's is, which is lost
 *   lost         COUNT threads leave a buffer, which is lost
 *   living       the initial thread maps COUNT buffers and loses their addresses
 *   piling       a thread that never ends is created every 100 ms
 * Kinds that go on print "done" once they run; the others when their hazard has happened.
 */
#include "target.h"

#define MOST 256
#define SIZE (256UL << 10)
#define REGION (64UL << 20)

struct buffer {
    struct buffer *next;
};

static int count;
static void *ring[MOST];
static struct buffer *volatile first;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_done = PTHREAD_COND_INITIALIZER;
static int left;

static void *works(void *milliseconds)
{
    pause_ms((long)milliseconds);
    pthread_mutex_lock(&mutex);
    if (!--left)
        pthread_cond_signal(&all_done);
    pthread_mutex_unlock(&mutex);
    return milliseconds;
}

static void batch(void)
{
    pthread_t threads[MOST];

    for (int round = 0;; round++) {
        left = count + 1;
        for (int index = 0; index <= count; index++)
            need(!pthread_create(&threads[index], NULL, works,
                                 (void *)(index == count ? 3000L : 20L)));
        if (!round)
            target_say("done\n");
        pthread_mutex_lock(&mutex);
        while (left)
            pthread_cond_wait(&all_done, &mutex);
        pthread_mutex_unlock(&mutex);
        for (int index = 0; index <= count; index++)
            need(!pthread_join(threads[index], NULL));
    }
}

static void *pauses_or_returns(void *index)
{
    while (!index)
        pause();
    return index;
}

static void fork_join(void)
{
    pthread_t threads[MOST];

    for (long index = 0; index < count; index++)
        need(!pthread_create(&threads[index], NULL, pauses_or_returns, (void *)index));
    pause_ms(100);
    target_say("done\n");
    for (int index = 0; index < count; index++)
        need(!pthread_join(threads[index], NULL));
}

static void *maps(void *unused)
{
    (void)unused;
    char *made = map_anonymous(SIZE);

    *made = 1;
    return made;
}

static void result(void)
{
    for (int round = 0;; round++) {
        pthread_t thread;
        void *made;

        need(!pthread_create(&thread, NULL, maps, NULL));
        if (!round)
            target_say("done\n");
        pause_ms(2000);
        need(!pthread_join(thread, &made));
        need(!munmap(made, SIZE));
    }
}

static void pool(void)
{
    for (int round = 0; round < 3; round++) {
        pthread_t threads[MOST];

        for (int index = 0; index < count; index++) {
            pthread_attr_t attributes;

            if (!ring[index])
                ring[index] = map_anonymous(SIZE);
            need(!pthread_attr_init(&attributes));
            need(!pthread_attr_setstack(&attributes, ring[index], SIZE));
            left = 1 << 20;
            need(!pthread_create(&threads[index], &attributes, works, NULL));
        }
        for (int index = 0; index < count; index++)
            need(!pthread_join(threads[index], NULL));
    }
}

static void *puts_into_ring(void *at)
{
    *(void **)at = maps(NULL);
    return NULL;
}

static void messages(void)
{
    for (long number = 0;; number++) {
        pthread_t thread;
        void **at = &ring[number % count];

        if (*at)
            need(!munmap(*at, SIZE));
        need(!pthread_create(&thread, NULL, puts_into_ring, at));
        need(!pthread_join(thread, NULL));
        if (number == count)
            target_say("done\n");
        if (number >= count)
            pause_ms(50);
    }
}

static void *links(void *unused)
{
    struct buffer *made = maps(NULL);

    (void)unused;
    made->next = first;
    first = made;
    return NULL;
}

static void *leaves_region(void *unused)
{
    (void)unused;
    char *all =
        mmap(NULL, 2 * REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    need(all != MAP_FAILED);
    char *region = (char *)(((unsigned long)all + REGION - 1) & ~(REGION - 1));
    if (region > all)
        need(!munmap(all, region - all));
    need(!munmap(region + REGION, all + 2 * REGION - (region + REGION)));
    need(!mprotect(region, 1 << 20, PROT_READ | PROT_WRITE));
    *region = 1;
    return NULL;
}

static void *leaves(void *unused)
{
    maps(unused);
    return NULL;
}

static void *never_ends(void *unused)
{
    for (;;)
        pause();
    return unused;
}

static void one_after_the_other(void *(*routine)(void *))
{
    for (int index = 0; index < count; index++) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, routine, NULL));
        need(!pthread_join(thread, NULL));
    }
}

int main(int argc, char **argv)
{
    need(argc > 1);
    const char *kind = argv[1];
    count = argc > 2 ? atoi(argv[2]) : 8;
    need(count > 0 && count < MOST);
    target_ready();
    if (!strcmp(kind, "batch"))
        batch();
    if (!strcmp(kind, "fork-join"))
        fork_join();
    if (!strcmp(kind, "result"))
        result();
    if (!strcmp(kind, "ring"))
        messages();
    if (!strcmp(kind, "pool"))
        pool();
    if (!strcmp(kind, "linked") || !strcmp(kind, "list-lost"))
        one_after_the_other(links);
    if (!strcmp(kind, "list-lost"))
        first = NULL;
    if (!strcmp(kind, "regions"))
        one_after_the_other(leaves_region);
    if (!strcmp(kind, "lost"))
        one_after_the_other(leaves);
    if (!strcmp(kind, "living"))
        for (int index = 0; index < count; index++)
            maps(NULL);
    if (!strcmp(kind, "piling")) {
        target_say("done\n");
        for (;; pause_ms(100)) {
            pthread_t thread;

            need(!pthread_create(&thread, NULL, never_ends, NULL));
        }
    }
    target_done();
    return 0;
}
