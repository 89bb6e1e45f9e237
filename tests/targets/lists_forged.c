/* SPDX-License-Identifier: Apache-2.0
 * Forges glibc's list of thread stacks in its own memory: lists_forged WAY.
 *
 * Eight threads end and are never joined, so that there is a list; then it is made to lie. WAY:
 *   loop      the last entry leads to the first, not to the head
 *   self      an entry leads to itself
 *   wild, odd, kernel, zero   an entry leads to nowhere, in that way
 *   head      the head leads nowhere
 *   long      100,000 invented entries, each consistent with its neighbours, all on one stack
 *   huge      an entry says that its stack is 1 TiB
 *   moving    a thread keeps rewriting an entry with noise
 */
#include "target.h"
#include <dlfcn.h>

struct list {
    struct list *next, *prev;
};

#define INVENTED 100000
#define SPACING 2048

static struct list *volatile noisy;

static unsigned offset(const char *name)
{
    const unsigned *descriptor = dlsym(RTLD_DEFAULT, name);

    need(descriptor);
    return descriptor[2];
}

static void *makes_noise(void *unused)
{
    struct list good = *noisy;

    for (unsigned long noise = 88172645463325252UL;;) {
        noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
        noisy->next = noise % 3 ? good.next : (struct list *)(noise & 0x7ffffffffff8UL);
        noisy->prev = noise % 5 ? good.prev : (struct list *)noise;
    }
    return unused;
}

static void invent(struct list *head, struct list *model)
{
    unsigned at = offset("_thread_db_pthread_list");
    unsigned size = *(unsigned *)dlsym(RTLD_DEFAULT, "_thread_db_sizeof_pthread");
    char *area = map_anonymous((size_t)INVENTED * SPACING + size);
    struct list *last = head->prev;

    for (int i = 0; i < INVENTED; i++) {
        struct list *entry = (struct list *)(area + (size_t)i * SPACING);

        /* From the list on, a copy of a true descriptor, as far as the spacing goes. */
        memcpy(entry, model, size - at < SPACING ? size - at : SPACING);
        last->next = entry;
        entry->prev = last;
        last = entry;
    }
    last->next = head;
    head->prev = last;
}

int main(int argc, char **argv)
{
    pthread_t threads[8], noise;
    unsigned long *head_at, wild = 0x123456789000;

    need(argc > 1);
    for (int i = 0; i < 8; i++) {
        static pid_t tids[8];

        need(!pthread_create(&threads[i], NULL, tell_tid_and_end, &tids[i]));
        await_end(&tids[i]);
    }
    head_at = dlsym(RTLD_DEFAULT, "__nptl_rtld_global");
    need(head_at);
    struct list *head = (struct list *)(*head_at + offset("_thread_db_rtld_global__dl_stack_used"));
    struct list *first = head->next, *third = first->next->next;
    const char *way = argv[1];

    target_ready();
    if (!strcmp(way, "loop"))
        head->prev->next = first;
    else if (!strcmp(way, "self"))
        third->next = third;
    else if (!strcmp(way, "wild"))
        third->next = (struct list *)wild;
    else if (!strcmp(way, "odd"))
        third->next = (struct list *)((char *)third + 3);
    else if (!strcmp(way, "kernel"))
        third->next = (struct list *)-4096L;
    else if (!strcmp(way, "zero"))
        third->next = NULL;
    else if (!strcmp(way, "head"))
        head->next = head->prev = (struct list *)wild;
    else if (!strcmp(way, "long"))
        invent(head, first);
    else if (!strcmp(way, "huge")) {
        void *low;
        size_t size;
        pthread_attr_t attributes;

        need(!pthread_getattr_np(threads[7], &attributes));
        need(!pthread_attr_getstack(&attributes, &low, &size));
        for (size_t *word = (size_t *)first; word < (size_t *)first + 190; word++)
            if (word[0] == (unsigned long)low - PAGE && word[1] == size + PAGE)
                word[1] = 1UL << 40;
    } else if (!strcmp(way, "moving")) {
        noisy = third;
        need(!pthread_create(&noise, NULL, makes_noise, NULL));
    }
    target_done();
    _exit(0);
}
