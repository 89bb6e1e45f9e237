/* SPDX-License-Identifier: Apache-2.0
 * Changes glibc's thread lists as fast as it can, while a few threads stay on them that ended and were
 * never joined: lists_churn joined|detached|user CHURNERS DEAD [CALM_US].
 *
 * CHURNERS threads each make threads, one after the other, that end at once. A detached one is never on
 * the list once it has ended; a joined one is, until its join, so at most CHURNERS are at any moment.
 * With "user" the stacks are the program's. Prints how often the lists changed when stdin has closed.
 */
#include "target.h"

#define MOST_DEAD 1000

static const char *kind;
static pid_t tids[MOST_DEAD];
static long made;
static long calm_us;
static volatile int over;

static void *dead(void *place)
{
    return tell_tid_and_end(place);
}

static void *churned(void *unused)
{
    return unused;
}

static void *churn(void *unused)
{
    pthread_attr_t attributes;
    size_t size = 128UL << 10;
    pthread_t thread;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, size));
    if (!strcmp(kind, "user"))
        need(!pthread_attr_setstack(&attributes, map_anonymous(size), size));
    if (!strcmp(kind, "detached"))
        need(!pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED));
    while (!over) {
        int error = pthread_create(&thread, &attributes, churned, unused);

        if (error == EAGAIN) {
            sched_yield();
            continue;
        }
        need(!error);
        if (strcmp(kind, "detached"))
            need(!pthread_join(thread, NULL));
        __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED);
        if (calm_us)
            usleep(calm_us);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    need(argc > 3);
    kind = argv[1];
    calm_us = argc > 4 ? atol(argv[4]) : 0;
    need(atoi(argv[3]) <= MOST_DEAD);
    for (int i = 0; i < atoi(argv[3]); i++) {
        need(!pthread_create(&thread, NULL, dead, &tids[i]));
        await_end(&tids[i]);
    }
    target_say("{\"event\": \"routines\", \"dead\": %lu, \"churned\": %lu}\n", (unsigned long)dead,
               (unsigned long)churned);
    target_ready();
    for (int i = 0; i < atoi(argv[2]); i++)
        need(!pthread_create(&thread, NULL, churn, NULL));
    target_done();
    target_say("{\"event\": \"churned\", \"made\": %ld}\n", made);
    return 0;
}
