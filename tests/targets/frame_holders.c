/* SPDX-License-Identifier: Apache-2.0
 * Handles of COUNT exited threads that lie in one function's frame, in the middle of a stack:
 * frame_holders COUNT WAY.  WAY:
 *   main     the initial thread's: main -> keeps_them -> goes_deeper -> waits
 *   thread   the same on the stack of another thread
 *   handler  goes_deeper is a signal handler's callee: keeps_them was interrupted
 *   runs     as main, but the thread never waits
 */
#include "target.h"

#include <signal.h>

#define MOST 64

static int count;
static const char *way;
static volatile char sink;

static void *returns(void *argument)
{
    return argument;
}

__attribute__((noinline)) static void waits(void)
{
    volatile char local[3000];

    memset((char *)local, 1, sizeof(local));
    target_say("done\n");
    while (!strcmp(way, "runs"))
        sink++;
    for (;;)
        pause();
    sink = local[7];
}

__attribute__((noinline)) static void goes_deeper(int signal)
{
    volatile char local[500];

    memset((char *)local, signal, sizeof(local));
    waits();
    sink = local[7];
}

__attribute__((noinline)) static void keeps_them(void)
{
    pthread_t threads[MOST];

    for (int index = 0; index < count; index++)
        need(!pthread_create(&threads[index], NULL, returns, NULL));
    if (!strcmp(way, "handler")) {
        signal(SIGUSR1, goes_deeper);
        raise(SIGUSR1);
    } else {
        goes_deeper(0);
    }
    for (int index = 0; index < count; index++)
        need(!pthread_join(threads[index], NULL));
}

__attribute__((noinline)) static void *runs(void *argument)
{
    keeps_them();
    sink++;
    return argument;
}

int main(int argc, char **argv)
{
    pthread_t thread;

    need(argc == 3);
    count = atoi(argv[1]);
    way = argv[2];
    target_ready();
    if (strcmp(way, "thread"))
        return runs(NULL) != NULL;
    need(!pthread_create(&thread, NULL, runs, NULL));
    need(!pthread_join(thread, NULL));
    return 0;
}
