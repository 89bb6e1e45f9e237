/* SPDX-License-Identifier: Apache-2.0
 * Stacks that the program maps itself, and what becomes of them: own_stacks MODE [COUNT].
 *   vfork        a child of CLONE_VM|CLONE_VFORK ran on each; none is unmapped
 *   lent         the same, on a piece of the stack that the caller stands on (as musl's posix_spawn
 *                does), in a thread whose stack the program mapped and unmaps
 *   guard-left   all is unmapped but the guard page
 *   guard-fixed  the guard page is a mapping of its own over the low end; clone3 names both
 *   guard-over   the same with a guard that is put there once the thread runs, as the JVM does
 *   switched     a thread goes over to one by itself, and ends there by a bare exit
 *   visited      a thread goes over to one, maps memory there, comes back and ends
 *   reused       a thread goes over to each, unmaps it when it is back; the kernel gives its place to
 *                another mapping, of the main thread
 *   forks        fork, vfork and posix_spawn: no thread is made
 * The lines "mapped" tell what is left at "done".
 */
#include "target.h"

#include <linux/sched.h>
#include <spawn.h>
#include <stdint.h>
#include <sys/wait.h>
#include <ucontext.h>

#define GUARD PAGE
#define SIZE (16 * PAGE)

static const char *mode = "";

static int is(const char *name)
{
    return !strcmp(mode, name);
}

static int leave_at_once(void *unused)
{
    (void)unused;
    return 0;
}

static pid_t run_on(char *top, int flags)
{
    pid_t task = clone(leave_at_once, top, CLONE_VM | flags | SIGCHLD, NULL);

    need(task > 0);
    need(waitpid(task, NULL, 0) == task);
    return task;
}

static void vfork_child(void)
{
    char *stack = map_anonymous(SIZE);

    say_mapped(stack, SIZE, own_tid(), run_on(stack + SIZE, CLONE_VFORK));
}

static void *lend(void *unused)
{
    char piece[4 * PAGE] __attribute__((aligned(16)));

    (void)unused;
    run_on(piece + sizeof(piece), CLONE_VFORK);
    return NULL;
}

/* Its own stack is left, and nobody's but its own. */
static void lent_piece(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    char *stack = map_anonymous(SIZE);

    need(!pthread_attr_init(&attributes) && !pthread_attr_setstack(&attributes, stack, SIZE));
    need(!pthread_create(&thread, &attributes, lend, NULL));
    need(!pthread_join(thread, NULL));
    need(!munmap(stack, SIZE));
}

static void guard_left(void)
{
    char *stack = map_anonymous(GUARD + SIZE);

    need(!mprotect(stack, GUARD, PROT_NONE));
    pid_t task = run_on(stack + GUARD + SIZE, 0);
    need(!munmap(stack + GUARD, SIZE));
    say_mapped(stack, GUARD, own_tid(), task);
}

static void put_guard(char *stack)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

    need(mmap(stack, GUARD, PROT_NONE, flags, -1, 0) == stack);
}

/* The child touches nothing: it ends by the bare system call. */
static pid_t clone3_on(char *stack, size_t size)
{
    struct clone_args arguments = {.flags = CLONE_VM | CLONE_FS | CLONE_FILES,
                                   .exit_signal = SIGCHLD,
                                   .stack = (uintptr_t)stack,
                                   .stack_size = size};
#if defined(__aarch64__)
    register long number asm("x8") = SYS_clone3;
    register long result asm("x0") = (long)&arguments;
    register long bytes asm("x1") = sizeof(arguments);

    asm volatile("svc 0\n\tcbnz x0, 1f\n\tmov x8, #93\n\tsvc 0\n1:"
                 : "+r"(result)
                 : "r"(number), "r"(bytes)
                 : "memory");
#else
    long result;

    asm volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\tmov $60, %%eax\n\txor %%edi, %%edi\n\t"
                 "syscall\n1:"
                 : "=a"(result)
                 : "a"(SYS_clone3), "D"(&arguments), "S"(sizeof(arguments))
                 : "rcx", "r11", "memory");
#endif
    need(result > 0);
    return result;
}

static void guard_fixed(void)
{
    char *stack = map_anonymous(SIZE);
    pid_t task;

    if (is("guard-fixed"))
        put_guard(stack);
    task = clone3_on(stack, SIZE);
    need(waitpid(task, NULL, 0) == task);
    if (is("guard-over"))
        put_guard(stack);
    say_mapped(stack + GUARD, SIZE - GUARD, own_tid(), task);
    say_mapped(stack, GUARD, own_tid(), own_tid());
}

static ucontext_t home, away;
static volatile pid_t visitor;

static void end_there(void)
{
    visitor = own_tid();
    syscall(SYS_exit, 0);
}

static void map_there(void)
{
    void *used = map_anonymous(PAGE);

    visitor = own_tid();
    need(!munmap(used, PAGE));
}

static void *go_over(void *stack)
{
    need(!getcontext(&away));
    away.uc_stack.ss_sp = stack;
    away.uc_stack.ss_size = SIZE;
    away.uc_link = &home;
    makecontext(&away, is("switched") ? end_there : map_there, 0);
    need(!swapcontext(&home, &away));
    return NULL;
}

static void switch_stack(void)
{
    char *stack = map_anonymous(SIZE);
    pthread_t thread;

    need(!pthread_create(&thread, NULL, go_over, stack));
    need(!pthread_join(thread, NULL));
    await_thread_gone(visitor);
    if (is("reused")) {
        need(!munmap(stack, SIZE));
        need(mmap(stack, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                  0) == stack);
        say_mapped(stack, SIZE, own_tid(), own_tid());
        return;
    }
    say_mapped(stack, SIZE, own_tid(), visitor);
}

static void fork_only(void)
{
    char *arguments[] = {"true", NULL};
    pid_t task = fork();

    if (!task)
        _exit(0);
    need(task > 0 && waitpid(task, NULL, 0) == task);
    task = vfork();
    if (!task)
        _exit(0);
    need(task > 0 && waitpid(task, NULL, 0) == task);
    need(!posix_spawn(&task, "/bin/true", NULL, NULL, arguments, NULL));
    need(waitpid(task, NULL, 0) == task);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*act)(void);
    } modes[] = {
        {"vfork", vfork_child},       {"lent", lent_piece},        {"guard-left", guard_left},
        {"guard-fixed", guard_fixed}, {"guard-over", guard_fixed}, {"switched", switch_stack},
        {"visited", switch_stack},    {"reused", switch_stack},    {"forks", fork_only}};
    int count = argc > 2 ? atoi(argv[2]) : 1;

    mode = argc > 1 ? argv[1] : "";
    target_ready();
    for (int i = 0; i < count; i++)
        for (size_t j = 0; j < sizeof(modes) / sizeof(*modes); j++)
            if (is(modes[j].name))
                modes[j].act();
    target_done();
    return 0;
}
