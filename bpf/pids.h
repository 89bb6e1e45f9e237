/* SPDX-License-Identifier: Apache-2.0
 * The tid of a task in the PID namespace of the tracer; it equals the kernel's own only in the initial
 * namespace.  0: the task is not in the tracer's namespace.  And its tid in its own namespace.
 */
#pragma once

#ifdef TASK_PID_OFFSET
/* struct upid (include/linux/pid.h): the number of a task in one of its namespaces. */
struct number_t {
    u32 number;
    u32 padding;
    u64 name_space;
};

/* The number of the running task in its own PID namespace, the deepest; 0 if that is the initial one. */
static __always_inline u32 inner_tid(void)
{
    struct number_t number = {};
    u64 pid = 0;
    u32 level = 0;

    read_kernel(&pid, sizeof(pid), (void *)(bpf_get_current_task() + TASK_PID_OFFSET));
    read_kernel(&level, sizeof(level), (void *)(pid + PID_LEVEL_OFFSET));
    if (!level || level > MAX_PID_LEVEL)
        return 0;
    read_kernel(&number, sizeof(number),
                (void *)(pid + PID_NUMBERS_OFFSET + level * sizeof(number)));
    return number.number;
}
#else
static __always_inline u32 inner_tid(void)
{
    return 0;
}
#endif

#ifdef PID_NAMESPACE
/*
 * A task has a number in each namespace from its own (the deepest) up to the initial one, which is never
 * read here: the tracer is in another one.  For tasks of the host this makes two reads.
 */
static __always_inline u32 tid_of(u64 task)
{
    struct number_t number = {};
    u64 pid = 0;
    u32 level = 0;
    u32 inode;

    read_kernel(&pid, sizeof(pid), (void *)(task + TASK_PID_OFFSET));
    read_kernel(&level, sizeof(level), (void *)(pid + PID_LEVEL_OFFSET));
#pragma nounroll
    for (int i = 0; i < MAX_PID_LEVEL; i++) {
        if (!level || level > MAX_PID_LEVEL)
            return 0;
        inode = 0;
        read_kernel(&number, sizeof(number),
                    (void *)(pid + PID_NUMBERS_OFFSET + level * sizeof(number)));
        read_kernel(&inode, sizeof(inode), (void *)(number.name_space + NAMESPACE_INODE_OFFSET));
        if (inode == PID_NAMESPACE)
            return number.number;
        level--;
    }
    return 0;
}

static __always_inline u32 current_tid(void)
{
    return tid_of(bpf_get_current_task());
}

static __always_inline void remember_executing(void)
{
    u64 task = bpf_get_current_task();
    u32 tid = tid_of(task);

    if (tid)
        put_executing(task, tid);
}

/* `number` is that of the initial namespace, so it can't be used here. */
static __always_inline u32 tid_before_exec(u32 number)
{
    u32 *tid = find_executing(bpf_get_current_task());

    return tid ? *tid : current_tid();
}
#else
static __always_inline u32 current_tid(void)
{
    return (u32)bpf_get_current_pid_tgid();
}

static __always_inline u32 tid_before_exec(u32 number)
{
    return number;
}
#endif
