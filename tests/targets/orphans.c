/* SPDX-License-Identifier: Apache-2.0
 * Workers map memory and exit; the workers themselves are joined.  orphans MODE [COUNT [PAUSE_MS]]:
 *   kept         nothing more happens to it
 *   huge         the same, of one huge TLB page that the worker has written to
 *   hole         the main thread unmaps the middle: two pieces are left
 *   moved        the main thread moves it with mremap: it is still the worker's
 *   overlaid     the main thread maps over it with MAP_FIXED: it is gone
 *   unmapped     the main thread unmaps it, with its neighbours, in one call
 *   destroyed    an mremap of the main thread that *fails* unmaps part of it (before Linux 6.17
 *                the kernel clears the destination of MREMAP_FIXED before it looks at the source)
 *   undone       an mmap of the main thread with MAP_FIXED that *fails* removes it (a socket can't be
 *                mapped, which its driver says when the place has been cleared)
 *   half-moved   an mremap of the main thread moves half of it and fails at the other, sealed half
 *                (since Linux 6.17; before, and without mseal(2), nothing moves)
 *   tagged       the main thread unmaps every second one by a pointer with a tag in its top byte (arm64
 *                ignores that byte; elsewhere the call fails)
 *   stuck        the main thread's munmap fails, since its address is wrong by one
 *   doubled      the worker makes it by mremap from a shared mapping of the main thread's (old size 0)
 *   emptied      the worker makes it by mremap(MREMAP_DONTUNMAP) from one of the main thread's
 *   shrunk       the worker's is where one munmap has unmapped two mappings; the main thread unmaps just what
 *                the second of them had, and shortens the rest with mremap: two pieces are left
 *   leader-gone  as kept, but the thread group leader has called pthread_exit before "ready"
 * The lines "mapped" tell what is left at "done".
 */
#include "target.h"

#include <stdint.h>
#include <sys/socket.h>

#define LENGTH (16 * PAGE)
#define SYS_MSEAL 462 /* of all machines; younger than the C library */

struct worker {
    char *start;
    pid_t tid;
};

static const char *mode = "";

static int is(const char *name)
{
    return !strcmp(mode, name);
}

static size_t huge_page(void)
{
    FILE *figures = fopen("/proc/meminfo", "r");
    char line[256];
    size_t kib = 0;

    need(figures);
    while (fgets(line, sizeof(line), figures) && sscanf(line, "Hugepagesize: %zu kB", &kib) != 1)
        ;
    fclose(figures);
    need(kib);
    return kib << 10;
}

static char *map_at(char *start, size_t length)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

    return mmap(start, length, PROT_READ | PROT_WRITE, flags, -1, 0);
}

static char *map_huge(void)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    char *start = mmap(NULL, huge_page(), PROT_READ | PROT_WRITE, flags, -1, 0);

    need(start != MAP_FAILED);
    *start = 1;
    return start;
}

/* Where one call has unmapped two mappings: the ledger finds the second by its start still. */
static char *map_over_leftover(void)
{
    char *start = map_anonymous(LENGTH);

    need(!munmap(start, LENGTH));
    need(map_at(start, PAGE) == start);
    need(map_at(start + PAGE, PAGE) == start + PAGE);
    need(!munmap(start, 2 * PAGE));
    need(map_at(start, LENGTH) == start);
    return start;
}

static void *map_and_exit(void *argument)
{
    struct worker *worker = argument;

    worker->tid = own_tid();
    if (is("doubled") || is("emptied")) {
        worker->start = is("doubled") ? mremap(worker->start, 0, LENGTH, MREMAP_MAYMOVE)
                                      : mremap(worker->start, LENGTH, LENGTH,
                                               MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
        need(worker->start != MAP_FAILED);
        return NULL;
    }
    worker->start = is("huge")     ? map_huge()
                    : is("shrunk") ? map_over_leftover()
                                   : map_anonymous(LENGTH);
    return NULL;
}

static struct worker run_worker(void)
{
    struct worker worker = {0};
    pthread_t thread;

    if (is("doubled"))
        worker.start = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (is("emptied"))
        worker.start = map_anonymous(LENGTH);
    need(!pthread_create(&thread, NULL, map_and_exit, &worker));
    join_and_await(thread, &worker.tid);
    return worker;
}

static int is_mapped(char *start)
{
    return !msync(start, PAGE, MS_ASYNC) || errno != ENOMEM;
}

static void meddle(struct worker worker)
{
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    pid_t tid = worker.tid;

    if (is("kept") || is("leader-gone") || is("doubled") || is("emptied")) {
        say_mapped(worker.start, LENGTH, tid, tid);
    } else if (is("huge")) {
        say_mapped(worker.start, huge_page(), tid, tid);
    } else if (is("hole")) {
        need(!munmap(worker.start + 4 * PAGE, 3 * PAGE));
        say_mapped(worker.start, 4 * PAGE, tid, tid);
        say_mapped(worker.start + 7 * PAGE, LENGTH - 7 * PAGE, tid, tid);
    } else if (is("shrunk")) {
        need(!munmap(worker.start + PAGE, PAGE));
        need(mremap(worker.start, LENGTH, LENGTH / 2, 0) == worker.start);
        say_mapped(worker.start, PAGE, tid, tid);
        say_mapped(worker.start + 2 * PAGE, LENGTH / 2 - 2 * PAGE, tid, tid);
    } else if (is("moved")) {
        char *place = map_anonymous(2 * LENGTH);
        char *moved =
            mremap(worker.start, LENGTH, LENGTH + PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);

        need(moved == place);
        say_mapped(moved, LENGTH + PAGE, tid, tid);
    } else if (is("overlaid")) {
        need(mmap(worker.start, LENGTH, protection, flags | MAP_FIXED, -1, 0) == worker.start);
    } else if (is("unmapped")) {
        char *place = map_anonymous(3 * LENGTH);

        need(mremap(worker.start, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, place + LENGTH) ==
             place + LENGTH);
        need(!munmap(place, 3 * LENGTH));
    } else if (is("destroyed")) {
        char *island = map_anonymous(3 * PAGE);

        need(!munmap(island + PAGE, PAGE));
        need(mremap(island, 3 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, worker.start) ==
             MAP_FAILED);
        char *left = worker.start;

        if (msync(left, 4 * PAGE, MS_ASYNC) && errno == ENOMEM)
            left += 4 * PAGE;
        say_mapped(left, worker.start + LENGTH - left, tid, tid);
    } else if (is("undone")) {
        int unmappable = socket(AF_INET, SOCK_DGRAM, 0);

        need(unmappable >= 0);
        need(mmap(worker.start, LENGTH, PROT_READ, MAP_SHARED | MAP_FIXED, unmappable, 0) ==
             MAP_FAILED);
        need(!close(unmappable));
        if (is_mapped(worker.start))
            say_mapped(worker.start, LENGTH, tid, tid);
    } else if (is("half-moved")) {
        char *place = map_anonymous(LENGTH);
        char *middle = worker.start + LENGTH / 2;

        if (syscall(SYS_MSEAL, middle, LENGTH / 2, 0) == 0)
            need(mremap(worker.start, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, place) ==
                 MAP_FAILED);
        say_mapped(is_mapped(worker.start) ? worker.start : place, LENGTH / 2, tid, tid);
        say_mapped(middle, LENGTH / 2, tid, tid);
    } else if (is("tagged")) {
        /* The tag has its lowest bit set: in the ledger's keys it stands beside the address. */
        char *tagged = (char *)((uintptr_t)worker.start | 0xa5UL << 56);
        static int is_unmapped;

        if (is_unmapped ^= 1)
            munmap(tagged, LENGTH);
        if (is_mapped(worker.start))
            say_mapped(worker.start, LENGTH, tid, tid);
    } else if (is("stuck")) {
        need(munmap(worker.start + 1, LENGTH) == -1);
        say_mapped(worker.start, LENGTH, tid, tid);
    } else {
        _exit(64);
    }
}

static int count = 1;
static int pause_between;

static void hazard(void)
{
    target_ready();
    for (int i = 0; i < count; i++) {
        meddle(run_worker());
        pause_ms(pause_between);
    }
    target_done();
}

static void *hazard_without_leader(void *unused)
{
    char state = 0;

    (void)unused;
    while (state != 'Z') {
        FILE *status = fopen("/proc/self/stat", "r");

        need(status);
        need(fscanf(status, "%*d (orphans) %c", &state) == 1);
        fclose(status);
    }
    hazard();
    exit(0);
}

int main(int argc, char **argv)
{
    mode = argc > 1 ? argv[1] : "";
    count = argc > 2 ? atoi(argv[2]) : 1;
    pause_between = argc > 3 ? atoi(argv[3]) : 0;
    if (is("leader-gone")) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, hazard_without_leader, NULL));
        pthread_exit(NULL);
    }
    hazard();
    return 0;
}
