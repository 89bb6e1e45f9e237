/* SPDX-License-Identifier: Apache-2.0
 * A library for the pytest plugin's tests: threads that are left unjoined, and healthy ones.  With PROGRAM
 * it is a program, which leaves as many as its argument says.
 */
#include <pthread.h>
#include <stdlib.h>
#include <thread>
#include <unistd.h>

static pthread_t started;

static void *job(void *nothing)
{
    return nothing;
}

extern "C" void leave_unjoined()
{
    pthread_t thread;

    pthread_create(&thread, nullptr, job, nullptr);
}

extern "C" void leave_std_thread()
{
    /* Its destructor would end the program: it is never destroyed. */
    new std::thread([] {});
}

extern "C" void start()
{
    pthread_create(&started, nullptr, job, nullptr);
}

extern "C" void join()
{
    pthread_join(started, nullptr);
}

extern "C" void start_detached()
{
    pthread_t thread;

    pthread_create(&thread, nullptr, job, nullptr);
    pthread_detach(thread);
}

#ifdef PROGRAM
int main(int argc, char **argv)
{
    for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--)
        leave_unjoined();
    start();
    join();
    usleep(20 * 1000);
    return 0;
}
#endif
