/* SPDX-License-Identifier: Apache-2.0
 * Numbers of tasks are used again: two threads that nobody joins, one after the other, get the same tid, and
 * a process that nobody traces gets it after them, and maps memory.  The lines "thread" tell the stacks,
 * "process" what the process did.
 */
#include "target.h"

#include <fcntl.h>
#include <sys/wait.h>

#define CALLS 1000

struct job {
    pid_t tid;
    void *stack;
    size_t size;
};

/* Sets which number the next task gets, unless another is created meanwhile. */
static void aim_at(pid_t tid)
{
    char text[16];
    int length = snprintf(text, sizeof(text), "%d", tid - 1);
    int file = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);

    need(file >= 0);
    need(write(file, text, length) == length);
    close(file);
}

static void *tell(void *argument)
{
    struct job *job = argument;
    pthread_attr_t attributes;

    need(!pthread_getattr_np(pthread_self(), &attributes));
    need(!pthread_attr_getstack(&attributes, &job->stack, &job->size));
    pthread_attr_destroy(&attributes);
    __atomic_store_n(&job->tid, own_tid(), __ATOMIC_RELEASE);
    return NULL;
}

static pthread_t create(struct job *job)
{
    pthread_t thread;

    job->tid = 0;
    need(!pthread_create(&thread, NULL, tell, job));
    await_end(&job->tid);
    return thread;
}

static void map_and_unmap(void)
{
    for (int i = 0; i < CALLS; i++)
        need(!munmap(map_anonymous(PAGE), PAGE));
}

int main(void)
{
    struct job jobs[2];
    pid_t tid, pid;

    target_ready();
    create(&jobs[0]);
    tid = jobs[0].tid;
    for (;;) {
        pthread_t thread;

        aim_at(tid);
        thread = create(&jobs[1]);
        if (jobs[1].tid == tid)
            break;
        need(!pthread_join(thread, NULL));
    }
    do {
        aim_at(tid);
        pid = fork();
        need(pid >= 0);
        if (!pid) {
            if (getpid() == tid)
                map_and_unmap();
            _exit(0);
        }
        need(waitpid(pid, NULL, 0) == pid);
    } while (pid != tid);
    for (int i = 0; i < 2; i++)
        target_say("{\"event\": \"thread\", \"tid\": %d, \"start\": %lu, \"length\": %zu}\n",
                   jobs[i].tid, (unsigned long)jobs[i].stack, jobs[i].size);
    target_say("{\"event\": \"process\", \"pid\": %d, \"calls\": %d}\n", pid, CALLS);
    target_done();
    return 0;
}
