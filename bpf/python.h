/* SPDX-License-Identifier: Apache-2.0
 * Which Python code the calling thread runs: where CPython keeps a thread's frames is told by the reader
 * (ebpftrace/process/cpython.py), since versions differ.  Only addresses are taken here; names are read later.
 */
#pragma once

#ifdef TASK_THREAD
#define THREAD_POINTER_OFFSET (TASK_THREAD + THREAD_FSBASE)

/*
 * The interpreter lists its threads, each with its pthread_t, which is the thread pointer (glibc, musl).
 * Returns the address of the calling thread's state, 0 where it has none.
 */
static __always_inline u64 python_thread(struct python_t *python)
{
    u64 pointer = 0, interpreter = 0, thread = 0, id;

    read_kernel(&pointer, 8, (void *)(bpf_get_current_task() + THREAD_POINTER_OFFSET));
    if (!pointer || read_user(&interpreter, 8, (void *)python->interpreters) || !interpreter)
        return 0;
    if (read_user(&thread, 8, (void *)(interpreter + python->threads)))
        return 0;
#pragma nounroll
    for (int i = 0; i < PYTHON_THREADS; i++) {
        id = 0;
        if (!thread || read_user(&id, 8, (void *)(thread + python->thread_id)))
            return 0;
        if (id == pointer)
            return thread;
        if (read_user(&thread, 8, (void *)(thread + python->next_thread)))
            return 0;
    }
    return 0;
}

/*
 * Fills in the frames of the calling thread, innermost first, and how many there are; returns the hash with them
 * mixed in.  That is done here: in a loop of its own the verifier would follow each count to its end.
 */
static __always_inline u64 python_frames(struct python_t *python, struct python_frame_t *frames,
                                         u32 *count, u64 hash)
{
    u64 thread, frame = 0;

    *count = 0;
    if (!python->interpreters)
        return hash;
    thread = python_thread(python);
    if (!thread || read_user(&frame, 8, (void *)(thread + python->frame)))
        return hash;
    /* Before 3.13 there is one more step: the thread has a C frame, and that the Python frame. */
    if (python->by_c_frame && read_user(&frame, 8, (void *)(frame + python->of_c_frame)))
        return hash;
#pragma nounroll
    for (int i = 0; i < PYTHON_FRAMES; i++) {
        if (!frame || read_user(&frames[i].code, 8, (void *)(frame + python->code)) ||
            read_user(&frames[i].instruction, 8, (void *)(frame + python->instruction)) ||
            read_user(&frames[i].kind, 8, (void *)(frame + python->kind)) ||
            read_user(&frame, 8, (void *)(frame + python->caller)))
            break;
        hash = mix(mix(hash, frames[i].code), frames[i].instruction);
        *count = i + 1;
    }
    return hash;
}
#else
static __always_inline u64 python_frames(struct python_t *python, struct python_frame_t *frames,
                                         u32 *count, u64 hash)
{
    *count = 0;
    return hash;
}
#endif
