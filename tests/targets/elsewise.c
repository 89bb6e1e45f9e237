/* SPDX-License-Identifier: Apache-2.0
 * Memory that is mapped by other calls than mmap: elsewise MODE [COUNT].
 *   shared   each thread attaches a System V segment of its own and leaves it
 *   aio      each thread sets a context of asynchronous input and output up and leaves it
 *   ended    the same as both, but each is ended by the main thread (shmdt, io_destroy)
 *   before   one of both is there before "ready", and is ended after it
 *   down     each thread maps memory that grows down, and lets it grow
 *   huge     each thread maps a page of a file on hugetlbfs: it gets a huge one
 * The lines "mapped" tell what is left at "done"; of a context only where it begins.
 */
#include "target.h"

#include <linux/aio_abi.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#define LENGTH (16 * PAGE)

static const char *mode = "";
static volatile pid_t worker;

static int is(const char *name)
{
    return !strcmp(mode, name);
}

static void *attach(void *unused)
{
    int segment = shmget(IPC_PRIVATE, LENGTH, IPC_CREAT | 0600);
    char *start;

    (void)unused;
    need(segment >= 0);
    start = shmat(segment, NULL, 0);
    need(start != (void *)-1);
    need(!shmctl(segment, IPC_RMID, NULL));
    worker = own_tid();
    if (is("shared"))
        say_mapped(start, LENGTH, worker, worker);
    return start;
}

static void *set_up(void *unused)
{
    aio_context_t context = 0;

    (void)unused;
    need(!syscall(SYS_io_setup, 64, &context));
    worker = own_tid();
    if (is("aio"))
        say_mapped((void *)context, PAGE, worker, worker);
    return (void *)context;
}

static void *grow_down(void *unused)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED;
    char *area = map_anonymous(1024 * PAGE);
    char *start = area + 1000 * PAGE;

    (void)unused;
    need(!munmap(area, 1024 * PAGE));
    need(mmap(start, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == start);
    for (int i = 0; i < 9; i++)
        start[-i * (long)PAGE] = 1;
    worker = own_tid();
    say_mapped(start - 8 * PAGE, 9 * PAGE, worker, worker);
    return start;
}

static void *map_huge(void *unused)
{
    int file = memfd_create("huge", MFD_HUGETLB);
    char *start;

    (void)unused;
    need(file >= 0);
    start = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, file, 0);
    need(start != MAP_FAILED);
    need(!close(file));
    worker = own_tid();
    say_mapped(start, PAGE, worker, worker);
    return start;
}

static void *run(void *(*routine)(void *))
{
    pthread_t thread;
    void *result;

    need(!pthread_create(&thread, NULL, routine, NULL));
    need(!pthread_join(thread, &result));
    await_thread_gone(worker);
    return result;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 1;
    void *segment = NULL, *context = NULL;

    mode = argc > 1 ? argv[1] : "";
    if (is("before")) {
        segment = run(attach);
        context = run(set_up);
    }
    target_ready();
    if (segment) {
        need(!shmdt(segment));
        need(!syscall(SYS_io_destroy, (aio_context_t)context));
        count = 0;
    }
    for (int i = 0; i < count; i++) {
        if (is("shared"))
            run(attach);
        else if (is("aio"))
            run(set_up);
        else if (is("down"))
            run(grow_down);
        else if (is("huge"))
            run(map_huge);
        else {
            need(!shmdt(run(attach)));
            need(!syscall(SYS_io_destroy, (aio_context_t)run(set_up)));
        }
    }
    target_done();
    return 0;
}
