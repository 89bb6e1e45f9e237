/* SPDX-License-Identifier: Apache-2.0
 * Children that do little.  quiet MODE [N]:
 *   fills  a child maps memory at once, and from then on only fills it; for each line on stdin it moves the
 *          break; it ends with stdin
 *   maps   likewise, but it maps a page once more, some time after its start
 *   many   N children, each of which maps memory for the first time at another moment, and then in steps
 *          until stdin ends
 */
#include <poll.h>
#include <sys/wait.h>

#include "target.h"

#define MIB (1UL << 20)
#define SETTLED_MS 200
#define STEP_MS 50
#define FILLED (64UL << 10)
#define FIRST_STEP_MS 60

/* Not to be inlined: the test looks for their names. */
__attribute__((noinline)) static void fill_some(char *start)
{
    for (size_t at = 0; at < FILLED; at += PAGE)
        start[at] = 1;
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) static void move_break(void)
{
    need(sbrk(8 * MIB) != (void *)-1);
    __asm__ volatile("" ::: "memory");
}

static void fill(int maps_again)
{
    char *area = map_anonymous(1024 * MIB);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte;

    if (maps_again) {
        pause_ms(SETTLED_MS);
        map_anonymous(PAGE);
    }
    for (size_t done = 0; done < 1024 * MIB; done += FILLED) {
        if (poll(&input, 1, STEP_MS) > 0) {
            if (read(0, &byte, 1) != 1)
                return;
            if (byte == '\n')
                move_break();
        }
        fill_some(area + done);
    }
}

static void map_in_steps(int number)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};

    pause_ms(FIRST_STEP_MS + 5 * number);
    do
        map_anonymous(MIB);
    while (!poll(&input, 1, 4 * STEP_MS));
}

int main(int argc, char **argv)
{
    int many = argc > 2 ? atoi(argv[2]) : 1;

    need(argc > 1);
    for (int i = 0; i < many; i++) {
        pid_t child = fork();

        need(child >= 0);
        if (child)
            continue;
        if (strcmp(argv[1], "many") == 0)
            map_in_steps(i);
        else
            fill(!strcmp(argv[1], "maps"));
        _exit(0);
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}
