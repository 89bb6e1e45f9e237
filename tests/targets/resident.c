/* SPDX-License-Identifier: Apache-2.0
 * Fills memory in known shares.  resident MODE:
 *   heap   the main thread leaks small blocks: two places, 3 to 1
 *   arena  a thread leaks small blocks, the main thread others from its own heap
 *   pool   one place fills 64 MiB and gives all back, another keeps 32 MiB
 *   cow    a child is forked and waits; the parent writes to 32 MiB that it had, and fills 16 MiB
 *   huge   one place fills 64 MiB of huge pages where the kernel gives them
 *   sizes  two places leak blocks of 64 bytes to 1 MiB, 3 to 1
 *   moved  a block grows by realloc, which moves it each time, since the memory behind it is in use
 *   back   one place fills 48 MiB, of which 16 are given back by MADV_DONTNEED, 8 by munmap
 *   shared two mappings of the same 32 MiB of shared memory are filled by one place, half of them by another
 *   read   the kernel fills a fresh buffer for read(2)
 *   many   64 threads are created one after the other, and each leaks 1 MiB by malloc
 * At the end it says which function filled how many bytes that it keeps.
 */
#include <fcntl.h>
#include <sys/wait.h>

#include "target.h"

#define MIB (1UL << 20)
#define BLOCK 1000UL

/* Not to be inlined, nor merged with a function of the same code: the test looks for their names. */
#define PLACE __attribute__((noinline, no_icf)) static

static void keep_code(void)
{
    __asm__ volatile("" ::: "memory");
}

static void fill(char *start, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += PAGE)
        start[at] = 1;
}

PLACE void leak_much(void)
{
    for (int i = 0; i < 3; i++) {
        char *block = malloc(BLOCK);

        need(block);
        memset(block, 1, BLOCK);
    }
    keep_code();
}

PLACE void leak_little(void)
{
    char *block = malloc(BLOCK);

    need(block);
    memset(block, 1, BLOCK);
    keep_code();
}

static void leak_both(size_t bytes)
{
    for (size_t done = 0; done < bytes; done += 4 * BLOCK) {
        leak_much();
        leak_little();
    }
}

static void say(const char *place, size_t bytes)
{
    target_say("{\"event\": \"filled\", \"place\": \"%s\", \"bytes\": %zu}\n", place, bytes);
}

static void heap(void)
{
    leak_both(48 * MIB);
    say("leak_much", 36 * MIB);
    say("leak_little", 12 * MIB);
}

static void *leaks_in_arena(void *bytes)
{
    for (size_t done = 0; done < (size_t)bytes; done += 3 * BLOCK)
        leak_much();
    return NULL;
}

static void arena(void)
{
    pthread_t thread;

    need(!pthread_create(&thread, NULL, leaks_in_arena, (void *)(48 * MIB)));
    for (size_t done = 0; done < 16 * MIB; done += BLOCK)
        leak_little();
    need(!pthread_join(thread, NULL));
    say("leak_much", 48 * MIB);
    say("leak_little", 16 * MIB);
}

PLACE void *fill_pool(void)
{
    char *start = map_anonymous(64 * MIB);

    need(!madvise(start, 64 * MIB, MADV_NOHUGEPAGE));
    fill(start, 64 * MIB);
    keep_code();
    return start;
}

PLACE void fill_kept(void)
{
    char *start = map_anonymous(32 * MIB);

    need(!madvise(start, 32 * MIB, MADV_NOHUGEPAGE));
    fill(start, 32 * MIB);
    keep_code();
}

static void pool(void)
{
    char *start = fill_pool();

    fill_kept();
    need(!madvise(start, 64 * MIB, MADV_DONTNEED));
    say("fill_pool", 0);
    say("fill_kept", 32 * MIB);
}

PLACE void write_again(char *start)
{
    fill(start, 32 * MIB);
    keep_code();
}

PLACE void fill_new(char *start)
{
    fill(start, 16 * MIB);
    keep_code();
}

static void cow(char *old)
{
    int pipes[2];
    char byte;
    pid_t child;

    need(!pipe(pipes));
    child = fork();
    need(child >= 0);
    if (!child) {
        close(pipes[1]);
        _exit(read(pipes[0], &byte, 1) != 0);
    }
    write_again(old);
    fill_new(old + 32 * MIB);
    close(pipes[1]);
    need(waitpid(child, NULL, 0) == child);
    say("write_again", 0);
    say("fill_new", 16 * MIB);
}

PLACE void fill_huge(void)
{
    char *start = map_anonymous(66 * MIB);

    start += 2 * MIB - (unsigned long)start % (2 * MIB);
    madvise(start, 64 * MIB, MADV_HUGEPAGE); /* a kernel may lack them */
    fill(start, 64 * MIB);
    keep_code();
}

PLACE void leak_blocks(size_t bytes)
{
    for (size_t done = 0, block = 64; done < bytes;
         done += block, block = block < MIB ? 2 * block : 64) {
        char *start = malloc(block);

        need(start);
        memset(start, 1, block);
    }
    keep_code();
}

PLACE void leak_many_blocks(size_t bytes)
{
    leak_blocks(bytes);
    keep_code();
}

PLACE void leak_few_blocks(size_t bytes)
{
    leak_blocks(bytes);
    keep_code();
}

static void sizes(void)
{
    for (int i = 0; i < 4; i++) {
        leak_many_blocks(12 * MIB);
        leak_few_blocks(4 * MIB);
    }
    say("leak_many_blocks", 48 * MIB);
    say("leak_few_blocks", 16 * MIB);
}

PLACE char *grow_block(char *start, size_t from, size_t to)
{
    start = realloc(start, to);
    need(start);
    memset(start + from, 1, to - from);
    keep_code();
    return start;
}

static void moved(void)
{
    char *start = grow_block(NULL, 0, MIB);

    for (size_t size = MIB; size < 48 * MIB; size += MIB) {
        char *old = start;

        /* The kernel maps downwards, so what is mapped now is before the block: it can't grow where it is. */
        mmap((void *)((unsigned long)(start + size + PAGE) & -PAGE), PAGE, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        start = grow_block(start, size, size + MIB);
        need(start != old);
    }
    say("grow_block", 48 * MIB);
}

PLACE char *fill_most(void)
{
    char *start = map_anonymous(48 * MIB);

    need(!madvise(start, 48 * MIB, MADV_NOHUGEPAGE));
    fill(start, 48 * MIB);
    keep_code();
    return start;
}

static void back(void)
{
    char *start = fill_most();

    need(!madvise(start, 16 * MIB, MADV_DONTNEED));
    need(!munmap(start + 16 * MIB, 8 * MIB));
    say("fill_most", 24 * MIB);
}

PLACE void fill_first(char *start)
{
    fill(start, 32 * MIB);
    keep_code();
}

PLACE void fill_again(char *start)
{
    fill(start, 16 * MIB);
    keep_code();
}

static void shared(void)
{
    int fd = syscall(SYS_memfd_create, "resident", 0);
    char *first, *again;

    need(fd >= 0);
    need(!ftruncate(fd, 32 * MIB));
    first = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    again = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(first != MAP_FAILED);
    need(again != MAP_FAILED);
    fill_first(first);
    fill_again(again);
    say("fill_first", 32 * MIB);
    say("fill_again", 16 * MIB);
}

PLACE void read_much(int fd)
{
    char *start = map_anonymous(32 * MIB);

    need(!madvise(start, 32 * MIB, MADV_NOHUGEPAGE));
    for (size_t done = 0; done < 32 * MIB; done += MIB)
        need(read(fd, start + done, MIB) == (ssize_t)MIB);
    keep_code();
}

static void by_read(void)
{
    int fd = open("/dev/zero", O_RDONLY);

    need(fd >= 0);
    read_much(fd);
    say("read_much", 32 * MIB);
}

static void *leaks_one(void *unused)
{
    for (size_t done = 0; done < MIB; done += BLOCK)
        leak_little();
    return unused;
}

static void many(void)
{
    pthread_t threads[64];

    for (int i = 0; i < 64; i++)
        need(!pthread_create(&threads[i], NULL, leaks_one, NULL));
    for (int i = 0; i < 64; i++)
        need(!pthread_join(threads[i], NULL));
    say("leak_little", 64 * MIB);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    char *old = map_anonymous(48 * MIB);

    need(!madvise(old, 48 * MIB, MADV_NOHUGEPAGE));
    if (!strcmp(mode, "cow"))
        fill(old, 32 * MIB);
    target_ready();
    if (!strcmp(mode, "heap"))
        heap();
    else if (!strcmp(mode, "arena"))
        arena();
    else if (!strcmp(mode, "pool"))
        pool();
    else if (!strcmp(mode, "cow"))
        cow(old);
    else if (!strcmp(mode, "many"))
        many();
    else if (!strcmp(mode, "sizes"))
        sizes();
    else if (!strcmp(mode, "moved"))
        moved();
    else if (!strcmp(mode, "back"))
        back();
    else if (!strcmp(mode, "shared"))
        shared();
    else if (!strcmp(mode, "read"))
        by_read();
    else if (!strcmp(mode, "huge")) {
        fill_huge();
        say("fill_huge", 64 * MIB);
    } else
        return 2;
    target_done();
    return 0;
}
