/* SPDX-License-Identifier: Apache-2.0
 * Records of the call trace, shared with Python (ebpftrace/capture/calls/layout.py mirrors them).
 * Times in ns of CLOCK_MONOTONIC.  Upper-case names that no header defines come from there too.
 */
#pragma once

#include "python_shared.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/* A task whose calls are traced. */
struct traced_t {
    u64 entered_at; /* of the running call, 0: not seen */
    u32 tgid;
    u32 image; /* tgid of the process that executed the program: this one, or an ancestor that forked it */
    u32 waits_for_exec; /* a COMMAND that has not started yet: nothing is recorded */
    u32 reserved;
};

/* Every record begins with this; the record of a stack has the time and the tid of its call. */
struct head_t {
    u64 at; /* when the call returned, or the task began to exit or to execute */
    u32 tid;
    u16 kind; /* RECORD_* */
    u16 number;
};

struct call_t {
    struct head_t head;
    u64 entered_at; /* 0: not known */
    s64 returned; /* RECORD_ENDED: the exit code as wait(2) encodes it; RECORD_EXECUTED: old tid */
    u64 lost;     /* calls lost before this one because the buffer was full */
    u64 arguments[6];
    u32 tgid;
    u32 image; /* as in traced_t */
};

/* RECORD_CLONED: a clone or clone3 call with its arguments in memory. */
struct clone_t {
    struct call_t call;
    u64 arguments[CLONE_WORDS]; /* struct clone_args, include/uapi/linux/sched.h */
    u32 fetched;                /* bytes of it that could be read */
    u32 is_read;                /* READ_*: which of the fields below could be read */
    s32 parent_tid;             /* stored by CLONE_PARENT_SETTID */
    s32 pidfd;                  /* stored by CLONE_PIDFD */
};

/* RECORD_EXECUTES: the arguments of an execve call, whose memory is gone when it returns. */
struct exec_t {
    struct call_t call;
    u64 pointers[EXEC_STRINGS];
    s32 sizes[EXEC_STRINGS]; /* with the final NUL; negative: could not be read */
    u32 string_count;        /* EXEC_STRINGS + 1: there are more */
    u32 is_open;             /* the rest of the array could not be read */
    s32 variable_count;      /* of the environment; negative: could not be read */
    s32 path_size;
    char strings[EXEC_STRINGS][EXEC_STRING_BYTES];
    char path[PATH_BYTES];
};

/* RECORD_STACK */
struct stack_t {
    struct head_t head;
    u32 size;
    u32 is_cut; /* the copy ended at its size limit, not at the end of the stack */
    u32 tgid;
    u32 image;   /* as in traced_t */
    u32 missing; /* steps that were not in memory; bit 0 is the second step of the copy */
    u32 python_count;
    struct python_frame_t python[PYTHON_FRAMES + 1]; /* of the last one the address alone */
    u64 registers[sizeof(struct pt_regs) / 8];
    u8 memory[STACK_BYTES + STEP_BYTES];
};

/* One line of the summary. */
struct total_t {
    u64 calls;
    u64 errors;
    u64 ns;
};

struct lost_t {
    u64 calls;
    u64 stacks;
    u64 threads;
};
