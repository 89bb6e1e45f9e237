/* SPDX-License-Identifier: Apache-2.0
 * Threads that have exited unjoined, and mappings; of each, one handle or pointer lies in one known place.
 *
 * No other copy may be left: what the program has to know of them itself, it keeps inverted, and it wipes
 * what its own calls leave behind.  It tells each with its place, and whether that place counts.
 */
#include "target.h"

#include <stdint.h>
#include <sys/epoll.h>

#define LENGTH (64 * 1024)

typedef uintptr_t secret; /* inverted */

struct __attribute__((packed)) packed {
    int number;
    uintptr_t word;
};

static uintptr_t in_data[2] = {1, 1};
static uintptr_t in_bss[2];
static uintptr_t result_of[2];
static __thread uintptr_t in_tls[2];
static volatile struct packed in_packed[2];
static uintptr_t *in_heap, *in_arena, *in_large, *in_mapping, *in_shared, *in_memfd, *in_readonly,
    *in_chain;
static int waiting, left;
static secret secrets[4];

static __attribute__((noinline)) void wipe(void)
{
    volatile char area[1 << 15];

    for (size_t i = 0; i < sizeof(area); i++)
        area[i] = 0;
#ifdef __x86_64__
    __asm__ volatile(
        "xor %%ebx, %%ebx\nxor %%r12d, %%r12d\nxor %%r13d, %%r13d\nxor %%r14d, %%r14d\n"
        "xor %%r15d, %%r15d" ::
            : "rbx", "r12", "r13", "r14", "r15");
#endif
}

static __attribute__((noinline)) void put(uintptr_t *place, secret value)
{
    *(volatile uintptr_t *)place = ~value;
}

static void *return_it(void *value)
{
    return value;
}

static __attribute__((noinline)) secret start(void *(*routine)(void *), void *argument)
{
    pthread_attr_t attributes;
    pthread_t thread;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, LENGTH));
    need(!pthread_create(&thread, &attributes, routine, argument));
    return ~(secret)thread;
}

static __attribute__((noinline)) secret ended_thread(void)
{
    secret thread = start(return_it, NULL);

    wipe();
    return thread;
}

static __attribute__((noinline)) secret mapping(void)
{
    char *start = map_anonymous(LENGTH + 2 * PAGE);

    /* No suspect begins where another ends. */
    need(!mprotect(start, PAGE, PROT_NONE) && !mprotect(start + PAGE + LENGTH, PAGE, PROT_NONE));
    start[LENGTH / 2] = 1;
    return ~(secret)(start + PAGE);
}

static __attribute__((noinline)) void tell(const char *event, const char *place, int kept,
                                           secret value)
{
    target_say("{\"event\": \"%s\", \"place\": \"%s\", \"kept\": %d, \"secret\": %lu}\n", event,
               place, kept, (unsigned long)value);
    wipe();
}

/* A handle into the first word of a place, a pointer into a mapping into its second. */
static void fill(const char *name, uintptr_t *place)
{
    secret thread = ended_thread(), area = mapping();

    put(&place[0], thread);
    put(&place[1], area);
    tell("handle", name, 1, thread);
    tell("mapping", name, 1, area);
}

static void wait_forever(void)
{
    __atomic_add_fetch(&waiting, 1, __ATOMIC_RELEASE);
    for (;;)
        pause();
}

static __attribute__((noinline)) void await_waiting(int count)
{
    while (__atomic_load_n(&waiting, __ATOMIC_ACQUIRE) < count)
        pause_ms(1);
}

static void *keep_in_frame_and_tls(void *unused)
{
    volatile uintptr_t frame[2];

    pthread_setname_np(pthread_self(), "holder");
    frame[0] = ~secrets[0];
    frame[1] = ~secrets[1];
    in_tls[0] = ~secrets[2];
    in_tls[1] = ~secrets[3];
    wait_forever();
    return (void *)(frame[0] + (uintptr_t)unused);
}

static void *malloc_in_arena(void *unused)
{
    in_arena = calloc(2, sizeof(*in_arena));
    wait_forever();
    return unused;
}

#ifdef __x86_64__
#define WAIT_WITH(name, register)                                                                  \
    static void *name(void *unused)                                                                \
    {                                                                                              \
        uintptr_t value = secrets[0];                                                              \
                                                                                                   \
        __atomic_add_fetch(&waiting, 1, __ATOMIC_RELEASE);                                         \
        for (;;)                                                                                   \
            __asm__ volatile(                                                                      \
                "mov %0, %%" register "\nnot %%" register "\nmov %1, %%eax\nsyscall\nxor "         \
                                                          "%%" register ", %%" register ::"r"(     \
                                                              value),                              \
                "i"(SYS_pause)                                                                     \
                : register, "rax", "rcx", "r11", "memory");                                        \
        return unused;                                                                             \
    }
WAIT_WITH(wait_with_rbx, "rbx")
WAIT_WITH(wait_with_r12, "r12")
WAIT_WITH(wait_with_r13, "r13")
WAIT_WITH(wait_with_r14, "r14")
WAIT_WITH(wait_with_r15, "r15")
#endif

/* What it was given lies in its own frame when it ends. */
static void *leave_in_frame(void *unused)
{
    volatile uintptr_t frame[2];

    frame[0] = ~secrets[0];
    frame[1] = ~secrets[1];
    __atomic_add_fetch(&left, 1, __ATOMIC_RELEASE);
    return (void *)((uintptr_t)unused & frame[0] & 0);
}

static void fill_places(void)
{
    uintptr_t *const_place;

    fill("data", in_data);
    fill("bss", in_bss);
    fill("tls of main", in_tls);
    fill("heap", in_heap = malloc(2 * sizeof(*in_heap)));
    fill("large block", in_large = malloc(1 << 20));
    fill("mapping", in_mapping = map_anonymous(PAGE));
    in_shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(in_shared != MAP_FAILED);
    fill("shared memory", in_shared);
    int file = memfd_create("search", 0);
    need(file >= 0 && !ftruncate(file, PAGE));
    in_memfd = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    need(in_memfd != MAP_FAILED);
    fill("memfd", in_memfd);
    const_place = map_anonymous(PAGE);
    fill("read-only memory", const_place);
    need(!mprotect(const_place, PAGE, PROT_READ));
    in_readonly = const_place;

    secret thread = ended_thread(), area = mapping();
    in_packed[0].word = ~thread;
    in_packed[1].word = ~area;
    tell("handle", "packed struct", 1, thread);
    tell("mapping", "packed struct", 1, area);
}

static void fill_threads(void)
{
    for (int i = 0; i < 4; i += 2) {
        secrets[i] = ended_thread();
        secrets[i + 1] = mapping();
        tell("handle", i ? "tls of a thread" : "frame of a thread", 1, secrets[i]);
        tell("mapping", i ? "tls of a thread" : "frame of a thread", 1, secrets[i + 1]);
    }
    start(keep_in_frame_and_tls, NULL);
    start(malloc_in_arena, NULL);
    await_waiting(2);
    fill("arena", in_arena);
#ifdef __x86_64__
    void *(*const routines[])(void *) = {wait_with_rbx, wait_with_r12, wait_with_r13, wait_with_r14,
                                         wait_with_r15};
    const char *const names[] = {"rbx", "r12", "r13", "r14", "r15"};

    for (int i = 0; i < 5; i++) {
        secrets[0] = ended_thread();
        tell("handle", names[i], 1, secrets[0]);
        start(routines[i], NULL);
        await_waiting(3 + i);
    }
#endif
}

static void fill_kernel(void)
{
    secret area = mapping();
    stack_t stack = {.ss_sp = (void *)~area, .ss_size = LENGTH};

    need(!sigaltstack(&stack, NULL));
    memset(&stack, 0, sizeof(stack));
    tell("mapping", "sigaltstack", 1, area);

    area = mapping();
    int poll = epoll_create1(0), pipes[2];
    need(poll >= 0 && !pipe(pipes));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = (void *)~area};
    need(!epoll_ctl(poll, EPOLL_CTL_ADD, pipes[0], &event));
    memset(&event, 0, sizeof(event));
    tell("mapping", "epoll", 1, area);
}

/* Suspects that lead to each other. */
static void fill_chains(void)
{
    secret first = mapping(), second = mapping(), thread = ended_thread();

    in_chain = map_anonymous(PAGE);
    put(in_chain, first);
    put((uintptr_t *)~first + 3, second);
    put((uintptr_t *)~second + 5, thread);
    tell("mapping", "chain, first", 1, first);
    tell("mapping", "chain, second", 1, second);
    tell("handle", "chain, end", 1, thread);

    first = mapping();
    second = mapping();
    thread = ended_thread();
    put((uintptr_t *)~first + 3, second);
    put((uintptr_t *)~second, first);
    put((uintptr_t *)~second + 5, thread);
    tell("mapping", "ring, first", 0, first);
    tell("mapping", "ring, second", 0, second);
    tell("handle", "ring, end", 0, thread);

    first = mapping();
    thread = start(return_it, (void *)~first);
    wipe();
    put(result_of, thread);
    tell("handle", "whose result is a pointer", 1, thread);
    tell("mapping", "result of a thread that can be joined", 1, first);

    first = mapping();
    thread = start(return_it, (void *)~first);
    wipe();
    tell("handle", "dropped, whose result is a pointer", 0, thread);
    tell("mapping", "result of a thread that can't be joined", 0, first);
}

static void drop(void)
{
    secret thread = ended_thread(), area = mapping();

    tell("handle", "dropped", 0, thread);
    tell("mapping", "dropped", 0, area);

    secrets[0] = ended_thread();
    secrets[1] = mapping();
    tell("handle", "stack of an exited thread", 0, secrets[0]);
    tell("mapping", "stack of an exited thread", 0, secrets[1]);
    thread = start(leave_in_frame, NULL);
    while (!__atomic_load_n(&left, __ATOMIC_ACQUIRE))
        pause_ms(1);
    wipe();
    tell("handle", "of that thread", 0, thread);

    secrets[0] = ended_thread();
    secrets[1] = mapping();
    tell("handle", "cached stack", 0, secrets[0]);
    tell("mapping", "cached stack", 0, secrets[1]);
    thread = start(leave_in_frame, NULL);
    need(!pthread_join((pthread_t)~thread, NULL));
    wipe();
}

static void fill_forms(void)
{
    static volatile uintptr_t forms[8];
    const struct {
        const char *name;
        uintptr_t add;
        int kept;
    } mappings[] = {{"pointer into the middle", LENGTH / 2 + 5, 1},
                    {"pointer to the end", LENGTH, 0},
                    {"pointer before", -1UL, 0},
                    {"tag in the top byte", 0x42UL << 56 | 0x100, 1},
                    {"tag in the upper 16 bits", 0xfffaUL << 48, 1}},
      handles[] = {{"pointer into the descriptor", 8, 0}, {"tag in the low bits", 5, 1}};

    for (int i = 0; i < 5; i++) {
        secret area = mapping();
        put((uintptr_t *)&forms[i], area);
        forms[i] += mappings[i].add;
        tell("mapping", mappings[i].name, mappings[i].kept, area);
    }
    for (int i = 0; i < 2; i++) {
        secret thread = ended_thread();
        put((uintptr_t *)&forms[5 + i], thread);
        forms[5 + i] += handles[i].add;
        tell("handle", handles[i].name, handles[i].kept, thread);
    }
}

int main(void)
{
    volatile uintptr_t frame[2];

    target_ready();
    fill_places();
    fill_threads();
    fill_kernel();
    fill_chains();
    fill_forms();
    fill("frame of main", (uintptr_t *)frame);
    drop();
    memset(secrets, 0, sizeof(secrets));
    wipe();
    target_done();
    return frame[0] && frame[1] ? 0 : 1;
}
