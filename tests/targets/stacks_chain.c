// SPDX-License-Identifier: Apache-2.0
// Calls mmap from call chains that are known by name; the length says which site it is.
// Length of site N: (0x1230 + N) pages.  Every mapping is unmapped at once.
//   0 plain chain      1 qsort callback   2 signal handler, on an alternate stack if asked
//   3 in a thread      4 dlopen'ed plugin 5 deep recursion   6 inlined function
// Usage: stacks_chain [plugin.so [wait]]; with "wait" it prints a line and stays until stdin ends.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#ifdef __clang__
#undef NOINLINE
#define NOINLINE __attribute__((noinline))
#endif
#define LENGTH(site) ((size_t)(0x1230 + (site)) * 4096)

static volatile int sink;

static NOINLINE void leaf(int site)
{
    char *at = mmap(NULL, LENGTH(site), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        abort();
    munmap(at, LENGTH(site));
    sink++;
}

static NOINLINE void middle(int site)
{
    volatile char buffer[200];
    memset((char *)buffer, site, sizeof(buffer));
    leaf(site);
    sink += buffer[site];
}

static NOINLINE void outer(int site)
{
    middle(site);
    sink++;
}

static int done_in_qsort;

static NOINLINE int compare(const void *a, const void *b)
{
    if (!done_in_qsort++)
        outer(1);
    return *(const int *)a - *(const int *)b;
}

static NOINLINE void sort(void)
{
    int numbers[] = {3, 1, 2};
    qsort(numbers, 3, sizeof(int), compare);
    sink += numbers[0];
}

static NOINLINE void on_signal(int number)
{
    outer(2);
    sink += number;
}

static NOINLINE void interrupted(void)
{
    raise(SIGUSR1);
    sink++;
}

static NOINLINE void *thread_main(void *unused)
{
    outer(3);
    sink++;
    return unused;
}

static NOINLINE int recursion(int depth)
{
    volatile char buffer[64];
    buffer[0] = (char)depth;
    if (depth == 0)
        outer(5);
    else
        sink += recursion(depth - 1);
    return buffer[0] + 1;
}

static inline __attribute__((always_inline)) void inlined(int site)
{
    char *at = mmap(NULL, LENGTH(site), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(at, LENGTH(site));
}

static NOINLINE void has_inlined(void)
{
    inlined(6);
    sink++;
}

static NOINLINE void in_plugin(const char *path)
{
    void *plugin = dlopen(path, RTLD_NOW);
    void (*entry)(void (*)(int)) = NULL;
    if (plugin)
        entry = (void (*)(void (*)(int)))dlsym(plugin, "plugin_entry");
    if (!entry)
        abort();
    entry(outer);
    sink++;
    dlclose(plugin);
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_signal};
    pthread_t thread;

    setvbuf(stdout, NULL, _IONBF, 0);
    outer(0);
    sort();
    sigaction(SIGUSR1, &action, NULL);
    interrupted();
    pthread_create(&thread, NULL, thread_main, NULL);
    pthread_join(thread, NULL);
    if (argc > 1 && argv[1][0])
        in_plugin(argv[1]);
    recursion(400);
    has_inlined();
    if (argc > 2) {
        puts("ready");
        while (getchar() != EOF)
            outer(0);
    }
    return 0;
}
