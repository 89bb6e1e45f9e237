/* SPDX-License-Identifier: Apache-2.0
 * Threads that end in every way there is, or do not end: lists_threads KIND COUNT [STACK_BYTES [BEFORE]].
 *
 * Each thread says where its stack is, its tid and its start routine, as JSON; BEFORE of them are made
 * before "ready", the rest after it. KIND:
 *   returns, exits, cancelled, c11, raw   end in that way and are never joined
 *   cleanup                               as cancelled, with a cleanup handler that runs
 *   user                                  return, on a stack that the program gave; never joined
 *   user-freed                            the same, and the program has unmapped every second stack
 *   user-joined, user-returned            the same, joined; the program has unmapped none, or all
 *   joined, reversed                      are joined before "done", in the order made or the other way
 *   detached, detached-late               are detached at birth, or once they have ended
 *   raw-detached                          as raw, detached at birth
 *   in-turn                               as late, but the first one runs until then, and is being joined
 *   late                                  return; joined when a second line comes, which "joined" answers
 *   leader                                return; then the initial thread ends and the process goes on
 *   live                                  wait for the end of the process
 *   raw-fork                              the same, and the process forks without telling glibc
 *   live-detached                         the same, detached
 *   kept                                  return, and their handles are kept; in all other kinds the program
 *                                         forgets handles and stacks once all is done
 */
#include "target.h"
#include <fcntl.h>
#include <sys/prctl.h>
#include <threads.h>

#define MOST 32768

static const char *kind;
static pthread_t made[MOST];
static pid_t tids[MOST];
static void *stacks[MOST];
static size_t stack_size;

static int is(const char *name)
{
    return !strcmp(kind, name);
}

static void say_thread(int index, unsigned long routine)
{
    pthread_attr_t attributes;
    void *low;
    size_t size, guard;

    need(!pthread_getattr_np(pthread_self(), &attributes));
    need(!pthread_attr_getstack(&attributes, &low, &size));
    need(!pthread_attr_getguardsize(&attributes, &guard));
    pthread_attr_destroy(&attributes);
    guard = stacks[index] ? 0 : mapped_guard(guard);
    target_say("{\"event\": \"thread\", \"start\": %lu, \"length\": %zu, \"tid\": %d, "
               "\"routine\": %lu}\n",
               (unsigned long)low - guard, size + guard, own_tid(), routine);
    __atomic_store_n(&tids[index], own_tid(), __ATOMIC_RELEASE);
}

static void *returns(void *index)
{
    say_thread((long)index, (unsigned long)returns);
    return index;
}

static void *exits(void *index)
{
    say_thread((long)index, (unsigned long)exits);
    pthread_exit(index);
}

static void *raw(void *index)
{
    say_thread((long)index, (unsigned long)raw);
    syscall(SYS_exit, 0);
    return index;
}

static void count_cleanup(void *count)
{
    ++*(int *)count;
}

static int cleanups;

static void *cleanup(void *index)
{
    pthread_cleanup_push(count_cleanup, &cleanups);
    say_thread((long)index, (unsigned long)cleanup);
    for (;;)
        pause();
    pthread_cleanup_pop(0);
    return index;
}

static void *waits(void *index)
{
    say_thread((long)index, (unsigned long)waits);
    for (;;)
        pause();
    return index;
}

static int c11(void *index)
{
    say_thread((long)index, (unsigned long)c11);
    return 0;
}

/* The first thread ends when a line comes; the others return. */
static void *in_turn(void *index)
{
    char byte = 0;

    say_thread((long)index, (unsigned long)in_turn);
    while (!index && byte != '\n')
        need(read(0, &byte, 1) == 1);
    return index;
}

static void *(*routine(void))(void *)
{
    if (is("exits"))
        return exits;
    if (is("raw") || is("raw-detached"))
        return raw;
    if (is("cleanup"))
        return cleanup;
    if (is("in-turn"))
        return in_turn;
    if (is("cancelled") || is("live") || is("live-detached") || is("raw-fork"))
        return waits;
    return returns;
}

static void make(long index, pthread_attr_t *attributes)
{
    int error;

    if (!strncmp(kind, "user", 4)) {
        stacks[index] = map_anonymous(stack_size);
        need(!pthread_attr_setstack(attributes, stacks[index], stack_size));
    }
    if (is("c11"))
        error = thrd_create((thrd_t *)&made[index], c11, (void *)index) != thrd_success;
    else
        error = pthread_create(&made[index], attributes, routine(), (void *)index);
    need(!error);
    while (!__atomic_load_n(&tids[index], __ATOMIC_ACQUIRE))
        sched_yield();
    if (is("cancelled") || is("cleanup"))
        need(!pthread_cancel(made[index]));
    if (is("in-turn") && !index)
        return;
    if (routine() != waits || is("cancelled"))
        while (!syscall(SYS_tgkill, getpid(), tids[index], 0))
            sched_yield();
}

/* What is done once all have ended. */
static void settle(int count)
{
    for (long index = 0; index < count; index++) {
        if (is("joined") || is("late") || is("in-turn") || is("user-joined") || is("user-returned"))
            need(!pthread_join(made[index], NULL));
        if (is("reversed"))
            need(!pthread_join(made[count - 1 - index], NULL));
        if (is("detached-late") || is("live-detached"))
            need(!pthread_detach(made[index]));
        if ((is("user-freed") && index % 2) || is("user-returned"))
            need(!munmap(stacks[index], stack_size));
    }
}

/* Nothing refers to the threads any more. */
static void forget(void)
{
    for (int index = 0; index < MOST; index++) {
        *(volatile pthread_t *)&made[index] = 0; /* volatile: or the compiler leaves it out */
        *(void *volatile *)&stacks[index] = NULL;
    }
}

static int leader_has_ended(void)
{
    char text[512] = "";
    int fd = open("/proc/self/stat", O_RDONLY);

    need(fd >= 0 && read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    return strstr(text, ") Z ") != NULL;
}

static void *outlives(void *unused)
{
    while (!leader_has_ended())
        sched_yield();
    target_done();
    _exit(0);
    return unused;
}

int main(int argc, char **argv)
{
    pthread_attr_t attributes;

    need(argc > 2);
    kind = argv[1];
    int count = atoi(argv[2]);
    stack_size = argc > 3 ? strtoul(argv[3], NULL, 0) : 256UL << 10;
    int before = argc > 4 ? atoi(argv[4]) : 0;
    need(count <= MOST && before <= count);
    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, stack_size));
    if (is("detached") || is("raw-detached"))
        need(!pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED));
    for (long index = 0; index < before; index++)
        make(index, &attributes);
    target_ready();
    for (long index = before; index < count; index++)
        make(index, &attributes);
    need(!is("cleanup") || cleanups == count);
    if (is("in-turn"))
        target_say("ended\n");
    if (!is("late"))
        settle(count);
    if (is("late")) {
        char byte = 0;

        target_say("ended\n");
        while (byte != '\n')
            need(read(0, &byte, 1) == 1);
        settle(count);
    }
    if (!is("kept"))
        forget();
    if (is("raw-fork")) {
        pid_t parent = getpid(), child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

        need(child >= 0);
        if (!child) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (getppid() == parent)
                pause();
            _exit(0);
        }
        target_say("{\"event\": \"child\", \"pid\": %d}\n", child);
    }
    if (is("leader")) {
        pthread_t other;

        need(!pthread_create(&other, NULL, outlives, NULL));
        pthread_exit(NULL);
    }
    target_done();
    return 0;
}
