/* SPDX-License-Identifier: Apache-2.0
 * Threads that are joined or not, and then the end.  finale BODY TAIL_MS END:
 *   bodies that leave threads unjoined, and how many:
 *     leak1 1, leak5 5, leak9 9, exits 1 (pthread_exit), cancelled 1, gives_up 1 (pthread_timedjoin_np),
 *     c11 1, mixed 2 (of 6), own_stack 1 (pthread_attr_setstack), forks 3 (in a forked child, which ends
 *     before), forks_after 1 (and a forked child that has none)
 *   bodies that leave none:
 *     joined, exits_joined, cancelled_joined, gives_up_joined, own_stack_joined, forks_joined, at_end (joined
 *     after the tail), runs (a thread runs on), detached, detached_meanwhile (while it runs), detached_after
 *     (exited first), self_detached, attr_detached, tryjoin, timedjoin, c11_joined, churn (400 joined; churnN:
 *     N), waits (main waits for a thread that ends the process), in_turn (likewise, and it would join 4 next
 *     that have exited), sorts (8 threads with much to compute, joined)
 *   ends: return, exit, _exit, term, kill, abort, segv, last (main leaves by pthread_exit, a thread ends it),
 *     exec (it becomes /bin/true)
 * The exit status is 7 where the program chooses one.  Threads have exited before the tail begins.
 */
#include "target.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <threads.h>

#define STACK (1024 * 1024)
#define CHOSEN 7
#define NUMBERS 300000

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

static int compare(const void *one, const void *other)
{
    return *(const int *)one - *(const int *)other;
}

static void *sort_job(void *argument)
{
    int *numbers = malloc(NUMBERS * sizeof(*numbers));
    unsigned number = 1;

    need(numbers);
    for (int i = 0; i < NUMBERS; i++)
        numbers[i] = (number = number * 1103515245 + 12345) >> 2;
    qsort(numbers, NUMBERS, sizeof(*numbers), compare);
    free(numbers);
    return job(argument);
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

__attribute__((noinline)) static pthread_t made(void *(*routine)(void *), int detached)
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
    if (!strcmp(end_by, "exec"))
        execl("/bin/true", "true", (char *)NULL);
}

static void *last_job(void *leader)
{
    pthread_join(*(pthread_t *)leader, NULL);
    pause_ms(tail_ms);
    exit(CHOSEN);
}

/* Main sleeps at a futex: in pthread_join. */
static void await_joiner(void)
{
    char path[64], text[32];
    int call = -1;

    snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", getpid());
    while (call != SYS_futex) {
        int file = open(path, O_RDONLY);
        ssize_t length = read(file, text, sizeof(text) - 1);

        need(length > 0);
        close(file);
        text[length] = 0;
        call = strncmp(text, "running", 7) ? atoi(text) : -1;
    }
}

static void *ending_job(void *argument)
{
    await_joiner();
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

__attribute__((noinline)) static pthread_t made_on_own_stack(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    void *stack = map_anonymous(STACK);

    last_tid = 0;
    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstack(&attributes, stack, STACK));
    need(!pthread_create(&thread, &attributes, job, NULL));
    return thread;
}

/* Until it sleeps for ever, or nearly so. */
static pthread_t made_waiting(void)
{
    pthread_t thread = made(wait_job, 0);

    while (!last_tid)
        sched_yield();
    return thread;
}

/* A process that makes threads of its own, and ends as this one will. */
static void fork_and_wait(int leaked, int joined)
{
    pid_t child = fork();

    need(child >= 0);
    if (!child) {
        times(leaked, job);
        while (joined--)
            pthread_join(made(job, 0), NULL);
        finish();
        _exit(CHOSEN);
    }
    need(waitpid(child, NULL, 0) == child);
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
    } else if (!strncmp(name, "cancelled", 9)) {
        threads[0] = made_waiting();
        pthread_cancel(threads[0]);
        if (strcmp(name, "cancelled"))
            pthread_join(threads[0], NULL);
        else
            await_exit();
    } else if (!strncmp(name, "gives_up", 8)) {
        threads[0] = made_waiting();
        need(pthread_timedjoin_np(threads[0], NULL, &soon) == ETIMEDOUT);
        pthread_cancel(threads[0]);
        if (strcmp(name, "gives_up"))
            pthread_join(threads[0], NULL);
        else
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
    } else if (!strncmp(name, "own_stack", 9)) {
        threads[0] = made_on_own_stack();
        if (strcmp(name, "own_stack"))
            pthread_join(threads[0], NULL);
        else
            await_exit();
    } else if (!strcmp(name, "forks")) {
        fork_and_wait(3, 1);
    } else if (!strcmp(name, "forks_joined")) {
        fork_and_wait(0, 3);
    } else if (!strcmp(name, "forks_after")) {
        times(1, job);
        fork_and_wait(0, 2);
    } else if (!strcmp(name, "exits_joined")) {
        pthread_join(made(exit_job, 0), NULL);
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
    } else if (!strcmp(name, "detached_meanwhile")) {
        pthread_detach(made_waiting());
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
    } else if (!strncmp(name, "churn", 5)) {
        for (int i = name[5] ? atoi(name + 5) : 400; i > 0; i--)
            pthread_join(made(job, 0), NULL);
    } else if (!strcmp(name, "sorts")) {
        for (int i = 0; i < 8; i++)
            threads[i] = made(sort_job, 0);
        for (int i = 0; i < 8; i++)
            pthread_join(threads[i], NULL);
    } else if (!strcmp(name, "in_turn")) {
        for (int i = 0; i < 5; i++) {
            threads[i] = made(i < 4 ? job : ending_job, 0);
            if (i < 4)
                await_exit();
        }
        for (int i = 4; i >= 0; i--)
            pthread_join(threads[i], NULL);
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
