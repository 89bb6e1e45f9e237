/* SPDX-License-Identifier: Apache-2.0
 * The leak in miniature: N times, map a 40 KiB stack, run a raw clone (another thread group in the
 * same address space) on it, wait for it, never unmap.
 */
#include "target.h"

#include <sys/wait.h>

#define STACK_SIZE 40960

static int child(void *unused)
{
    (void)unused;
    return 0;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 1;
    /* Not in the loop: a call there would leave copies of the pointers to stacks that nobody keeps. */
    size_t length = whole_pages(STACK_SIZE);

    target_ready();
    for (int i = 0; i < count; i++) {
        char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        need(stack != MAP_FAILED);
        pid_t tid = clone(child, stack + STACK_SIZE,
                          CLONE_SIGHAND | CLONE_FS | CLONE_VM | CLONE_FILES, NULL);
        need(tid > 0);
        need(waitpid(-1, NULL, __WCLONE | __WALL) == tid);
        say_mapped(stack, length, own_tid(), tid);
    }
    target_done();
    return 0;
}
