/* SPDX-License-Identifier: Apache-2.0
 * Every call that `trace` shows, with ordinary and odd arguments, failing ones, and several threads
 * and processes, one after the other: two runs make the same calls in the same order in every task.
 *
 * Of the calls before "ready" and after "done" nothing is said here.
 */
#include "target.h"

#include <sys/wait.h>

#define MIB (1UL << 20)

#ifndef MAP_32BIT /* of x86-64 only */
#define MAP_32BIT 0
#endif

/* Without glibc's handlers; newer machines have no fork(2) of their own. */
static pid_t fork_by_kernel(void)
{
#ifdef SYS_fork
    return syscall(SYS_fork);
#else
    return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
#endif
}

static char *area;

OWN_FRAME static void maps(void)
{
    int file = syscall(SYS_memfd_create, "trace", 0);

    need(file >= 0 && !ftruncate(file, 16 * PAGE));
    need(mmap(NULL, 3 * PAGE, PROT_READ, MAP_SHARED, file, 2 * PAGE) != MAP_FAILED);
    need(mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED);
    close(file);
    area = map_anonymous(64 * PAGE);
    mmap(area, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    mmap(NULL, 10244 * 1024, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1,
         0);
    mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    mmap(NULL, PAGE, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT | MAP_GROWSDOWN, -1, 0);
    /* Those fail. */
    mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, 1000, 0);
    mmap(area, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    syscall(SYS_mmap, 1, PAGE, 0x40000001, 0, -1, 0x123);
    syscall(SYS_mmap, 0, ~0UL, 0x10, MAP_ANONYMOUS | 4, -1L, 0);
    syscall(SYS_mmap, 0, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 63 << 26, -1, 0);
}

static void protects(void)
{
    mprotect(area + PAGE, PAGE, PROT_NONE);
    mprotect(area + PAGE, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    mprotect(area + 1, PAGE, PROT_READ);
    mprotect(area, PAGE, PROT_READ | PROT_GROWSDOWN);
    syscall(SYS_mprotect, area, PAGE, 0x88);
    mprotect(NULL, PAGE, PROT_READ);
}

static void advises(void)
{
    for (int advice = 0; advice < 30; advice++)
        if (advice != 9)
            madvise(area + 8 * PAGE, PAGE, advice);
    madvise(area + 1, PAGE, MADV_DONTNEED);
    madvise(area, PAGE, 12345);
    madvise(area, PAGE, -1);
    madvise(NULL, 0, MADV_NORMAL);
}

static void moves(void)
{
    char *place = map_anonymous(16 * PAGE);
    char *moved = mremap(map_anonymous(PAGE), PAGE, 4 * PAGE, MREMAP_MAYMOVE);

    moved = mremap(moved, 4 * PAGE, 2 * PAGE, 0);
    moved = mremap(moved, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    mremap(moved, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, place);
    mremap(moved, 2 * PAGE, 0, 0);
    mremap(moved + 1, PAGE, PAGE, MREMAP_MAYMOVE);
    mremap(moved, PAGE, PAGE, MREMAP_FIXED, place);
    syscall(SYS_mremap, moved, PAGE, PAGE, 0x10, place);
    syscall(SYS_mremap, moved, PAGE, PAGE, 0x13, 0);
}

static void unmaps(void)
{
    munmap(area + 4 * PAGE, PAGE);
    munmap(area + 3 * PAGE, 3 * PAGE);
    munmap(NULL, PAGE);
    munmap(area, 0);
    munmap(area + 1, PAGE);
    munmap((void *)-PAGE, PAGE);
}

static void breaks(void)
{
    char *end = (char *)syscall(SYS_brk, 0);

    syscall(SYS_brk, end + 5 * PAGE + 1);
    syscall(SYS_brk, end);
    syscall(SYS_brk, 1);
}

/* A thread's exit clears its tid where clone put it: strace and we may look before or after. */
static void *work(void *argument)
{
    char *own = map_anonymous(8 * PAGE);

    munmap(own, 4 * PAGE);
    munmap(argument, 0);
    return NULL;
}

static void threads(void)
{
    for (int i = 0; i < 3; i++) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, work, NULL));
        pthread_join(thread, NULL);
    }
}

static char *raw_stack;

static int raw_child(void *argument)
{
    (void)argument;
    syscall(SYS_munmap, raw_stack, 0);
    syscall(SYS_exit, 3);
    return 0;
}

static void wait_for(pid_t child)
{
    need(child > 0 && waitpid(child, NULL, __WALL) == child);
}

struct arguments {
    unsigned long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls;
    unsigned long set_tid, set_tid_size, cgroup;
};

static void clones(void)
{
    static pid_t parent_tid, child_tid;
    static int pidfd;
    struct arguments arguments = {.flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | CLONE_PIDFD,
                                  .pidfd = (unsigned long)&pidfd,
                                  .child_tid = (unsigned long)&child_tid,
                                  .parent_tid = (unsigned long)&parent_tid,
                                  .exit_signal = SIGCHLD};
    pid_t child;

    raw_stack = map_anonymous(10 * PAGE);
    wait_for(clone(raw_child, raw_stack + 10 * PAGE,
                   CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND, NULL));
    wait_for(clone(raw_child, raw_stack + 10 * PAGE, CLONE_VM | CLONE_PARENT_SETTID | SIGCHLD, NULL,
                   &parent_tid));
    child = clone(raw_child, raw_stack + 10 * PAGE, CLONE_PIDFD | SIGCHLD, NULL, &pidfd);
    wait_for(child);
    close(pidfd);
    child = syscall(SYS_clone3, &arguments, sizeof(arguments));
    if (!child)
        _exit(4);
    wait_for(child);
    close(pidfd);
    arguments.flags = 0;
    child = syscall(SYS_clone3, &arguments, 64);
    if (!child)
        _exit(255);
    wait_for(child);
    /* Those fail. */
    syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0);
    syscall(SYS_clone, CLONE_THREAD | CLONE_PARENT_SETTID | CLONE_SETTLS, 1, &parent_tid, 3, 4);
    syscall(SYS_clone, CLONE_NEWNS | CLONE_FS | 65, 0, 0, 0, 0);
    arguments.flags = CLONE_THREAD | CLONE_SETTLS | 1UL << 40;
    arguments.stack_size = 0x7fff00;
    syscall(SYS_clone3, &arguments, sizeof(arguments));
    arguments.exit_signal = 1UL << 31;
    syscall(SYS_clone3, &arguments, 80);
    syscall(SYS_clone3, &arguments, 63);
    syscall(SYS_clone3, NULL, 88);
    syscall(SYS_clone3, 0x1000, 88);
}

static void forks(void)
{
    pid_t child = fork_by_kernel();

    if (!child) {
        munmap(map_anonymous(PAGE), PAGE);
        syscall(SYS_exit_group, 0x1234);
    }
    wait_for(child);
    child = vfork();
    if (!child)
        _exit(0);
    wait_for(child);
    child = fork_by_kernel();
    if (!child) {
        mprotect(area, PAGE, PROT_READ);
        raise(SIGKILL);
    }
    wait_for(child);
}

/* Memory that nobody has touched lately may not be there to be read without a fault. */
static char *touched(const char *string)
{
    for (const char *c = string; *(volatile const char *)c; c++)
        ;
    return (char *)string;
}

static const char leaf[] = "leaf";

static void executes(const char *self)
{
    char odd[] = "tab\there \"quoted\" back\\slash \1\0012 \377\n\r\f\v\033[31m";
    char *many[40];
    char *none[] = {NULL};
    char *variables[] = {touched("A=1"), NULL};
    pid_t child;

    for (int i = 0; i < 39; i++)
        many[i] = touched("x");
    many[39] = NULL;
    char *strange[] = {touched("a"), odd, touched("0123456789012345678901234567890123456789"),
                       NULL};
    char *unreadable[] = {touched("12345678901234567890123456789012"), (char *)16, NULL};

    execve(touched("/nonexistent/\n\"path\""), strange, variables);
    execve(touched("/nonexistent"), many, none);
    execve(touched("/nonexistent"), unreadable, NULL);
    syscall(SYS_execve, NULL, NULL, NULL);
    syscall(SYS_execve, 8, 16, 24);
    execve(touched("/"), none, none);
    child = vfork();
    if (!child) {
        execve(touched(self), (char *[]){touched(self), touched(leaf), NULL}, variables);
        _exit(1);
    }
    wait_for(child);
}

static void *become(void *self)
{
    execve(touched(self), (char *[]){self, touched(leaf), NULL}, (char *[]){NULL});
    return NULL;
}

/* A thread that is not the leader executes: the process goes on under the leader's tid. */
static void executes_in_thread(char *self)
{
    pid_t child = fork_by_kernel();

    if (!child) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, become, self));
        pthread_join(thread, NULL);
    }
    wait_for(child);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "leaf"))
        return 0;
    target_ready();
    maps();
    protects();
    advises();
    moves();
    unmaps();
    breaks();
    threads();
    clones();
    forks();
    executes(argv[0]);
    executes_in_thread(argv[0]);
    target_done();
    return 0;
}
