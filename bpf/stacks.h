// SPDX-License-Identifier: Apache-2.0
/* Who called: a signature for every recorded call, a copy of registers and stack for some. */
#pragma once

#define NS_PER_SECOND 1000000000ULL

static __always_inline int points_to(struct range_t *range, u64 word)
{
    return word - range->start < range->end - range->start;
}

static __always_inline int points_to_code(struct told_t *told, u64 word)
{
    int found = 0;

    if (!points_to(&told->all_code, word))
        return 0;
#pragma unroll
    for (int i = 0; i < IMAGES; i++)
        found |= points_to(&told->code[i], word);
    return found;
}

/* The frames of glibc's pthread_create fill the first 69 words of a clone call's stack (2.36 and 2.41). */
#define WORDS_HASHED(call) ((call) == CALL_CLONE ? CLONE_SIGNATURE_WORDS : SIGNATURE_WORDS)

/*
 * A hash over what tells one call path from another: the instruction pointer, where the stack
 * pointer lies in its page, and the words near the top of the stack that may be return addresses.
 * Different hashes for one path do no harm; one hash for two paths is found out by the copies.
 */
static __always_inline u64 signature(struct told_t *told, struct cpu_t *cpu, u32 call, u64 ip,
                                     u64 sp)
{
    u64 hash = mix(mix(0, ip), sp & (PAGE_BYTES - 1));
    u64 in_page = PAGE_BYTES - (sp & (PAGE_BYTES - 1));

    /* A failed read leaves zeros; the stack may end with the page. */
    if (read_user(cpu->words, 8 * WORDS_HASHED(call), (void *)sp) &&
        (in_page > 8 * WORDS_HASHED(call) || read_user(cpu->words, in_page, (void *)sp)))
        return 0;
/* Unrolled, this one loop would double the time that bcc takes. */
#pragma nounroll
    for (int i = 0; i < WORDS_HASHED(call); i++)
        if (points_to_code(told, cpu->words[i]))
            hash = mix(hash, cpu->words[i]);
    return hash ? hash : 1;
}

#define CLONE_SETTLS 0x80000
/* Where struct clone_args has them (include/uapi/linux/sched.h). */
#define CLONE_ARGS_FLAGS 0
#define CLONE_ARGS_TLS 56

/* The thread pointer of the thread that the running clone call creates; 0 where none is given. */
static __always_inline u64 thread_pointer_of_child(const struct pt_regs *registers)
{
    u64 flags = ARGUMENT_1(registers);
    u64 given = CLONE_TLS(registers);
    u64 called_flags = 0, pointer = 0;

    /* The verifier refuses one load instruction for registers and for what is read: keep them apart. */
    asm volatile("" : "+r"(flags), "+r"(given));
    if (CALL_NUMBER(registers) == NR_CLONE)
        return flags & CLONE_SETTLS ? given : 0;
    if (CALL_NUMBER(registers) != NR_CLONE3 ||
        read_user(&called_flags, 8, (void *)(flags + CLONE_ARGS_FLAGS)) ||
        read_user(&pointer, 8, (void *)(flags + CLONE_ARGS_TLS)))
        return 0;
    return called_flags & CLONE_SETTLS ? pointer : 0;
}

/*
 * pthread_create notes what the start routine is given in the thread's descriptor, behind the routine
 * (nptl/descr.h), and the descriptor is where the new thread's thread pointer points to.  It is read before the
 * thread runs, which may free it; and the word before it, which is the size of a block of glibc's malloc.
 */
static __always_inline void copy_argument(struct copy_t *copy, u32 space,
                                          const struct pt_regs *registers)
{
    struct library_t *library = library_of(space);
    u64 descriptor = 0, argument = 0;

    if (library && library->is_known && library->libc.start_routine)
        descriptor = thread_pointer_of_child(registers);
    if (!descriptor ||
        read_user(&argument, 8, (void *)(descriptor + library->libc.start_routine + 8)) ||
        !argument)
        return;
    copy->has_argument = !read_user(copy->argument, sizeof(copy->argument), (void *)(argument - 8));
}

/*
 * A copy that fails is not counted here: the next call of the site is copied as well, and the report
 * counts what has no stack in the end.
 */
static __always_inline void copy_stack(struct thread_t *thread, const struct pt_regs *registers,
                                       u64 site, u32 call, u64 at)
{
    struct copy_t *copy = copy_buffer(call);
    u64 size;

    if (!copy)
        return;
    copy->site = site;
    copy->at = at;
    copy->tid = thread->life.tid;
    copy->space = thread->life.space;
    copy->call = call;
    read_kernel(copy->registers, sizeof(copy->registers), registers);
    size = copy_user_stack(copy->memory, USER_SP(registers), &copy->is_cut, &copy->missing);
    copy->size = size;
    copy->has_argument = 0;
    /* Last: the verifier follows what comes after it once for each way through it. */
    if (call == CALL_CLONE)
        copy_argument(copy, thread->life.space, registers);
    if (size && size <= STACK_BYTES + PAGE_BYTES)
        send_copy(copy, __builtin_offsetof(struct copy_t, memory) + size);
}

static __always_inline u64 stack_recorded(struct thread_t *thread, const struct pt_regs *registers,
                                          u32 call, u64 now, s64 brk_growth)
{
    struct told_t *told = told_of(thread->life.space);
    struct space_t *space = space_at(thread->life.space);
    struct cpu_t *cpu = this_cpu(call);
    struct copy_t *copy = copy_buffer(call);
    struct site_t first = {};
    struct site_t *site;
    u64 id;

    if (!told || !cpu || !copy || !STACK_BYTES)
        return 0;
    id = signature(told, cpu, call, USER_IP(registers), USER_SP(registers));
    if (!id)
        return 0;
    /* Processes forked from one have the same addresses: each has copies of its own. */
    id = mix(mix(id, thread->life.space + 1), space ? space->settled_at : 0);
    /* All Python code is run by the same C code: what differs is in its own frames. */
    id = python_frames(&told->python, copy->python, &copy->python_count, id);
    if (!id)
        return 0;
    if (now - cpu->second_from > NS_PER_SECOND) {
        cpu->second_from = now;
        cpu->copies = 0;
        cpu->fresh_copies = 0;
    }
    site = find_site(id);
    if (!site) {
        add_site(id, &first);
        site = find_site(id);
        if (!site)
            return 0;
    }
    if (brk_growth) {
        __sync_fetch_and_add(&site->brk_growth, brk_growth);
        __sync_fetch_and_add(&site->brk_calls, 1);
    }
    if (site->copies < SITE_COPIES) {
        if (cpu->fresh_copies >= FRESH_COPIES_PER_SECOND)
            return id;
        cpu->fresh_copies++;
    } else {
        if (cpu->copies >= COPIES_PER_SECOND)
            return id;
        cpu->copies++;
    }
    site->copies++;
    copy_stack(thread, registers, id, call, now);
    return id;
}

/* Returns the site of the running call, 0 for none, copying its stack if the budget has room for it. */
static __always_inline u64 record_stack(struct thread_t *thread, const struct pt_regs *registers,
                                        u32 call, u64 now, s64 brk_growth)
{
    return forget_range(stack_recorded(thread, registers, call, now, brk_growth), now);
}
