/* SPDX-License-Identifier: Apache-2.0
 * The production case: joinable threads with a 10 MiB stack exit and nobody joins them.
 * glibc keeps each stack, with its guard, for a join that never comes.
 */
#include "target.h"

static void *minute_job(void *unused)
{
    pthread_attr_t attributes;
    void *low;
    size_t size, guard;

    need(!pthread_setname_np(pthread_self(), "minute-job"));
    need(!pthread_getattr_np(pthread_self(), &attributes));
    need(!pthread_attr_getstack(&attributes, &low, &size));
    need(!pthread_attr_getguardsize(&attributes, &guard));
    guard = mapped_guard(guard);
    pthread_attr_destroy(&attributes);
    say_mapped((char *)low - guard, size + guard, getpid(), own_tid());
    *(pid_t *)unused = own_tid();
    return NULL;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 1;
    pthread_attr_t attributes;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, 10UL << 20));
    target_ready();
    for (int i = 0; i < count; i++) {
        pthread_t thread;
        volatile pid_t tid = 0;

        need(!pthread_create(&thread, &attributes, minute_job, (void *)&tid));
        while (!tid)
            pause_ms(1);
        await_thread_gone(tid);
    }
    target_done();
    return 0;
}
