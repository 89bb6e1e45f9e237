// SPDX-License-Identifier: Apache-2.0
/* The records that a call leaves in the trace. */
#pragma once

#define CLONE_PIDFD 0x1000
#define CLONE_PARENT_SETTID 0x100000

/* For tasks that are not traced, this look-up is all that a probe does. */
static __always_inline struct traced_t *current_traced(void)
{
    struct traced_t *traced = find_traced(current_tid());

    return traced && !traced->waits_for_exec ? traced : 0;
}

static __always_inline void fill(struct call_t *call, struct traced_t *traced, u16 kind)
{
    struct lost_t *losses = lost();

    call->head.at = bpf_ktime_get_ns();
    call->head.tid = current_tid();
    call->head.kind = kind;
    call->tgid = traced->tgid;
    call->image = traced->image;
    call->lost = losses ? losses->calls : 0;
}

static __always_inline void fill_arguments(struct call_t *call, const struct pt_regs *registers)
{
    call->head.number = CALL_NUMBER(registers);
    call->arguments[0] = ARGUMENT_1(registers);
    call->arguments[1] = ARGUMENT_2(registers);
    call->arguments[2] = ARGUMENT_3(registers);
    call->arguments[3] = ARGUMENT_4(registers);
    call->arguments[4] = ARGUMENT_5(registers);
    call->arguments[5] = ARGUMENT_6(registers);
}

static __always_inline int is_sent(void *record, u64 size)
{
    return !send_record(record, size);
}

static __always_inline void send(void *record, u64 size)
{
    struct lost_t *losses = lost();

    if (!is_sent(record, size) && losses)
        __sync_fetch_and_add(&losses->calls, 1);
}

static __always_inline void lose_stack(void)
{
    struct lost_t *losses = lost();

    if (losses)
        __sync_fetch_and_add(&losses->stacks, 1);
}

/* Sends registers and stack of the running call. */
static __always_inline void send_stack(struct call_t *call, const struct pt_regs *registers)
{
    struct stack_t *stack = stack_buffer();
    struct python_t *python;
    u64 size;

    if (!STACK_BYTES || !stack)
        return;
    stack->head = call->head;
    stack->head.kind = RECORD_STACK;
    stack->tgid = call->tgid;
    stack->image = call->image;
    stack->python_count = 0;
    stack->python[0].address = 0;
    python = python_of(call->image);
    if (python)
        python_frames(python, stack->python, &stack->python_count, 0);
    read_kernel(stack->registers, sizeof(stack->registers), registers);
    size = copy_user_stack(stack->memory, USER_SP(registers), &stack->is_cut, &stack->missing);
    stack->size = size;
    if (!size || size > STACK_BYTES + STEP_BYTES ||
        !is_sent(stack, __builtin_offsetof(struct stack_t, memory) + size))
        lose_stack();
}

static __always_inline int is_clone(u32 number)
{
    return number == NR_CLONE || number == NR_CLONE3 || number == NR_FORK || number == NR_VFORK;
}

/* The bytes that a call concerns; the maximum for calls that concern none, so that MIN_BYTES keeps them. */
static __always_inline u64 bytes_of(struct traced_t *traced, const struct pt_regs *registers,
                                    s64 returned)
{
    u64 *before;
    u64 change;

    switch (CALL_NUMBER(registers)) {
    case NR_MMAP:
    case NR_MUNMAP:
    case NR_MPROTECT:
    case NR_MADVISE:
        return ARGUMENT_2(registers);
    case NR_MREMAP:
        change = ARGUMENT_2(registers);
        return change > ARGUMENT_3(registers) ? change : ARGUMENT_3(registers);
    case NR_BRK:
        before = find_break(traced->tgid);
        if (!before) {
            put_break(traced->tgid, returned);
            return ~0ULL;
        }
        change = returned - *before;
        *before = returned;
        return (s64)change < 0 ? -change : change;
    default:
        return ~0ULL;
    }
}

/* Cheap: a filtered storm should cost little more than the tracepoint itself. */
static __always_inline int is_wanted(struct traced_t *traced, const struct pt_regs *registers,
                                     s64 returned)
{
    if (ONLY_FAILED && !has_failed(returned))
        return 0;
    if (ONLY_SUCCESSFUL && has_failed(returned))
        return 0;
    if (MIN_BYTES && bytes_of(traced, registers, returned) < MIN_BYTES)
        return 0;
    /* The child returns from the call as well, with 0. */
    return returned || !is_clone(CALL_NUMBER(registers));
}

static __always_inline void count(struct call_t *call)
{
    struct total_t *total = total_of(call->head.number);

    if (!total)
        return;
    total->calls++;
    if (has_failed(call->returned))
        total->errors++;
    if (call->entered_at)
        total->ns += call->head.at - call->entered_at;
}

static __always_inline void send_clone(struct call_t *call)
{
    struct clone_t clone = {.call = *call};
    u64 size = call->arguments[1];
    u64 parent_tid = call->arguments[2];
    u64 pidfd = call->arguments[2];
    u64 flags = call->arguments[0];

    clone.call.head.kind = RECORD_CLONED;
    if (call->head.number == NR_CLONE3) {
        if (size > sizeof(clone.arguments))
            size = sizeof(clone.arguments);
        if (size >= CLONE_ARGS_SIZE_VER0 &&
            !read_user(clone.arguments, size, (void *)call->arguments[0]))
            clone.fetched = size;
        flags = clone.arguments[0];
        parent_tid = clone.arguments[3];
        pidfd = clone.arguments[1];
    }
    if ((flags & CLONE_PARENT_SETTID) &&
        !read_user(&clone.parent_tid, sizeof(clone.parent_tid), (void *)parent_tid))
        clone.is_read |= READ_PARENT_TID;
    if ((flags & CLONE_PIDFD) && !read_user(&clone.pidfd, sizeof(clone.pidfd), (void *)pidfd))
        clone.is_read |= READ_PIDFD;
    send(&clone, sizeof(clone));
}

static __always_inline void record_call(struct traced_t *traced, const struct pt_regs *registers,
                                        s64 returned)
{
    struct call_t call = {};

    fill(&call, traced, RECORD_RETURNED);
    fill_arguments(&call, registers);
    call.returned = returned;
    call.entered_at = traced->entered_at;
    if (COUNTED)
        count(&call);
    if (!PRINTED)
        return;
    if (call.head.number == NR_CLONE || call.head.number == NR_CLONE3)
        send_clone(&call);
    else
        send(&call, sizeof(call));
    /* The stack of an execve was copied at its entry. */
    if (call.head.number != NR_EXECVE)
        send_stack(&call, registers);
}

static __always_inline int call_returned(struct traced_t *traced, s64 returned)
{
    const struct pt_regs *registers = caller_registers();

    if (is_wanted(traced, registers, returned))
        record_call(traced, registers, returned);
    /* If the kernel skips our program at the entry of the next call, that call must not get this time. */
    traced->entered_at = 0;
    return 0;
}

static __always_inline int call_leaves(struct traced_t *traced)
{
    const struct pt_regs *registers = caller_registers();
    struct call_t call = {};

    fill(&call, traced, RECORD_LEAVES);
    fill_arguments(&call, registers);
    send(&call, sizeof(call));
    send_stack(&call, registers);
    return 0;
}

/* Reads the strings of argv into the record. */
static __always_inline void read_strings(struct exec_t *exec, u64 array)
{
    u64 pointer;

#pragma nounroll
    for (int i = 0; i < EXEC_STRINGS; i++) {
        pointer = 0;
        if (read_user(&pointer, sizeof(pointer), (void *)(array + i * sizeof(pointer)))) {
            exec->is_open = 1;
            return;
        }
        if (!pointer)
            return;
        exec->pointers[i] = pointer;
        exec->sizes[i] = read_user_string(exec->strings[i], EXEC_STRING_BYTES, (void *)pointer);
        exec->string_count = i + 1;
    }
    pointer = 0;
    read_user(&pointer, sizeof(pointer), (void *)(array + EXEC_STRINGS * sizeof(pointer)));
    if (pointer)
        exec->string_count++;
}

static __always_inline s32 count_variables(u64 array)
{
    u64 pointer;

#pragma nounroll
    for (int i = 0; i < MAX_VARIABLES; i++) {
        pointer = 0;
        if (read_user(&pointer, sizeof(pointer), (void *)(array + i * sizeof(pointer))))
            return i ? i : -1;
        if (!pointer)
            return i;
    }
    return MAX_VARIABLES;
}

static __always_inline int call_executes(struct traced_t *traced)
{
    const struct pt_regs *registers = caller_registers();
    struct exec_t *exec = exec_buffer();
    u64 size = 0;

    traced->entered_at = bpf_ktime_get_ns();
    traced->waits_for_exec = 0;
    if (!exec || !PRINTED)
        return 0;
    fill(&exec->call, traced, RECORD_EXECUTES);
    fill_arguments(&exec->call, registers);
    exec->string_count = 0;
    exec->is_open = 0;
    if (exec->call.arguments[1])
        read_strings(exec, exec->call.arguments[1]);
    exec->variable_count = exec->call.arguments[2] ? count_variables(exec->call.arguments[2]) : -1;
    exec->path_size = read_user_string(exec->path, PATH_BYTES, (void *)exec->call.arguments[0]);
    if (exec->path_size > 0)
        size = exec->path_size;
    asm volatile("" : "+r"(size));
    if (size > PATH_BYTES)
        return 0;
    send(exec, __builtin_offsetof(struct exec_t, path) + size);
    send_stack(&exec->call, registers);
    return 0;
}
