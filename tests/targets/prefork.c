/* SPDX-License-Identifier: Apache-2.0
 * A server that forks its workers: prefork WORKERS LEAKS.  Each worker starts LEAKS threads that nobody joins,
 * and one that is joined; it stays until the server's stdin closes.
 */
#include "target.h"

#include <sys/wait.h>

static void work(int leaks, int told, int ends)
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
    need(write(told, "w", 1) == 1);
    while (read(ends, &byte, 1) > 0)
        ;
    _exit(0);
}

int main(int argc, char **argv)
{
    int workers = argc > 1 ? atoi(argv[1]) : 0;
    int leaks = argc > 2 ? atoi(argv[2]) : 0;
    int told[2], ends[2];
    char byte;

    target_ready();
    need(!pipe(told) && !pipe(ends));
    for (int i = 0; i < workers; i++) {
        pid_t pid = fork();

        need(pid >= 0);
        if (!pid) {
            close(ends[1]);
            work(leaks, told[1], ends[0]);
        }
    }
    for (int i = 0; i < workers; i++)
        need(read(told[0], &byte, 1) == 1);
    target_done();
    close(ends[1]);
    while (wait(NULL) > 0)
        ;
    return 0;
}
