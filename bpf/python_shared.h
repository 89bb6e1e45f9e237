/* SPDX-License-Identifier: Apache-2.0
 * Frames of Python code, as the ledger and the call trace share them with user space (capture/layout.py).
 */
#pragma once

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

/*
 * Where CPython keeps the frames of a thread: the address of the list of interpreters (0: no Python) and
 * offsets in its structs.
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

/*
 * One frame of Python code: its address, its code object, the instruction, and the eight bytes with the kind
 * of frame.
 */
struct python_frame_t {
    u64 address;
    u64 code;
    u64 instruction;
    u64 kind;
};

/* Mixes one word into a hash (the constant is 2^64 / golden ratio). */
static __always_inline u64 mix(u64 hash, u64 word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 29;
}

/* Returns `value`.  The verifier forgets its range, and so does not follow each possible value separately. */
static __always_inline u64 forget_range(u64 value, u64 anything)
{
    asm volatile("%0 ^= %1\n"
                 "%0 ^= %1"
                 : "+r"(value)
                 : "r"(anything));
    return value;
}
