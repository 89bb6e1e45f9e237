/*
 * Two sites that look alike: the same size, the same depth, the same immediate caller
 * (pthread_create), called from two sibling functions.  siblings COUNT: so many leaks from each,
 * as fast as they go.
 */
#include "target.h"

#include <pthread.h>

static pthread_attr_t attributes;

static void *nothing(void *unused)
{
    return unused;
}

__attribute__((noinline)) static pthread_t create(void)
{
    pthread_t thread;

    need(!pthread_create(&thread, &attributes, nothing, NULL));
    return thread;
}

/* The asm keeps the compiler from making one function of both, or a jump of the call. */
__attribute__((noinline)) static pthread_t left(void)
{
    pthread_t thread = create();

    __asm__ volatile("nop" ::: "memory");
    return thread;
}

__attribute__((noinline)) static pthread_t right(void)
{
    pthread_t thread = create();

    __asm__ volatile("nop; nop" ::: "memory");
    return thread;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 10;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, 64 << 10));
    target_ready();
    for (int i = 0; i < count; i++) {
        left();
        right();
    }
    target_done();
    return 0;
}
