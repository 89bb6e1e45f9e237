/* SPDX-License-Identifier: Apache-2.0
 * Starts joinable threads, one every PAUSE_MS, that end at once; then it ends with status 7.
 * unjoined COUNT PAUSE_MS [joins]: with "joins", it joins all of them just before its end.
 */
#include "target.h"

#define MOST 1000
#define STATUS 7

static void *end_at_once(void *unused)
{
    return unused;
}

int main(int argc, char **argv)
{
    static pthread_t threads[MOST];
    int count = argc > 1 ? atoi(argv[1]) : 0;
    long milliseconds = argc > 2 ? atol(argv[2]) : 0;
    const struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    need(count >= 0 && count <= MOST);
    for (int i = 0; i < count; i++) {
        need(!pthread_create(&threads[i], NULL, end_at_once, NULL));
        nanosleep(&pause, NULL);
    }
    if (argc > 3)
        for (int i = 0; i < count; i++)
            need(!pthread_join(threads[i], NULL));
    return STATUS;
}
