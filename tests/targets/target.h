/* SPDX-License-Identifier: Apache-2.0
 * What every target does around its hazard.
 *
 * It prints "ready" and waits for a line on stdin, so that a tracer can attach; then the hazard,
 * with its ground truth as JSON lines; then "done", and nothing more happens until stdin closes.
 * Nothing here maps or unmaps memory: no stdio buffer, no malloc.
 */
#ifndef TARGET_H
#define TARGET_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* On arm64 the largest that a kernel can have: a multiple of it is whole pages on all of them. */
#ifdef __aarch64__
#define PAGE (64UL << 10)
#else
#define PAGE 4096UL
#endif

#ifndef MREMAP_DONTUNMAP /* the C library of Debian 11 is older than it */
#define MREMAP_DONTUNMAP 4
#endif

/* A function with a frame and a symbol of its own: drgn before 0.1 knows no inlined functions, and shows GCC's
 * variants by their symbols, such as create.isra.0.
 */
#ifdef __clang__
#define OWN_FRAME __attribute__((noinline))
#else
#define OWN_FRAME __attribute__((noipa))
#endif

/* Ends the program when something it needs fails: a test must not go on without its hazard. */
#define need(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            target_say("{\"event\": \"failed\", \"what\": \"%s:%d %s\", "                          \
                       "\"errno\": %d}\n",                                                         \
                       __FILE__, __LINE__, #condition, errno);                                     \
            _exit(70);                                                                             \
        }                                                                                          \
    } while (0)

/* One write, so that lines of several threads do not mix. */
__attribute__((format(printf, 1, 2))) static inline void target_say(const char *format, ...)
{
    char line[512];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof(line) || write(1, line, length) != length)
        _exit(71);
}

static inline pid_t own_tid(void)
{
    return syscall(SYS_gettid);
}

static inline void target_ready(void)
{
    char byte = 0;

    target_say("ready\n");
    while (byte != '\n')
        if (read(0, &byte, 1) != 1)
            _exit(72);
}

static inline void target_done(void)
{
    char bytes[64];

    target_say("done\n");
    while (read(0, bytes, sizeof(bytes)) > 0)
        ;
}

/* Ground truth: this range is mapped; who mapped it, and whose life it should follow. */
static inline void say_mapped(const void *start, size_t length, pid_t mapper, pid_t owner)
{
    target_say("{\"event\": \"mapped\", \"start\": %lu, \"length\": %zu, \"mapper\": %d, "
               "\"owner\": %d}\n",
               (unsigned long)start, length, mapper, owner);
}

/* What the kernel maps for a length that was asked for. */
static inline size_t whole_pages(size_t length)
{
    size_t page = sysconf(_SC_PAGESIZE);

    return (length + page - 1) & ~(page - 1);
}

/* On arm64 glibc maps at least 64 KiB for a guard, whatever the attribute says (nptl/allocatestack.c). */
static inline size_t mapped_guard(size_t asked)
{
#ifdef __aarch64__
    return asked && asked < 64 << 10 ? 64 << 10 : asked;
#else
    return asked;
#endif
}

static inline void pause_ms(long milliseconds)
{
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    while (nanosleep(&pause, &pause) && errno == EINTR)
        ;
}

/* Returns when a thread of this process is gone from the kernel's list. */
static inline void await_thread_gone(pid_t tid)
{
    while (!syscall(SYS_tgkill, getpid(), tid, 0))
        pause_ms(1);
}

/* A join returns before the kernel has reported the exit, where it reports it late (before Linux 6.16). */
static inline void join_and_await(pthread_t thread, const volatile pid_t *tid)
{
    need(!pthread_join(thread, NULL));
    await_thread_gone(*tid);
}

/* Start routine of a thread that tells its tid in the place it is given, and ends. */
static inline void *tell_tid_and_end(void *place)
{
    __atomic_store_n((pid_t *)place, own_tid(), __ATOMIC_RELEASE);
    return NULL;
}

/* Returns when a thread that began in tell_tid_and_end is gone. */
static inline void await_end(pid_t *place)
{
    while (!__atomic_load_n(place, __ATOMIC_ACQUIRE))
        pause_ms(1);
    await_thread_gone(*place);
}

static inline void *map_anonymous(size_t length)
{
    void *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    need(start != MAP_FAILED);
    return start;
}

#endif
