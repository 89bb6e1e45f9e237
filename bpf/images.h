/* SPDX-License-Identifier: Apache-2.0
 * Sends which executable file is mapped where, at the call that maps it: a program may have ended before
 * anybody can read its /proc/PID/maps.
 */
#pragma once

#define MAP_ANONYMOUS 0x20

#ifdef FILE_PATH
static __always_inline u64 kernel_word(u64 address)
{
    u64 word = 0;

    read_kernel(&word, sizeof(word), (const void *)address);
    return word;
}

/*
 * Stores the names of a path, from the file up to the root directory of the task, each in a slot of a fixed
 * size: then the verifier's state after each name is the same on every branch.  A mount point takes an empty
 * slot.  Returns the number of slots, 0 if the root was not reached.
 */
static __always_inline u32 read_path(struct image_t *image, u64 path)
{
    u64 root = kernel_word(bpf_get_current_task() + TASK_FS) + FS_ROOT;
    u64 root_mount = kernel_word(root + PATH_MNT);
    u64 root_entry = kernel_word(root + PATH_DENTRY);
    u64 mount = kernel_word(path + PATH_MNT);
    u64 entry = kernel_word(path + PATH_DENTRY);

#pragma nounroll
    for (u32 i = 0; i < PATH_NAMES; i++) {
        u64 parent;

        if (!entry || !mount)
            return 0;
        if (entry == root_entry && mount == root_mount)
            return i;
        image->names[i][0] = 0;
        if (entry == kernel_word(mount + VFSMOUNT_ROOT)) {
            u64 inner = mount - MOUNT_MNT;
            u64 outer = kernel_word(inner + MOUNT_PARENT);

            if (outer == inner)
                return i;
            entry = kernel_word(inner + MOUNT_MOUNTPOINT);
            mount = outer + MOUNT_MNT;
            continue;
        }
        parent = kernel_word(entry + DENTRY_PARENT);
        if (parent == entry)
            return 0;
        read_kernel_string(image->names[i], NAME_SLOT,
                           (const void *)kernel_word(entry + DENTRY_NAME + QSTR_NAME));
        entry = parent;
    }
    return 0;
}

/* Files whose whole path can't be read are not sent: Python reads /proc/PID/maps as well. */
static __always_inline void send_file(struct image_t *image, struct thread_t *mapper, u32 space,
                                      u32 tid, u64 file)
{
    u64 inode;
    u32 device = 0;

    if (!file)
        return;
    inode = kernel_word(kernel_word(file + FILE_PATH + PATH_DENTRY) + DENTRY_INODE);
    image->tid = tid;
    image->space = space;
    image->inode = kernel_word(inode + INODE_INO);
    read_kernel(&device, sizeof(device),
                (const void *)(kernel_word(inode + INODE_SB) + SUPER_BLOCK_DEV));
    image->device = device;
    if (mapper)
        library_mapped(mapper, image->inode, device, image->start, image->offset);
    image->slots = read_path(image, file + FILE_PATH);
    if (image->slots && image->slots <= PATH_NAMES)
        send_image(image, __builtin_offsetof(struct image_t, names) + image->slots * NAME_SLOT);
}

/* The mmap call that returns mapped a file with PROT_EXEC. */
static __always_inline void image_mapped(struct thread_t *thread, const struct pt_regs *registers,
                                         u64 at, u64 start, u64 length, u64 flags)
{
    struct image_t *image = image_buffer(0);
    u64 descriptor = (u32)ARGUMENT_5(registers);
    u64 table, files;
    u32 max_fds = 0;

    if (!image || (flags & MAP_ANONYMOUS))
        return;
    table = kernel_word(kernel_word(bpf_get_current_task() + TASK_FILES) + FILES_FDT);
    read_kernel(&max_fds, sizeof(max_fds), (const void *)(table + FDTABLE_MAX_FDS));
    if (descriptor >= max_fds)
        return;
    files = kernel_word(table + FDTABLE_FD);
    image->at = at;
    image->is_program = 0;
    image->start = start;
    image->length = length;
    image->offset = ARGUMENT_6(registers);
    send_file(image, thread, thread->task.space, thread->task.tid,
              kernel_word(files + descriptor * sizeof(u64)));
}

/* The current task has executed a program; the auxiliary vector says where the program and its
 * interpreter are mapped (getauxval(3)). */
static __always_inline void program_executed(u32 space, u32 tid, u64 at)
{
    struct image_t *image = image_buffer(1);
    u64 memory = kernel_word(bpf_get_current_task() + TASK_MM);

    if (!image || !memory)
        return;
    image->at = at;
    image->is_program = 1;
    image->start = image->length = image->offset = 0;
    read_kernel(image->auxv, sizeof(image->auxv), (const void *)(memory + MM_AUXV));
    send_file(image, 0, space, tid, kernel_word(memory + MM_EXE_FILE));
}
#else
static __always_inline void image_mapped(struct thread_t *thread, const struct pt_regs *registers,
                                         u64 at, u64 start, u64 length, u64 flags)
{
}

static __always_inline void program_executed(u32 space, u32 tid, u64 at)
{
}
#endif
