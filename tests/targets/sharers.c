/* SPDX-License-Identifier: Apache-2.0
 * Tasks of other thread groups that share the address space (CLONE_VM without CLONE_THREAD) and
 * exist before the tracer attaches.  After "go" each of them maps memory and exits.
 */
#include "target.h"

#include <sys/wait.h>

#define SHARERS 3
#define LENGTH (32 * PAGE)
#define STACK_SIZE (16 * PAGE)

static int started[2];

static int map_and_exit(void *unused)
{
    char byte;

    (void)unused;
    if (read(started[0], &byte, 1) != 1)
        return 1;
    say_mapped(map_anonymous(LENGTH), LENGTH, own_tid(), own_tid());
    return 0;
}

int main(void)
{
    pid_t tids[SHARERS];

    need(!pipe(started));
    for (int i = 0; i < SHARERS; i++) {
        char *stack = map_anonymous(STACK_SIZE);

        tids[i] = clone(map_and_exit, stack + STACK_SIZE, CLONE_VM | CLONE_FS | CLONE_FILES, NULL);
        need(tids[i] > 0);
        target_say("{\"event\": \"sharer\", \"tgid\": %d}\n", tids[i]);
    }
    target_ready();
    for (int i = 0; i < SHARERS; i++) {
        int status;

        need(write(started[1], "", 1) == 1);
        need(waitpid(-1, &status, __WALL) > 0 && status == 0);
    }
    target_done();
    return 0;
}
