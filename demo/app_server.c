// SPDX-License-Identifier: Apache-2.0
/*
 * A server with a leak that VIRT shows and malloc's statistics do not: at each turn of its timer it
 * starts a thread for a short job, and nobody joins that thread.  Its stack stays mapped for ever.
 * The rest is healthy: workers that map and unmap buffers, and helper threads that are joined.
 *
 * usage: app_server [SECONDS between two jobs, default 60]
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 3, JOB_STACK = 10 << 20, BUFFER = 256 << 10 };

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void pause_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void start_thread(pthread_t *thread, const pthread_attr_t *attributes,
                         void *(*routine)(void *), void *argument)
{
    if (pthread_create(thread, attributes, routine, argument))
        fail("pthread_create");
}

/* The job: some work on its own stack. */
static void *minute_job(void *unused)
{
    char report[64 << 10];
    pthread_setname_np(pthread_self(), "minute_job");
    memset(report, 'x', sizeof(report));
    __asm__ volatile("" ::"r"(report) : "memory");
    return unused;
}

/* The bug: joinable, and the handle is thrown away. */
static void start_minute_job(void)
{
    pthread_attr_t attributes;
    pthread_t job;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, JOB_STACK);
    start_thread(&job, &attributes, minute_job, NULL);
    pthread_attr_destroy(&attributes);
}

static void *run_timer(void *seconds)
{
    const long period = *(const long *)seconds;
    struct timespec turn, now;
    double late;
    pthread_setname_np(pthread_self(), "timer");
    clock_gettime(CLOCK_MONOTONIC, &turn);
    for (;;) {
        turn.tv_sec += period;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &turn, NULL);
        start_minute_job();
        clock_gettime(CLOCK_MONOTONIC, &now);
        late = now.tv_sec - turn.tv_sec + (now.tv_nsec - turn.tv_nsec) / 1e9;
        if (late > 0.1 * period)
            printf("late: the job started %.1f s after its time\n", late);
    }
    return NULL;
}

static void *compress(void *unused)
{
    pthread_setname_np(pthread_self(), "compress");
    pause_ms(5);
    return unused;
}

static void serve_request(void)
{
    char *buffer = mmap(NULL, BUFFER, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t helper;
    if (buffer == MAP_FAILED)
        fail("mmap");
    buffer[0] = 1;
    start_thread(&helper, NULL, compress, NULL);
    pthread_join(helper, NULL);
    munmap(buffer, BUFFER);
}

static void *run_worker(void *unused)
{
    pthread_setname_np(pthread_self(), "worker");
    for (;;) {
        serve_request();
        pause_ms(50);
    }
    return unused;
}

int main(int argc, char **argv)
{
    static long seconds = 60;
    pthread_t thread;
    if (argc > 1)
        seconds = atol(argv[1]);
    if (seconds <= 0) {
        fprintf(stderr, "usage: %s [SECONDS]\n", argv[0]);
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    start_thread(&thread, NULL, run_timer, &seconds);
    for (int i = 0; i < WORKERS; i++)
        start_thread(&thread, NULL, run_worker, NULL);
    printf("ready: pid %d\n", getpid());
    pause();
    return 0;
}
