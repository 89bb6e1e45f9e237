/* SPDX-License-Identifier: Apache-2.0
 * Which file is executed where: told as it is mapped, since a program may have ended before anybody can
 * read its /proc/PID/maps.
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
 * The names of a path, from the file up to the root of its task, each in a slot of its own: then the
 * verifier sees the same state after each name, whichever way it took.  Returns how many slots were
 * used; 0 where the root is too far.  A crossing from one mount to the other takes an empty slot.
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

/* What can't be told completely is not told: Python reads /proc/PID/maps as well. */
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

/* A file was mapped to be executed, by the mmap call that returns. */
static __always_inline void image_mapped(struct thread_t *thread, const struct pt_regs *registers,
                                         u64 at, u64 start, u64 length, u64 flags)
{
    struct image_t *image = image_buffer(0);
    u64 descriptor = (u32)ARGUMENT_5(registers);
    u64 table, files;
    u32 room = 0;

    if (!image || (flags & MAP_ANONYMOUS))
        return;
    table = kernel_word(kernel_word(bpf_get_current_task() + TASK_FILES) + FILES_FDT);
    read_kernel(&room, sizeof(room), (const void *)(table + FDTABLE_MAX_FDS));
    if (descriptor >= room)
        return;
    files = kernel_word(table + FDTABLE_FD);
    image->at = at;
    image->is_program = 0;
    image->start = start;
    image->length = length;
    image->offset = ARGUMENT_6(registers);
    send_file(image, thread, thread->life.space, thread->life.tid,
              kernel_word(files + descriptor * sizeof(u64)));
}

/* The current task executes a program from here on; where it and its interpreter lie the auxiliary
 * vector says (getauxval(3)). */
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
