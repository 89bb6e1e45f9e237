/* SPDX-License-Identifier: Apache-2.0
 * Threads that keep handles of exited threads in registers that calls preserve, and nowhere else.
 * register_movers THREADS: each has five, and moves them from register to register without a pause, at times
 * across a system call.
 *
 * With a line on stdin one of them is dropped; with the last one, it ends.
 */
#include "target.h"

#include <stddef.h>
#include <stdint.h>

#define EACH 5
#define MOST 16
#define LENGTH (64 * 1024)

static struct job {
    uintptr_t inverted[EACH];
    volatile uint64_t drop;
    volatile uintptr_t dropped; /* inverted */
} jobs[MOST];

static const struct timespec nap = {0, 100000};
static pthread_barrier_t started;

static void *return_it(void *value)
{
    return value;
}

static __attribute__((noinline)) void wipe(void)
{
    volatile char area[1 << 15];

    for (size_t i = 0; i < sizeof(area); i++)
        area[i] = 0;
}

static __attribute__((noinline)) uintptr_t ended_thread(void)
{
    pthread_attr_t attributes;
    pthread_t thread;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, LENGTH));
    need(!pthread_create(&thread, &attributes, return_it, NULL));
    return ~(uintptr_t)thread;
}

static void *move(void *its)
{
    struct job *job = its;

    pthread_barrier_wait(&started);
#if defined(__x86_64__)
    __asm__ volatile("mov 0(%0), %%rbx\n"
                     "mov 8(%0), %%r12\n"
                     "mov 16(%0), %%r13\n"
                     "mov 24(%0), %%r14\n"
                     "mov 32(%0), %%r15\n"
                     "not %%rbx\n"
                     "not %%r12\n"
                     "not %%r13\n"
                     "not %%r14\n"
                     "not %%r15\n"
                     "xor %%r8d, %%r8d\n"
                     "1:\n"
                     "xchg %%rbx, %%r12\n"
                     "xchg %%r12, %%r13\n"
                     "xchg %%r13, %%r14\n"
                     "xchg %%r14, %%r15\n"
                     "inc %%r8d\n"
                     "test $0xfff, %%r8d\n"
                     "jnz 2f\n"
                     "mov %3, %%eax\n"
                     "syscall\n"
                     "2:\n"
                     "test $0xfffff, %%r8d\n"
                     "jnz 3f\n"
                     "mov %2, %%rdi\n"
                     "xor %%esi, %%esi\n"
                     "mov %4, %%eax\n"
                     "syscall\n"
                     "3:\n"
                     "cmpq $0, %c5(%0)\n"
                     "je 1b\n"
                     "test %%rbx, %%rbx\n"
                     "jz 1b\n"
                     "not %%rbx\n"
                     "movq $0, %c5(%0)\n"
                     "mov %%rbx, (%1)\n"
                     "xor %%ebx, %%ebx\n"
                     "jmp 1b\n" ::"r"(job),
                     "r"(&job->dropped), "r"(&nap), "i"(SYS_sched_yield), "i"(SYS_nanosleep),
                     "i"(offsetof(struct job, drop))
                     : "rbx", "r12", "r13", "r14", "r15", "rax", "rcx", "r8", "r11", "rdi", "rsi",
                       "memory", "cc");
#elif defined(__aarch64__)
    __asm__ volatile("ldp x19, x20, [%0]\n"
                     "ldp x21, x22, [%0, 16]\n"
                     "ldr x23, [%0, 32]\n"
                     "mvn x19, x19\n"
                     "mvn x20, x20\n"
                     "mvn x21, x21\n"
                     "mvn x22, x22\n"
                     "mvn x23, x23\n"
                     "mov x10, 0\n"
                     "1:\n"
                     "mov x9, x19\n"
                     "mov x19, x20\n"
                     "mov x20, x21\n"
                     "mov x21, x22\n"
                     "mov x22, x23\n"
                     "mov x23, x9\n"
                     "mov x9, 0\n"
                     "add x10, x10, 1\n"
                     "tst x10, 0xfff\n"
                     "b.ne 2f\n"
                     "mov x8, %3\n"
                     "svc 0\n"
                     "2:\n"
                     "tst x10, 0xfffff\n"
                     "b.ne 3f\n"
                     "mov x0, %2\n"
                     "mov x1, 0\n"
                     "mov x8, %4\n"
                     "svc 0\n"
                     "3:\n"
                     "ldr x9, [%0, %5]\n"
                     "cbz x9, 1b\n"
                     "cbz x19, 1b\n"
                     "mvn x19, x19\n"
                     "str xzr, [%0, %5]\n"
                     "str x19, [%1]\n"
                     "mov x19, 0\n"
                     "b 1b\n" ::"r"(job),
                     "r"(&job->dropped), "r"(&nap), "i"(SYS_sched_yield), "i"(SYS_nanosleep),
                     "i"(offsetof(struct job, drop))
                     : "x0", "x1", "x8", "x9", "x10", "x19", "x20", "x21", "x22", "x23", "memory",
                       "cc");
#endif
    return its;
}

static void drop_one(struct job *job)
{
    job->dropped = 0;
    job->drop = 1;
    while (!job->dropped)
        sched_yield();
    target_say("{\"event\": \"dropped\", \"secret\": %lu}\n", (unsigned long)job->dropped);
}

int main(int argc, char **argv)
{
    need(argc == 2);
    int threads = atoi(argv[1]), left = EACH * threads;
    char byte;

    need(0 < threads && threads <= MOST);
    need(!pthread_barrier_init(&started, NULL, threads + 1));
    target_ready();
    for (int i = 0; i < left; i++) {
        jobs[i / EACH].inverted[i % EACH] = ended_thread();
        target_say("{\"event\": \"handle\", \"secret\": %lu}\n",
                   (unsigned long)jobs[i / EACH].inverted[i % EACH]);
    }
    wipe();
    for (int i = 0; i < threads; i++) {
        pthread_t thread;

        need(!pthread_create(&thread, NULL, move, &jobs[i]));
    }
    pthread_barrier_wait(&started);
    wipe();
    target_say("done\n");
    while (left && read(0, &byte, 1) == 1)
        if (byte == '\n') {
            left--;
            drop_one(&jobs[left % threads]);
            target_say("done\n");
        }
    return 0;
}
