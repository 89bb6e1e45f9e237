// SPDX-License-Identifier: Apache-2.0
/* Threads that nobody joins, and then another program: exec_after COUNT becomes /bin/cat. */
#include "target.h"

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0;
    pthread_t thread;
    pid_t tid;

    target_ready();
    while (count--) {
        tid = 0;
        need(!pthread_create(&thread, NULL, tell_tid_and_end, &tid));
        await_end(&tid);
    }
    execl("/bin/cat", "cat", (char *)NULL);
    return 1;
}
