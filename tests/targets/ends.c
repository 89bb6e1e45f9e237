/* SPDX-License-Identifier: Apache-2.0
 * A worker maps memory and exits, then the whole program ends.  ends MODE:
 *   exit    the process exits
 *   killed  the process kills itself
 *   exec    the process becomes /bin/cat, and ends when stdin closes
 *   thread  the same by a thread that is not the leader, and takes over its tid
 *   stays   nothing ends before stdin closes
 * With "now" as second argument it does not wait for "go": it runs as a COMMAND of the tracer.
 */
#include "target.h"

#define LENGTH (24 * PAGE)

static void *map_and_exit(void *tid)
{
    *(volatile pid_t *)tid = own_tid();
    say_mapped(map_anonymous(LENGTH), LENGTH, own_tid(), own_tid());
    return NULL;
}

static void *become_cat(void *unused)
{
    execl("/bin/cat", "cat", (char *)NULL);
    return unused;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    pthread_t thread;
    pid_t worker;

    if (argc <= 2)
        target_ready();
    need(!pthread_create(&thread, NULL, map_and_exit, &worker));
    join_and_await(thread, &worker);
    if (!strcmp(mode, "killed"))
        raise(SIGKILL);
    if (!strcmp(mode, "exec"))
        execl("/bin/cat", "cat", (char *)NULL);
    if (!strcmp(mode, "thread")) {
        need(!pthread_create(&thread, NULL, become_cat, NULL));
        pthread_join(thread, NULL);
    }
    if (!strcmp(mode, "stays"))
        target_done();
    return 0;
}
