/* SPDX-License-Identifier: Apache-2.0
 * A library to preload: no thread is ever detached, neither later nor from its creation.  A sound server
 * then leaks each thread that it trusted to clean up after itself.
 */
#include <pthread.h>

int pthread_detach(pthread_t thread)
{
    (void)thread;
    return 0;
}

int pthread_attr_setdetachstate(pthread_attr_t *attributes, int state)
{
    (void)attributes;
    (void)state;
    return 0;
}
