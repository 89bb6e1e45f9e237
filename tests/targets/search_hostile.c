/* SPDX-License-Identifier: Apache-2.0
 * An address space that makes a search slow: search_hostile WAY MIB.
 * "matches": memory full of one pointer; "near": full of words that nearly are; "pieces": every second page is
 * there; "swapped": full of one pointer, and paged out where there is swap; "churn": a thread that maps and unmaps without a pause.
 */
#include "target.h"

#include <stdint.h>

#define LENGTH (64 * 1024)

static void *churn(void *size)
{
    for (;;) {
        char *start = map_anonymous((size_t)size);

        memset(start, 1, (size_t)size);
        need(!munmap(start, (size_t)size));
    }
    return NULL;
}

int main(int argc, char **argv)
{
    need(argc == 3);
    size_t size = strtoul(argv[2], NULL, 10) << 20;
    char *volatile area = map_anonymous(LENGTH);
    char *memory = map_anonymous(size);
    pthread_t thread;

    area[0] = 1;
    need(!madvise(memory, size, MADV_NOHUGEPAGE));
    target_ready();
    target_say("{\"event\": \"mapping\", \"secret\": %lu}\n", ~(unsigned long)area);
    if (!strcmp(argv[1], "pieces")) {
        for (size_t at = 0; at < size; at += 2 * PAGE)
            memory[at] = 1;
    } else if (!strcmp(argv[1], "churn")) {
        need(!pthread_create(&thread, NULL, churn, (void *)size));
    } else {
        uintptr_t word = (uintptr_t)area + (strcmp(argv[1], "near") ? 8 : LENGTH);

        for (size_t at = 0; at < size; at += sizeof(word))
            *(uintptr_t *)(memory + at) = word;
        if (!strcmp(argv[1], "swapped"))
            need(!madvise(memory, size, 21 /* MADV_PAGEOUT */));
    }
    area = NULL;
    target_done();
    return 0;
}
