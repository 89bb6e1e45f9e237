/* SPDX-License-Identifier: Apache-2.0
 * The Python frames of the calling thread.  Where CPython keeps them depends on its version and comes from
 * user space (struct python_t).  Only addresses are read here; user space reads the names.
 */
#pragma once

#ifdef TASK_THREAD
#define THREAD_POINTER_OFFSET (TASK_THREAD + THREAD_FSBASE)

/* The innermost Python frame of a PyThreadState, 0 if it has none. */
static __always_inline u64 frame_of(struct python_t *python, u64 thread)
{
    u64 frame = 0;

    read_user(&frame, 8, (void *)(thread + python->frame));
    /* Before 3.13 the thread points to a C frame, which points to the Python frame. */
    if (python->by_c_frame)
        read_user(&frame, 8, (void *)(frame + python->of_c_frame));
    return frame;
}

/*
 * Returns the address of the calling thread's innermost Python frame, 0 if it has none.  The interpreter lists
 * its threads, the newest first, each with its pthread_t, which equals the thread pointer (glibc, musl).
 * While CPython before 3.12 creates a thread, the list has the new one already, without a frame and with the
 * creator's pthread_t (Python/pystate.c, _PyThreadState_Prealloc): the creator is the last one with it.
 *
 * A loop with few branches, twice: the verifier follows each branch in each iteration.  A failed read leaves
 * zeros.
 */
static __always_inline u64 python_frame(struct python_t *python)
{
    u64 pointer = 0, interpreter = 0, thread = 0, found, frame, id = 0;

    read_kernel(&pointer, 8, (void *)(bpf_get_current_task() + THREAD_POINTER_OFFSET));
    if (!pointer || read_user(&interpreter, 8, (void *)python->interpreters) || !interpreter)
        return 0;
    if (read_user(&thread, 8, (void *)(interpreter + python->threads)))
        return 0;
#pragma nounroll
    for (int i = 0; i < PYTHON_THREADS; i++) {
        if (read_user(&id, 8, (void *)(thread + python->thread_id)))
            return 0;
        if (id == pointer)
            break;
        read_user(&thread, 8, (void *)(thread + python->next_thread));
    }
    if (id != pointer)
        return 0;
    frame = frame_of(python, thread);
    if (frame)
        return frame;
    found = forget_range(thread, pointer);
#pragma nounroll
    for (int i = 0; i < PYTHON_THREADS && thread; i++) {
        read_user(&id, 8, (void *)(thread + python->thread_id));
        if (id == pointer)
            found = thread;
        read_user(&thread, 8, (void *)(thread + python->next_thread));
    }
    return frame_of(python, found);
}

/*
 * Stores the frames of the calling thread, innermost first, their count, and behind them the address of the
 * next one, 0 if there is none; returns `hash` with the frames mixed in.  This is done in the same loop, as the
 * verifier would follow a second one for each possible count.
 */
static __always_inline u64 python_frames(struct python_t *python, struct python_frame_t *frames,
                                         u32 *count, u64 hash)
{
    u64 frame;

    *count = 0;
    frames[0].address = 0;
    if (!python->interpreters)
        return hash;
    frame = python_frame(python);
    frames[0].address = frame;
#pragma nounroll
    for (int i = 0; i < PYTHON_FRAMES; i++) {
        if (!frame || read_user(&frames[i].code, 8, (void *)(frame + python->code)) ||
            read_user(&frames[i].instruction, 8, (void *)(frame + python->instruction)) ||
            read_user(&frames[i].kind, 8, (void *)(frame + python->kind)) ||
            read_user(&frames[i + 1].address, 8, (void *)(frame + python->caller)))
            break;
        frame = frames[i + 1].address;
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
    frames[0].address = 0;
    return hash;
}
#endif
