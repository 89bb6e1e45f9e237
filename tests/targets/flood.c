/* SPDX-License-Identifier: Apache-2.0
 * Pairs of mmap and munmap from one core.  flood MILLISECONDS PAIRS_PER_SECOND [LEAST_PAIRS]
 * PAIRS_PER_SECOND 0: all it can.  It goes on until it has made LEAST_PAIRS, however slow the machine.
 */
#include "target.h"

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atoi(argv[1]) / 1000.0 : 1;
    double rate = argc > 2 ? atof(argv[2]) : 0;
    unsigned long least = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    unsigned long pairs = 0;
    cpu_set_t one;

    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    need(!sched_setaffinity(0, sizeof(one), &one));
    target_ready();
    double start = now();
    while (now() - start < seconds || pairs < least) {
        for (int i = 0; i < 16; i++)
            need(!munmap(map_anonymous(4 * PAGE), 4 * PAGE));
        pairs += 16;
        if (rate > 0 && pairs > (now() - start) * rate)
            pause_ms((pairs / rate - (now() - start)) * 1000);
    }
    target_say("{\"event\": \"flooded\", \"pairs\": %lu, \"seconds\": %f}\n", pairs, now() - start);
    target_done();
    return 0;
}
