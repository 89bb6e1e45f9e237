/* SPDX-License-Identifier: Apache-2.0
 * Very many children: fork_storm CHILDREN EVERY LEAKS.  Of so many children each EVERYth creates a thread and
 * joins it, and each LEAKSth (0: none) one that it doesn't; up to 32 run at once.
 */
#include "target.h"

#include <sys/wait.h>

#define AT_ONCE 32

static void *job(void *argument)
{
    *(pid_t *)argument = own_tid();
    return NULL;
}

static void run(int creates, int leaks)
{
    pthread_t thread;
    pid_t tid = 0;

    if (creates) {
        need(!pthread_create(&thread, NULL, job, &tid));
        need(!pthread_join(thread, NULL));
    }
    if (leaks) {
        tid = 0;
        need(!pthread_create(&thread, NULL, job, &tid));
        await_end(&tid);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    int children = argc > 1 ? atoi(argv[1]) : 0;
    int every = argc > 2 ? atoi(argv[2]) : 0;
    int leaks = argc > 3 ? atoi(argv[3]) : 0;

    for (int i = 1, live = 0; i <= children; i++) {
        pid_t pid = fork();

        need(pid >= 0);
        if (!pid)
            run(every && !(i % every), leaks && !(i % leaks));
        if (++live == AT_ONCE) {
            need(wait(NULL) > 0);
            live--;
        }
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}
