// SPDX-License-Identifier: Apache-2.0
/* The call stack: a signature for every recorded call, a copy of registers and stack for some. */
#pragma once

#define NS_PER_SECOND 1000000000ULL

static __always_inline int points_to(struct range_t *range, u64 word)
{
    return word - range->start < range->end - range->start;
}

static __always_inline int points_to_code(struct space_config_t *config, u64 word)
{
    int found = 0;

    if (!points_to(&config->all_code, word))
        return 0;
#pragma unroll
    for (int i = 0; i < IMAGES; i++)
        found |= points_to(&config->code[i], word);
    return found;
}

/* The frames of glibc's pthread_create fill the first words of a clone call's stack (layout.py). */
#define WORDS_HASHED(call) ((call) == CALL_CLONE ? CLONE_SIGNATURE_WORDS : SIGNATURE_WORDS)

/*
 * A hash that distinguishes call paths: over the instruction pointer, the offset of the stack pointer in its
 * page, and those words near the top of the stack, and of a link register, that may be return addresses.  Two
 * hashes for one path do no harm; one hash for two paths is detected by comparing copies.
 */
static __always_inline u64 signature(struct space_config_t *config, struct cpu_t *cpu, u32 call,
                                     const struct pt_regs *registers)
{
    u64 ip = USER_IP(registers), sp = USER_SP(registers);
    u64 hash = mix(mix(0, ip), sp & (STEP_BYTES - 1));
    u64 in_page = STEP_BYTES - (sp & (STEP_BYTES - 1));

    /* The stack may end with the page: then read to its end only (a failed read leaves zeros). */
    if (read_user(cpu->words, 8 * WORDS_HASHED(call), (void *)sp) &&
        (in_page > 8 * WORDS_HASHED(call) || read_user(cpu->words, in_page, (void *)sp)))
        return 0;
    if (LINK_WORDS)
        cpu->words[WORDS_HASHED(call)] = LINK_REGISTER(registers);
/* Unrolled, this loop alone would double bcc's compile time. */
#pragma nounroll
    for (int i = 0; i < WORDS_HASHED(call) + LINK_WORDS; i++) {
        u64 word = CODE_ADDRESS(cpu->words[i]);

        if (points_to_code(config, word))
            hash = mix(hash, word);
    }
    return hash ? hash : 1;
}

#define CLONE_SETTLS 0x80000
/* Offsets in struct clone_args (include/uapi/linux/sched.h). */
#define CLONE_ARGS_FLAGS 0
#define CLONE_ARGS_TLS 56

/* The thread pointer of the thread that the running clone call creates; 0 if the call sets none. */
static __always_inline u64 thread_pointer_of_child(const struct pt_regs *registers)
{
    u64 flags = ARGUMENT_1(registers);
    u64 given = CLONE_TLS(registers);
    u64 called_flags = 0, pointer = 0;

    /* The verifier rejects one load instruction for both pointers: keep the loads apart. */
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
 * Copies what the argument of the start routine points to, and the word before, which is the chunk size if
 * glibc's malloc made it.  pthread_create stores the argument behind the start routine in struct pthread
 * (nptl/descr.h), the address of which is the thread pointer.  It is read before the thread runs and may free
 * it.
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
 * counts the mappings without a stack.
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
    copy->tid = thread->task.tid;
    copy->space = thread->task.space;
    copy->call = call;
    read_kernel(copy->registers, sizeof(copy->registers), registers);
    size = copy_user_stack(copy->memory, USER_SP(registers), &copy->is_cut, &copy->missing);
    copy->size = size;
    copy->has_argument = 0;
    /* Last, as the verifier follows the code behind it once for each branch in it. */
    if (call == CALL_CLONE)
        copy_argument(copy, thread->task.space, registers);
    if (size && size <= STACK_BYTES + STEP_BYTES)
        send_copy(copy, __builtin_offsetof(struct copy_t, memory) + size);
}

static __always_inline u64 stack_recorded(struct thread_t *thread, const struct pt_regs *registers,
                                          u32 call, u64 now, s64 brk_growth)
{
    struct space_config_t *config = space_config_of(thread->task.space);
    struct space_t *space = space_at(thread->task.space);
    struct cpu_t *cpu = this_cpu(call);
    struct copy_t *copy = copy_buffer(call);
    struct site_t first = {};
    struct site_t *site;
    u64 id;

    if (!config || !cpu || !copy || !STACK_BYTES)
        return 0;
    id = signature(config, cpu, call, registers);
    if (!id)
        return 0;
    /* Processes forked from one have the same addresses, but each has its own sites. */
    id = mix(mix(id, thread->task.space + 1), space ? space->settled_at : 0);
    /* All Python code has the same C stack: its own frames make the difference. */
    id = python_frames(&config->python, copy->python, &copy->python_count, id);
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

/* Returns the site of the running call, 0 for none; copies the stack if the budget allows it. */
static __always_inline u64 record_stack(struct thread_t *thread, const struct pt_regs *registers,
                                        u32 call, u64 now, s64 brk_growth)
{
    return forget_range(stack_recorded(thread, registers, call, now, brk_growth), now);
}
