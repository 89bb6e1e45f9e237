/* SPDX-License-Identifier: Apache-2.0
 * Structs that the kernel side shares with Python (ebpftrace/kernel/layout.py mirrors them, and
 * the loader compares sizes).  Sizes and addresses in bytes, times in ns of CLOCK_MONOTONIC.
 * Upper-case names that no header defines come from layout.definitions().
 */
#pragma once

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define REGISTER_WORDS (sizeof(struct pt_regs) / 8)

/* Index of the call counters; the order is that of layout.CALLS. */
enum call {
    CALL_MMAP,
    CALL_MUNMAP,
    CALL_MREMAP,
    CALL_BRK,
    CALL_CLONE,
    CALL_THREAD_EXIT,
    CALL_FORK, /* makes a process, or a helper that shares its parent's memory until it executes */
    CALLS,
};

/* The calls whose stacks are recorded, numbered from 0. */
#define RECORDED_CALLS 4
#define COPY_BUFFERS (RECORDED_CALLS * CPUS)
static __always_inline u32 index_of(u32 call)
{
    return call == CALL_MMAP ? 0 : call == CALL_BRK ? 1 : call == CALL_CLONE ? 2 : 3;
}

/* One row of the ledger, keyed by its start (see key_of()). */
struct mapping_t {
    u64 length;
    u64 since;   /* when this range became this mapping: exit of mmap or mremap */
    u64 made_at; /* exit of the mmap call that made it */
    u64 mapper_born;
    u64 site; /* signature of the user stack that made it, 0: none */
    u32 mapper_tid;
    u32 prot;
    u32 flags;
    u32 is_stack; /* a clone3 call named its start as a stack */
};

/*
 * The life of one task in a traced address space.  First, in one cache line, what its exit looks at and
 * writes: the task seldom exits on the CPU on which it was created.
 */
struct life_t {
    u64 born;
    u64 exited_at;   /* 0 while it lives */
    s64 outstanding; /* rows of the ledger that this thread mapped */
    s64 brk_growth;
    u64 stack; /* clone3: lowest byte; clone: a pointer near the top; 0: none was given, or it is gone */
    u32 tid;
    u32 space;
    char name[NAME_BYTES];
    u64 stack_size; /* clone3 only, else 0 */
    u64 site;       /* signature of the user stack that made the clone call */
    u64 creator_born;
    u32 creator_tid;
    u32 tgid;
    char creator_name[NAME_BYTES];
    u64 creator_sp; /* where the creator stood: a child on the same stack only borrows it */
    u64 stood; /* its stack pointer at a call or at its exit, where it was on no stack it was given */
    u64 stood_at;
    u32 is_thread; /* it counts as one: no vfork child, no worker of the kernel's */
    u32 dies_with; /* it exited because its whole process ended */
};

/*
 * The mapping that a thread made last.  Most of those that end soon are unmapped by their thread before
 * it makes another, and a table's entry, made and dropped again, costs several times as much.
 * It counts as a row of the ledger under its key, but only its own thread finds it here.
 */
struct newest_t {
    u64 key;
    struct mapping_t row; /* length 0: there is none */
    u64 check;            /* sum over the above: a reader sees by it what is half written */
};

struct libc_key_t {
    u64 inode;
    u32 device; /* as the kernel numbers it (include/linux/kdev_t.h) */
    u32 reserved;
};

/* In place of 1 in is_hard: it is the end of one row, and no others lie there. */
#define HARD_ALONE 2

/*
 * What is known of a task; while it lives, only the task itself writes it, but for stack, outstanding and
 * shares.  Who was given a stack stays here when he has exited, until the stack is gone or another's.
 */
struct thread_t {
    struct life_t life;
    u32 waits_for_exec; /* a COMMAND that has not started yet: nothing is recorded */
    u32 has_called;     /* some of calls[] is not 0, or there is a newest mapping */
    u64 calls[CALLS];
    u64 entered_at;       /* of the munmap or mremap call in flight */
    struct mapping_t row; /* the row that this call took out of the ledger ... */
    u32 has_row;          /* ... if it did */
    u32 is_hard;          /* the call can't be settled by a start match: it goes out as an event */
    u32 entered;          /* enum call: the munmap or mremap call whose enter was seen, or 0 */
    u32 shares;           /* others end what it maps: it keeps nothing to itself */
    u64 failures_from;    /* the running second ... */
    u64 failures_told;    /* ... and how many calls that failed in it were told of */
    u32 image; /* the process that executed the program: itself, or whom it was forked from */
    u32 reserved;
    struct libc_key_t
        libc;      /* of a process without an address space of its own here (space NO_SPACE) ... */
    u64 libc_base; /* ... once it is mapped */
    struct newest_t newest;
};

struct life_key_t {
    u64 born;
    u32 tid;
    u32 reserved;
};

struct range_t {
    u64 start;
    u64 end;
};

/*
 * Where CPython keeps the frames of a thread: the address of the list of interpreters (0: there is no Python),
 * and offsets in its structs.
 */
struct python_t {
    u64 interpreters;
    u64 threads;
    u64 next_thread;
    u64 thread_id;
    u64 frame;
    u64 by_c_frame;
    u64 of_c_frame;
    u64 code;
    u64 instruction;
    u64 kind;
    u64 caller;
};

/* One frame of Python code: its code object, the instruction, and eight bytes that tell who called it. */
struct python_frame_t {
    u64 code;
    u64 instruction;
    u64 kind;
};

/* What Python tells the kernel side of an address space; the kernel only reads it. */
struct told_t {
    struct range_t code[IMAGES]; /* a word that points there may be a return address */
    struct range_t all_code; /* from the first of them to the last: most words are not even here */
    u64 baseline_at;         /* /proc/PID/maps had been read by then */
    struct python_t python;
};

/* When a call touched a place that a start match could not settle. */
struct touched_t {
    u64 hard_at;
    u64 moved_at; /* and that was an mremap */
};

/* One traced address space. */
struct space_t {
    struct touched_t latest;     /* whichever place it was */
    struct touched_t everywhere; /* a call that touched too much to be noted by place */
    u64 brk;                     /* current break, 0: not known yet */
    u64 code_at;                 /* last time that the reader was told of executable memory */
    u64 settled_at; /* of a number that many may have one after the other: since when it is this one's */
    /* An exit writes what follows, a munmap on another CPU reads the above: a cache line for each. */
    u64 reserved[1];
    u64 calls[CALLS]; /* of threads that have exited */
    u64 lost_events;
    u64 lost_mappings;
    u64 lost_threads;
    u64 lost_runs; /* of our programs, as the calls that lack an enter or an exit tell */
};

/* One size for all kinds, so that Python reads them in bulk (layout.CALL_EVENT, layout.ROW_EVENT). */
struct event_t {
    u16 kind; /* EVENT_*, defined by the loader from layout.EventKind */
    u16 space;
    u32 tid; /* who made the call; EVENT_DISPLACED: the mapper */
    union {
        struct {
            u64 at;      /* enter of the call: what is older is concerned */
            u64 done_at; /* exit of the call */
            u64 start;
            u64 length;
            u64 new_start;
            u64 new_length;
            u64 flags; /* of mmap and mremap; EVENT_FAILED: above them, from bit 32, enum call and errno */
        } call;
        struct {
            u64 since;
            u64 made_at;
            u64 start;
            u64 length;
            u64 mapper_born;
            u64 site;
            u32 prot;
            u32 flags;
        } row; /* EVENT_DISPLACED: it left the ledger, but a part of it may stand */
        struct {
            u64 descriptor; /* struct pthread, and what it said when it was read ... */
            u64 join;
            u64 start_routine;
            u64 block;
            u64 block_size;
            u32 tid;
            u32 cancelhandling;
            u32 setxid;
            u32 place; /* ... on which list (lowest bit: that of the application's stacks), in which pass */
        } listed; /* EVENT_LISTED */
        struct {
            u64 at;
            u64 born; /* when it was forked, or executed its program */
            u32 tgid;
            u32 image; /* as in thread_t */
            char name[NAME_BYTES];
        } settled; /* EVENT_SETTLED: a process has got a number, that of the event */
    };
};

/* What must be known of a glibc to walk its lists of thread stacks (ebpftrace/process/books/lists.py). */
struct libc_t {
    u64 text; /* of the executable segment: address less offset in the file */
    u64 root; /* where it keeps the address of _rtld_global, 0: nowhere */
    u64 used; /* heads of the lists: offsets in _rtld_global, else addresses before relocation */
    u64 user;
    u32 link; /* offsets in struct pthread */
    u32 tid;
    u32 cancelhandling;
    u32 setxid;
    u32 join;
    u32 start_routine;
    u32 block;
    u32 reserved;
};

/* The libc of an address space. */
struct library_t {
    struct libc_key_t key;
    u64 base;     /* what relocation adds to its addresses */
    u64 is_known; /* libc is filled in */
    struct libc_t libc;
};

/* A walk along the lists of an address space, at its end. */
struct walk_t {
    u64 ended_at; /* first sign of the end, 0: none */
    u64 began_at; /* of the running walk */
    u64 heads[2]; /* used, user */
    u64 node;
    u64 came_from;
    u64 seen;
    u64 sent;
    u32 list;
    u32 pass;   /* counts walks, also those that were broken off */
    u32 again;  /* how often the running walk was begun anew */
    u32 stop;   /* WALK_* */
    u32 tgid;   /* the process that stands for the address space */
    u32 reason; /* END_* */
};

/* How often a site's stack was copied, how far its calls moved the break, and how many did. */
struct site_t {
    u64 copies;
    s64 brk_growth;
    u64 brk_calls;
};

/* Registers and stack of a thread at a call. */
struct copy_t {
    u64 site;
    u64 at; /* made_at of the mapping, born of the thread, or exit of the brk call */
    u32 tid;
    u32 space;
    u32 call;
    u32 size;    /* bytes in memory[] that were read */
    u32 is_cut;  /* the copy ended at its size limit, not at the end of the stack */
    u32 missing; /* pages that were not in memory: bit n is the one after the first and n more */
    u32 python_count;
    u32 has_argument;
    u64 argument[ARGUMENT_WORDS]; /* a word, and what a start routine is given the address of */
    struct python_frame_t python[PYTHON_FRAMES];
    u64 registers[REGISTER_WORDS];
    u8 memory[STACK_BYTES + PAGE_BYTES];
};

/* A file that is executed from here on: which one, and where it lies. */
struct image_t {
    u64 at;
    u64 start; /* of an mmap call */
    u64 length;
    u64 offset; /* in the file */
    u64 inode;
    u32 device; /* as the kernel numbers it (include/linux/kdev_t.h) */
    u32 tid;
    u32 space;
    u32 is_program; /* an exec: auxv says where it and its interpreter lie */
    u32 slots;      /* of names[] that are used */
    u32 reserved;
    u64 auxv[AUXV_WORDS];
    /* From the file up to the root; empty ones are no part of the path. */
    char names[PATH_NAMES][NAME_SLOT];
};

/*
 * What one program has on one CPU: copies taken in the running second, and room for what the BPF
 * stack has none for.  On Linux 7 a program can be preempted by another, never by itself.
 */
struct cpu_t {
    u64 second_from;
    u64 copies;
    u64 fresh_copies;          /* first ones of a site, which have a budget of their own */
    u64 words[PAGE_BYTES / 8]; /* to the end of the page is what older verifiers know of the size */
    struct thread_t child;
};

/* Mixes one word into a hash (the constant is 2^64 / golden ratio). */
static __always_inline u64 mix(u64 hash, u64 word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 29;
}

/* The value as it is; the verifier, which would follow each range that it may have, takes it for any. */
static __always_inline u64 forget_range(u64 value, u64 anything)
{
    asm volatile("%0 ^= %1\n"
                 "%0 ^= %1"
                 : "+r"(value)
                 : "r"(anything));
    return value;
}
