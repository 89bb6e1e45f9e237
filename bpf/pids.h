/* SPDX-License-Identifier: Apache-2.0
 * What the tracer calls a task: by the number that its own PID namespace gives it, which is the
 * kernel's own only in the first one.  0: the task is outside of the tracer's.
 */
#pragma once

#ifdef PID_NAMESPACE
/* struct upid (include/linux/pid.h): the number of a task in one of its namespaces. */
struct number_t {
    u32 number;
    u32 padding;
    u64 name_space;
};

/*
 * A task has a number in each namespace from its own (the deepest) up to the first, which is not
 * the tracer's and is never looked at.  Those of the host cost two reads.
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

/* The kernel's number is no help here. */
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
