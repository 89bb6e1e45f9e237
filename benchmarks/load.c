// SPDX-License-Identifier: Apache-2.0
/*
 * A process that works on command and says how much it got done: load KIND.
 *
 * Prints "ready"; then, for each line "MILLISECONDS RATE" on stdin, works that long at that rate
 * (operations a second, 0: all it can) and prints "OPERATIONS" and for each level of noise that it had
 * "LEVEL PARTS PACE": the seconds that an operation took, the median of so many parts of that time.  For
 * "hold" a line is "MAPPINGS SITES", for "crowd" it is "THREADS 0".  So one process is measured untraced
 * and under each tool.  Something is always done: no answer means no progress.
 *
 * On a virtual machine, who else uses the physical core makes the same work take up to 1.8 times as long,
 * for milliseconds or minutes, and nothing inside the machine tells.  So each part lies between two passes
 * of reference work, which no tool slows down: how long that took, in steps of 12 %, is the part's level.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MAPPING_BYTES (64UL << 10)
#define STACK_BYTES (64UL << 20) /* more than the 40 MiB of stacks that glibc keeps */
#define CROWD_STACK_BYTES (64UL << 10)
#define BATCH 16
#define SLOTS 64
#define PATH_BITS 10 /* calls between the root and the mmap of hold(): 1024 paths */
#define NS 1e9
#define PART_SECONDS 5e-4
#define MOST_PARTS 4096              /* of a thread in a slice */
#define REFERENCE_BYTES (64UL << 10) /* more than fits into the cache that is nearest */
#define REFERENCE_PASSES 8
#define LINE 64
#define LEVELS_PER_DOUBLING 6

#define need(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            perror(#condition);                                                                    \
            _exit(70);                                                                             \
        }                                                                                          \
    } while (0)

struct slice {
    double start;
    double seconds;
    double rate;
};

struct part {
    double pace; /* seconds of an operation */
    int level;   /* of the slower reference, that before or after */
};

/* Of one thread in a slice. */
struct progress {
    struct slice slice;
    unsigned long done;
    double part_start;
    unsigned long done_before_part;
    double reference; /* before the part */
    size_t count;
    struct part *parts;
};

static volatile unsigned char reference_bytes[REFERENCE_BYTES];

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / NS;
}

/* Work for the ports and the caches of a core, without a system call: seconds that it takes. */
static double reference(void)
{
    double start = now();

    for (int pass = 0; pass < REFERENCE_PASSES; pass++)
        for (unsigned long at = 0; at < REFERENCE_BYTES; at += LINE)
            (void)reference_bytes[at];
    return now() - start;
}

static struct progress begin(struct slice slice)
{
    struct progress progress = {.slice = slice};

    progress.parts = malloc(MOST_PARTS * sizeof(*progress.parts));
    need(progress.parts);
    progress.reference = reference();
    progress.part_start = now();
    return progress;
}

static int level_of(double reference)
{
    return LEVELS_PER_DOUBLING * log2(reference * NS);
}

static void end_part(struct progress *progress, double time)
{
    double before = progress->reference;
    unsigned long done = progress->done - progress->done_before_part;

    progress->reference = reference();
    if (progress->count < MOST_PARTS)
        progress->parts[progress->count++] = (struct part){
            .pace = (time - progress->part_start) / (double)done,
            .level = level_of(before > progress->reference ? before : progress->reference),
        };
    progress->part_start = now();
    progress->done_before_part = progress->done;
}

/* What a thread of a slice did counts as the slice's. */
static void add(struct progress *progress, struct progress *thread)
{
    progress->done += thread->done;
    for (size_t i = 0; i < thread->count && progress->count < MOST_PARTS; i++)
        progress->parts[progress->count++] = thread->parts[i];
    free(thread->parts);
}

static int by_level_and_pace(const void *one, const void *other)
{
    const struct part *left = one;
    const struct part *right = other;

    if (left->level != right->level)
        return left->level - right->level;
    return (left->pace > right->pace) - (left->pace < right->pace);
}

/* Prints what came of a slice. */
static void tell(struct progress *progress)
{
    struct part *parts = progress->parts;
    size_t end;

    qsort(parts, progress->count, sizeof(*parts), by_level_and_pace);
    printf("%lu", progress->done);
    for (size_t first = 0; first < progress->count; first = end) {
        for (end = first; end < progress->count && parts[end].level == parts[first].level;)
            end++;
        printf(" %d %zu %.12f", parts[first].level, end - first, parts[(first + end) / 2].pace);
    }
    putchar('\n');
    free(parts);
}

/* Whether there is time for more; waits where more was done than the rate allows. */
static int goes_on(struct progress *progress, unsigned long done)
{
    const struct slice *slice = &progress->slice;
    double time = now();
    double passed = time - slice->start;
    double ahead;
    struct timespec pause = {0};

    progress->done += done;
    if (time - progress->part_start >= PART_SECONDS || passed >= slice->seconds)
        end_part(progress, time);
    ahead = slice->rate > 0 ? progress->done / slice->rate - passed : 0;
    if (ahead > 0) {
        pause.tv_sec = ahead;
        pause.tv_nsec = (ahead - pause.tv_sec) * NS;
        nanosleep(&pause, NULL);
    }
    return passed < slice->seconds;
}

static void *map(int protection)
{
    void *start = mmap(NULL, MAPPING_BYTES, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    need(start != MAP_FAILED);
    return start;
}

static void pairs(struct progress *progress, int is_touched)
{
    do {
        for (int i = 0; i < BATCH; i++) {
            volatile char *start = map(PROT_READ | PROT_WRITE);

            for (unsigned long at = 0; is_touched && at < MAPPING_BYTES; at += PAGE)
                start[at] = 1;
            need(!munmap((void *)start, MAPPING_BYTES));
        }
    } while (goes_on(progress, BATCH));
}

static void untouched(struct progress *progress)
{
    pairs(progress, 0);
}

static void touched(struct progress *progress)
{
    pairs(progress, 1);
}

/* The pages of one mapping, again and again: nothing but page faults. */
static void faults(struct progress *progress)
{
    char *start = map(PROT_READ | PROT_WRITE);

    do {
        for (unsigned long at = 0; at < MAPPING_BYTES; at += PAGE)
            ((volatile char *)start)[at] = 1;
        need(!madvise(start, MAPPING_BYTES, MADV_DONTNEED));
    } while (goes_on(progress, MAPPING_BYTES / PAGE));
    need(!munmap(start, MAPPING_BYTES));
}

static void ask_parent(struct progress *progress)
{
    do {
        for (int i = 0; i < BATCH; i++)
            syscall(SYS_getppid);
    } while (goes_on(progress, BATCH));
}

static void *end_at_once(void *nothing)
{
    return nothing;
}

static void threads(struct progress *progress)
{
    pthread_attr_t attributes;
    pthread_t thread;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, STACK_BYTES));
    do {
        need(!pthread_create(&thread, &attributes, end_at_once, NULL));
        need(!pthread_join(thread, NULL));
    } while (goes_on(progress, 1));
}

struct allocator {
    struct progress progress;
    unsigned long random;
    pthread_t thread;
};

static unsigned long next_random(struct allocator *allocator)
{
    allocator->random ^= allocator->random << 13;
    allocator->random ^= allocator->random >> 7;
    allocator->random ^= allocator->random << 17;
    return allocator->random;
}

/* Mostly small, one in 64 up to 64 KiB, one in 4096 beyond malloc's first threshold for mmap. */
static size_t next_size(struct allocator *allocator)
{
    unsigned long random = next_random(allocator);

    if (!(random & 4095))
        return 256 << 10;
    return 16 + (random >> 12) % (random & 63 ? 1024 : 64 << 10);
}

static void *allocate(void *argument)
{
    struct allocator *allocator = argument;
    char *slots[SLOTS] = {0};

    allocator->progress = begin(allocator->progress.slice);
    do {
        for (int i = 0; i < BATCH; i++) {
            char **slot = &slots[next_random(allocator) % SLOTS];

            free(*slot);
            *slot = malloc(next_size(allocator));
            need(*slot);
            **slot = 1;
        }
    } while (goes_on(&allocator->progress, BATCH));
    for (int i = 0; i < SLOTS; i++)
        free(slots[i]);
    return NULL;
}

static void allocations(struct progress *progress)
{
    long count = 2 * sysconf(_SC_NPROCESSORS_ONLN);
    struct allocator allocators[count];

    for (long i = 0; i < count; i++) {
        allocators[i] = (struct allocator){.progress.slice = progress->slice, .random = i + 1};
        need(!pthread_create(&allocators[i].thread, NULL, allocate, &allocators[i]));
    }
    for (long i = 0; i < count; i++) {
        need(!pthread_join(allocators[i].thread, NULL));
        add(progress, &allocators[i].progress);
    }
}

struct holding {
    unsigned long mappings;
    unsigned long sites;
};

/* Calls itself from two places: each path of `bits` is a site of its own. */
__attribute__((noinline)) static void map_by_path(unsigned long path, int bits, int protection)
{
    if (!bits) {
        map(protection);
    } else if (path & 1) {
        map_by_path(path >> 1, bits - 1, protection);
        __asm__ volatile("# odd"); /* or the compiler makes one call of the two */
    } else {
        map_by_path(path >> 1, bits - 1, protection);
        __asm__ volatile("# even");
    }
}

static void *hold_some(void *argument)
{
    struct holding *holding = argument;

    /* Neighbours differ, so that the kernel does not merge them. */
    for (unsigned long i = 0; i < holding->mappings; i++)
        map_by_path(i % holding->sites, PATH_BITS, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
    return NULL;
}

/* Orphans: mappings of a thread that exits. */
static void hold(unsigned long mappings, unsigned long sites)
{
    struct holding holding = {mappings, sites ? sites : 1};
    pthread_t thread;

    need(!pthread_create(&thread, NULL, hold_some, &holding));
    need(!pthread_join(thread, NULL));
}

static void *wait_forever(void *nothing)
{
    for (;;)
        pause();
    return nothing;
}

static void crowd(unsigned long count)
{
    pthread_attr_t attributes;
    pthread_t thread;

    need(!pthread_attr_init(&attributes));
    need(!pthread_attr_setstacksize(&attributes, CROWD_STACK_BYTES));
    for (unsigned long i = 0; i < count; i++)
        need(!pthread_create(&thread, &attributes, wait_forever, NULL));
}

static const struct {
    const char *name;
    void (*work)(struct progress *progress);
} kinds[] = {{"untouched", untouched}, {"touched", touched}, {"faults", faults},
             {"getppid", ask_parent},  {"threads", threads}, {"malloc", allocations},
             {"hold", NULL},           {"crowd", NULL}};

#define KINDS (sizeof(kinds) / sizeof(*kinds))

int main(int argc, char **argv)
{
    size_t kind = 0;
    char line[64];
    double first, second;

    while (kind < KINDS && (argc != 2 || strcmp(argv[1], kinds[kind].name) != 0))
        kind++;
    if (kind == KINDS) {
        fprintf(stderr, "usage: load untouched|touched|faults|getppid|threads|malloc|hold|crowd\n");
        return 2;
    }
    /* Never written, all its pages would be one. */
    memset((void *)reference_bytes, 1, sizeof(reference_bytes));
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof(line), stdin) && sscanf(line, "%lf %lf", &first, &second) == 2) {
        struct progress progress = begin((struct slice){now(), first / 1000, second});

        if (kinds[kind].work) {
            kinds[kind].work(&progress);
        } else {
            progress.done = first;
            if (kinds[kind].name[0] == 'h')
                hold(first, second);
            else
                crowd(first);
        }
        tell(&progress);
    }
    return 0;
}
