/* SPDX-License-Identifier: Apache-2.0
 * A server that forks its workers: prefork WORKERS LEAKS [early].  Each worker starts LEAKS threads that nobody
 * joins, and one that is joined; it stays until the server's stdin closes.  With "early" the workers are forked,
 * and said, before the server is ready.
 */
#include "target.h"

#include <sys/wait.h>

static void work(int leaks, int ready, int ends)
{
    pthread_t thread;
    pid_t tid;
    char byte;

    for (int i = 0; i < leaks; i++) {
        tid = 0;
        need(!pthread_create(&thread, NULL, tell_tid_and_end, &tid));
        await_end(&tid);
    }
    tid = 0;
    need(!pthread_create(&thread, NULL, tell_tid_and_end, &tid));
    need(!pthread_join(thread, NULL));
    target_say("{\"event\": \"worker\", \"pid\": %d}\n", getpid());
    need(write(ready, "w", 1) == 1);
    while (read(ends, &byte, 1) > 0)
        ;
    _exit(0);
}

int main(int argc, char **argv)
{
    int workers = argc > 1 ? atoi(argv[1]) : 0;
    int leaks = argc > 2 ? atoi(argv[2]) : 0;
    int early = argc > 3;
    int ready[2], ends[2], begin[2];
    char byte;

    if (!early)
        target_ready();
    need(!pipe(ready) && !pipe(ends) && !pipe(begin));
    for (int i = 0; i < workers; i++) {
        pid_t pid = fork();

        need(pid >= 0);
        if (!pid) {
            close(ends[1]);
            need(read(begin[0], &byte, 1) == 1);
            work(leaks, ready[1], ends[0]);
        }
        if (early)
            target_say("{\"event\": \"forked\", \"pid\": %d}\n", pid);
    }
    if (early)
        target_ready();
    for (int i = 0; i < workers; i++)
        need(write(begin[1], "b", 1) == 1);
    for (int i = 0; i < workers; i++)
        need(read(ready[0], &byte, 1) == 1);
    target_done();
    close(ends[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
