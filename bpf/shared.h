/* SPDX-License-Identifier: Apache-2.0
 * Structs that the kernel side shares with Python (ebpftrace/capture/layout.py mirrors them, and
 * the loader compares sizes).  Sizes and addresses in bytes, times in ns of CLOCK_MONOTONIC.
 * Upper-case names that no header defines come from layout.definitions().
 */
#pragma once

#include "python_shared.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define REGISTER_WORDS (sizeof(struct pt_regs) / 8)

/* Index of the call counters, in the order of layout.CALLS. */
enum call {
    CALL_MMAP,
    CALL_MUNMAP,
    CALL_MREMAP,
    CALL_BRK,
    CALL_CLONE,
    CALL_THREAD_EXIT,
    CALL_FORK, /* makes a process, or a helper that shares its parent's memory until it executes */
    CALLS,
    CALL_FAULT = CALLS, /* no call: a page fault; its stacks are bpf/faults.c's */
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
    u64 mapper_started_at;
    u64 site; /* signature of the user stack that made it, 0: none */
    u32 mapper_tid;
    u32 prot;
    u32 flags;
    u32 is_stack; /* a clone3 call named its start as a stack */
};

/*
 * One task in a traced address space.  The fields that its exit reads and writes come first, in one cache
 * line: the task seldom exits on the CPU on which it was created.
 */
struct task_t {
    u64 started_at;
    u64 exited_at;   /* 0: it is alive */
    s64 outstanding; /* rows of the ledger that this thread mapped */
    s64 brk_growth;
    u64 stack; /* clone3: lowest byte; clone: a pointer near the top; 0: none was given, or it is unmapped */
    u32 tid;
    u32 space;
    char name[NAME_BYTES];
    u64 stack_size; /* clone3 only, else 0 */
    u64 site;       /* signature of the user stack that made the clone call */
    u64 creator_started_at;
    u32 creator_tid;
    u32 tgid;
    char creator_name[NAME_BYTES];
    u64 creator_sp; /* the creator's stack pointer: a child on the same stack only borrows it */
    u64 last_sp;    /* its last stack pointer seen outside of the stack that it was given */
    u64 last_sp_at;
    u8 is_thread; /* it counts as a thread: it is no vfork child and no worker thread of the kernel */
    u8 dies_with; /* it exited because its whole process ended */
    u16 reserved;
    u32 inner_tid; /* its tid in its own PID namespace, known at its exit; 0: that is the initial one */
};

/*
 * The mapping that a thread made last.  Most short-lived mappings are unmapped by the same thread before it
 * makes the next one, and to insert and delete a hash entry would cost several times as much.  It counts as a
 * row of the ledger, but only its thread finds it.
 */
struct newest_t {
    u64 key;
    struct mapping_t row; /* length 0: there is none */
    u64 check;            /* sum over the above, by which a reader detects half-written rows */
};

struct libc_key_t {
    u64 inode;
    u32 device; /* as the kernel numbers it (include/linux/kdev_t.h) */
    u32 reserved;
};

/*
 * In place of 1 in needs_replay: the call unmaps one whole row, and no other row begins in its range.  A row
 * that begins before it may have lost this range, if the one that was unmapped was a leftover: mremap takes no
 * older row for whole (alone_at).
 */
#define REPLAY_ALONE 2

/*
 * A task.  While it lives only the task itself writes this, except for stack, outstanding and cache_disabled.
 * A task that was given a stack stays in this table after its exit until that stack is unmapped or reused.
 */
struct thread_t {
    struct task_t task;
    u32 waits_for_exec; /* a COMMAND that has not started yet: nothing is recorded */
    u32 has_called;     /* some of calls[] is not 0, or there is a newest mapping */
    u64 calls[CALLS];
    u64 entered_at;       /* of the munmap or mremap call in flight */
    struct mapping_t row; /* the row that this call took out of the ledger, if has_row */
    u32 has_row;
    u32 needs_replay;   /* the call can't be settled by a start match: it goes out as an event */
    u32 entered;        /* enum call: the munmap or mremap call whose enter was seen, or 0 */
    u32 cache_disabled; /* other threads unmap its mappings: all of them go into the table */
    u64 failures_from;  /* begin of the current second of failed calls */
    u64 failures_sent;  /* failed calls sent in that second */
    u32 image; /* tgid of the process that executed the program: this one, or an ancestor that forked it */
    u32 parent; /* tgid of the nearest ancestor with a number; 0: the user named this process */
    struct libc_key_t libc; /* of a process without a number (NO_SPACE), once its libc is mapped */
    u64 libc_base;          /* likewise */
    u64 brk;                /* its break likewise, 0: not known yet */
    struct newest_t newest;
};

/* The number of a process that user space or its first call has given to it (capture/silent.py). */
struct given_t {
    u64 started_at; /* of the process */
    u32 space;
    u32 reserved;
};

struct task_key_t {
    u64 started_at;
    u32 tid;
    u32 reserved;
};

struct range_t {
    u64 start;
    u64 end;
};

/* Configuration of an address space, which user space writes and the BPF programs only read. */
struct space_config_t {
    struct range_t code[IMAGES]; /* a word that points there may be a return address */
    struct range_t all_code; /* from the first of them to the last: excludes most words quickly */
    u64 baseline_at;         /* the end of the first reading of /proc/PID/maps */
    struct python_t python;
};

/* When a place was touched last by a call that a start match could not settle. */
struct touched_t {
    u64 ambiguous_at; /* by any such call */
    u64 moved_at;     /* by an mremap */
};

/* One traced address space. */
struct space_t {
    struct touched_t latest;     /* by calls in any place */
    struct touched_t everywhere; /* by calls that touched too much to be recorded by place */
    u64 brk;                     /* current break, 0: not known yet */
    u64 code_at;                 /* when the last EVENT_CODE was sent */
    u64 settled_at;              /* when this process got the number; numbers are reused */
    u64 alone_at;                /* when a call with REPLAY_ALONE last began or returned */
    /* Each exit writes the fields below, each munmap reads those above: separate cache lines. */
    u64 calls[CALLS]; /* of threads that have exited */
    u64 lost_events;
    u64 lost_mappings;
    u64 lost_threads;
    u64 lost_runs; /* runs that the kernel skipped: calls of which entry or exit was not seen */
};

/* One size for all kinds, so that Python reads them in bulk (layout.CALL_EVENT, layout.ROW_EVENT). */
struct event_t {
    u16 kind; /* EVENT_*, defined by the loader from layout.EventKind */
    u16 space;
    u32 tid; /* of the caller; EVENT_EVICTED: of the mapper */
    union {
        struct {
            u64 at;      /* entry of the call, which affects only what is older */
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
            u64 mapper_started_at;
            u64 site;
            u32 prot;
            u32 flags;
        } row; /* EVENT_EVICTED: it left the ledger, but a part of it may still be mapped */
        struct {
            u64 descriptor; /* address of struct pthread; the fields below are copied from it */
            u64 join;
            u64 start_routine;
            u64 block;
            u64 block_size;
            u32 tid;
            u32 cancelhandling;
            u32 setxid;
            u32 place; /* the pass << 1, plus 1 for the list of stacks that the application provided */
        } listed;      /* EVENT_LISTED */
        struct {
            u64 at;
            u64 started_at; /* when it was forked, or executed its program */
            u32 tgid;
            u32 image; /* as in thread_t */
            char name[NAME_BYTES];
            u32 parent; /* as in thread_t */
        } settled;      /* EVENT_SETTLED: a process has got a number, which is the event's space */
    };
};

/* What must be known of a glibc to walk its lists of thread stacks (ebpftrace/nptl/lists.py). */
struct libc_t {
    u64 text; /* executable segment: address minus file offset */
    u64 root; /* where libc stores the address of _rtld_global; 0: the heads are in libc itself */
    u64 used; /* list heads: offsets in _rtld_global if root is set, else addresses before relocation */
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
    u64 base;     /* load address, which relocation adds to its addresses */
    u64 is_known; /* libc is filled in */
    struct libc_t libc;
};

/* A walk along glibc's lists at the end of an address space. */
struct walk_t {
    u64 ended_at; /* when the first sign of the end was seen; 0: none yet */
    u64 began_at; /* begin of the current walk */
    u64 heads[2]; /* used, user */
    u64 node;
    u64 came_from;
    u64 seen;
    u64 sent;
    u32 list;
    u32 pass;   /* number of walks, also of those that were abandoned */
    u32 again;  /* restarts of the current walk */
    u32 stop;   /* WALK_* */
    u32 tgid;   /* the process that represents the address space */
    u32 reason; /* END_* */
};

/* Counters of a site. */
struct site_t {
    u64 copies;     /* of its stack */
    s64 brk_growth; /* net bytes by which its calls moved the break */
    u64 brk_calls;  /* calls that moved the break */
};

/* Registers and stack of a thread at a call. */
struct copy_t {
    u64 site;
    u64 at; /* made_at of the mapping, started_at of the thread, or exit of the brk call */
    u32 tid;
    u32 space;
    u32 call;
    u32 size;    /* bytes in memory[] that were read */
    u32 is_cut;  /* the copy ended at its size limit, not at the end of the stack */
    u32 missing; /* steps that were not in memory; bit 0 is the second step of the copy */
    u32 python_count;
    u32 has_argument;
    u64 argument
        [ARGUMENT_WORDS]; /* what the start routine's argument points to, after the word before */
    struct python_frame_t python[PYTHON_FRAMES + 1]; /* of the last one the address alone */
    u64 registers[REGISTER_WORDS];
    u8 memory[STACK_BYTES + STEP_BYTES];
};

/* An executable file that was mapped or executed. */
struct image_t {
    u64 at;
    u64 start; /* of the mapping; 0 for an exec */
    u64 length;
    u64 offset; /* in the file */
    u64 inode;
    u32 device; /* as the kernel numbers it (include/linux/kdev_t.h) */
    u32 tid;
    u32 space;
    u32 is_program; /* an exec: auxv says where the program and its interpreter are mapped */
    u32 slots;      /* used slots of names[] */
    u32 reserved;
    u64 auxv[AUXV_WORDS];
    /* From the file up to the root; empty names are mount points and no part of the path. */
    char names[PATH_NAMES][NAME_SLOT];
};

/*
 * Data of one program on one CPU: the budget of copies, and buffers that do not fit on the BPF stack.
 * On Linux 7 a program can be preempted by another, never by itself.
 */
struct cpu_t {
    u64 second_from;
    u64 copies;
    u64 fresh_copies;          /* the first copies of a site have a separate budget */
    u64 words[STEP_BYTES / 8]; /* a step: older verifiers bound the size of a read no closer */
    struct thread_t child;
};
