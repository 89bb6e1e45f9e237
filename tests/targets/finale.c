/*
 * Threads that are joined or not, and then the end.  finale BODY TAIL_MS END:
 *   bodies that leave threads unjoined, and how many:
 *     leak1 1, leak5 5, leak9 9, exits 1 (pthread_exit), cancelled 1, gives_up 1 (pthread_timedjoin_np),
 *     c11 1, mixed 2 (of 6), own_stack 1 (pthread_attr_setstack)
 *   bodies that leave none:
 *     joined, at_end (joined after the tail), runs (a thread runs on), detached, detached_after (exited
 *     first), self_detached, attr_detached, tryjoin, timedjoin, c11_joined, churn (400 joined), waits (main
 *     waits for a thread that ends the process)
 *   ends: return, exit, _exit, term, kill, abort, segv, last (main leaves by pthread_exit, a thread ends it)
 * The exit status is 7 where the program chooses one.  Threads have exited before the tail begins.
 */
#include "target.h"

#include <threads.h>

#define STACK (64 * 1024)
#define CHOSEN 7

static int tail_ms;
static const char *end_by;
static volatile pid_t last_tid;

static void note_tid(void)
{
    last_tid = own_tid();
}

static void *job(void *argument)
{
    note_tid();
    return argument;
}

static void *exit_job(void *argument)
{
    note_tid();
    pthread_exit(argument);
}

static void *wait_job(void *argument)
{
    note_tid();
    for (;;)
        pause();
    return argument;
}

static void *detaching_job(void *argument)
{
    pthread_detach(pthread_self());
    return job(argument);
}

static int c11_job(void *argument)
{
    note_tid();
    return argument != NULL;
}

/* The kernel has let go of the thread, and so has cleared its number. */
static void await_exit(void)
{
    while (!last_tid || !syscall(SYS_tgkill, getpid(), last_tid, 0))
        sched_yield();
    last_tid = 0;
}

/* Where the handle goes nothing of this file remembers it. */
__attribute__((noinline)) static void spawn_job(void *(*routine)(void *))
{
    pthread_t thread;

    last_tid = 0;
    need(!pthread_create(&thread, NULL, routine, NULL));
    if (routine != wait_job)
        await_exit();
}

static pthread_t made(void *(*routine)(void *), int detached)
{
    pthread_attr_t attributes;
    pthread_t thread;

    last_tid = 0;
    need(!pthread_attr_init(&attributes));
    if (detached)
        need(!pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED));
    need(!pthread_create(&thread, &attributes, routine, NULL));
    return thread;
}

static void finish(void)
{
    if (!strcmp(end_by, "exit"))
        exit(CHOSEN);
    if (!strcmp(end_by, "_exit"))
        _exit(CHOSEN);
    if (!strcmp(end_by, "term"))
        raise(SIGTERM);
    if (!strcmp(end_by, "kill"))
        raise(SIGKILL);
    if (!strcmp(end_by, "abort"))
        abort();
    if (!strcmp(end_by, "segv"))
        raise(SIGSEGV);
}

static void *last_job(void *leader)
{
    pthread_join(*(pthread_t *)leader, NULL);
    pause_ms(tail_ms);
    exit(CHOSEN);
}

static void *ending_job(void *argument)
{
    pause_ms(tail_ms);
    finish();
    exit(CHOSEN);
    return argument;
}

static void times(int number, void *(*routine)(void *))
{
    while (number--)
        spawn_job(routine);
}

static void leave_on_own_stack(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    void *stack = map_anonymous(STACK);

    last_tid = 0;
    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstack(&attributes, stack, STACK));
    need(!pthread_create(&thread, &attributes, job, NULL));
    await_exit();
}

static void body(const char *name)
{
    pthread_t threads[8];
    struct timespec soon = {0, 0};
    thrd_t c11;

    if (!strncmp(name, "leak", 4)) {
        times(atoi(name + 4), job);
    } else if (!strcmp(name, "exits")) {
        spawn_job(exit_job);
    } else if (!strcmp(name, "cancelled")) {
        threads[0] = made(wait_job, 0);
        while (!last_tid)
            sched_yield();
        pthread_cancel(threads[0]);
        await_exit();
    } else if (!strcmp(name, "gives_up")) {
        threads[0] = made(wait_job, 0);
        while (!last_tid)
            sched_yield();
        need(pthread_timedjoin_np(threads[0], NULL, &soon) == ETIMEDOUT);
        pthread_cancel(threads[0]);
        await_exit();
    } else if (!strncmp(name, "c11", 3)) {
        last_tid = 0;
        need(thrd_create(&c11, c11_job, NULL) == thrd_success);
        if (strcmp(name, "c11"))
            thrd_join(c11, NULL);
        else
            await_exit();
    } else if (!strcmp(name, "mixed")) {
        for (int i = 0; i < 4; i++)
            threads[i] = made(job, 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
        times(2, job);
    } else if (!strcmp(name, "own_stack")) {
        leave_on_own_stack();
    } else if (!strcmp(name, "joined")) {
        for (int i = 0; i < 4; i++)
            threads[i] = made(job, 0);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
    } else if (!strcmp(name, "at_end")) {
        for (int i = 0; i < 4; i++)
            threads[i] = made(job, 0);
        pause_ms(tail_ms);
        for (int i = 0; i < 4; i++)
            pthread_join(threads[i], NULL);
    } else if (!strcmp(name, "runs")) {
        times(3, wait_job);
    } else if (!strcmp(name, "detached")) {
        pthread_detach(made(job, 0));
    } else if (!strcmp(name, "detached_after")) {
        threads[0] = made(job, 0);
        await_exit();
        pthread_detach(threads[0]);
    } else if (!strcmp(name, "self_detached")) {
        made(detaching_job, 0);
    } else if (!strcmp(name, "attr_detached")) {
        made(job, 1);
    } else if (!strcmp(name, "tryjoin")) {
        threads[0] = made(job, 0);
        while (pthread_tryjoin_np(threads[0], NULL))
            sched_yield();
    } else if (!strcmp(name, "timedjoin")) {
        threads[0] = made(job, 0);
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_sec += 60;
        need(!pthread_timedjoin_np(threads[0], NULL, &soon));
    } else if (!strcmp(name, "churn")) {
        for (int i = 0; i < 400; i++)
            pthread_join(made(job, 0), NULL);
    } else if (!strcmp(name, "waits")) {
        pthread_join(made(ending_job, 0), NULL);
    } else {
        fprintf(stderr, "no body %s\n", name);
        _exit(99);
    }
}

int main(int argc, char **argv)
{
    static pthread_t leader;
    pthread_t thread;

    need(argc == 4);
    leader = pthread_self();
    tail_ms = atoi(argv[2]);
    end_by = argv[3];
    body(argv[1]);
    if (!strcmp(end_by, "last")) {
        need(!pthread_create(&thread, NULL, last_job, &leader));
        pthread_exit(NULL);
    }
    pause_ms(tail_ms);
    finish();
    return CHOSEN;
}
