/* SPDX-License-Identifier: Apache-2.0
 * Two sites that differ in little: the same size, the same depth, the same immediate caller
 * (pthread_create), called from two sibling functions.  siblings COUNT: so many leaks from each,
 * as fast as they go.  The lines "left" and "right" tell the tids of the threads of each.
 */
#include "target.h"

#include <pthread.h>

static pthread_attr_t attributes;

static void *tell_tid(void *place)
{
    __atomic_store_n((pid_t *)place, own_tid(), __ATOMIC_RELEASE);
    return NULL;
}

OWN_FRAME static pthread_t create(pid_t *place)
{
    pthread_t thread;

    need(!pthread_create(&thread, &attributes, tell_tid, place));
    return thread;
}

/* The asm keeps the compiler from making one function of both, or a jump of the call. */
OWN_FRAME static pthread_t left(pid_t *place)
{
    pthread_t thread = create(place);

    __asm__ volatile("nop" ::: "memory");
    return thread;
}

OWN_FRAME static pthread_t right(pid_t *place)
{
    pthread_t thread = create(place);

    __asm__ volatile("nop; nop" ::: "memory");
    return thread;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 10;

    pid_t *tids = calloc(2 * count, sizeof(*tids));

    need(tids != NULL);
    need(!pthread_attr_init(&attributes));
    /* The smallest that glibc takes: 16 KiB on x86-64, 128 KiB on arm64. */
    need(!pthread_attr_setstacksize(&attributes, sysconf(_SC_THREAD_STACK_MIN) + (48 << 10)));
    target_ready();
    for (int i = 0; i < count; i++) {
        left(&tids[2 * i]);
        right(&tids[2 * i + 1]);
    }
    for (int i = 0; i < 2 * count; i++) {
        pid_t tid;

        while (!(tid = __atomic_load_n(&tids[i], __ATOMIC_ACQUIRE)))
            sched_yield();
        target_say("{\"event\": \"%s\", \"tid\": %d}\n", i % 2 ? "right" : "left", tid);
    }
    target_done();
    return 0;
}
