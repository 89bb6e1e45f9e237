// SPDX-License-Identifier: Apache-2.0
/* The user registers of the current task, from which a call's arguments are read at its exit. */
#pragma once

/*
 * Every program returns 1: with 0 the kernel would drop the event for all other perf users of the
 * tracepoint on this host (kernel/trace/trace_syscalls.c: perf_syscall_enter).
 */
#define PASS_ON 1

/*
 * bpf_probe_read_user(), _kernel(), _user_str() and _kernel_str() by number: bcc would replace the names by
 * older helpers, because /proc/kallsyms is hidden from it (ebpftrace/capture/sources.py).
 */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)112;
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static long (*read_user_string)(void *to, u32 size, const void *from) = (void *)114;
static long (*read_kernel_string)(void *to, u32 size, const void *from) = (void *)115;

#ifdef TASK_STACK_OFFSET
/*
 * Before Linux 5.15: the registers are at the top of the task's kernel stack (task_pt_regs()).  The verifier
 * allows no access by the returned pointer, and a copy would not fit on the BPF stack: read single words.
 */
static __always_inline const struct pt_regs *caller_registers(void)
{
    u64 stack = 0;

    read_kernel(&stack, sizeof(stack), (void *)(bpf_get_current_task() + TASK_STACK_OFFSET));
    return (const struct pt_regs *)(stack + REGISTERS_OFFSET);
}

static __always_inline u64 register_word(const void *address)
{
    u64 word = 0;

    read_kernel(&word, sizeof(word), address);
    return word;
}
#define REGISTER(r, field) register_word(&(r)->field)
#else
/* By number: the bcc of older distributions declares neither. */
static void *(*current_task_btf)(void) = (void *)158;
static struct pt_regs *(*task_registers)(void *task) = (void *)175;

static __always_inline const struct pt_regs *caller_registers(void)
{
    return task_registers(current_task_btf());
}
#define REGISTER(r, field) ((r)->field)
#endif

/* The syscall's number and arguments as its caller passed them; still there when it returns. */
#if defined(__aarch64__)
#define CALL_NUMBER(r) ((u32)REGISTER(r, syscallno))
#define ARGUMENT_1(r) REGISTER(r, orig_x0)
#define ARGUMENT_2(r) REGISTER(r, regs[1])
#define ARGUMENT_3(r) REGISTER(r, regs[2])
#define ARGUMENT_4(r) REGISTER(r, regs[3])
#define ARGUMENT_5(r) REGISTER(r, regs[4])
#define ARGUMENT_6(r) REGISTER(r, regs[5])
#define CLONE_TLS(r) ARGUMENT_4(r)
#define USER_IP(r) REGISTER(r, pc)
#define USER_SP(r) REGISTER(r, sp)
/* Until a function calls another, its return address is in x30 alone. */
#define LINK_WORDS 1
#define LINK_REGISTER(r) REGISTER(r, regs[30])
/* A return address may be signed in the bits above the address (Arm ARM, pointer authentication). */
#define CODE_ADDRESS(word) ((word) & ((1ULL << 48) - 1))
#else
#define CALL_NUMBER(r) ((u32)REGISTER(r, orig_ax))
#define ARGUMENT_1(r) REGISTER(r, di)
#define ARGUMENT_2(r) REGISTER(r, si)
#define ARGUMENT_3(r) REGISTER(r, dx)
#define ARGUMENT_4(r) REGISTER(r, r10)
#define ARGUMENT_5(r) REGISTER(r, r8)
#define ARGUMENT_6(r) REGISTER(r, r9)
#define CLONE_TLS(r) ARGUMENT_5(r)
#define USER_IP(r) REGISTER(r, ip)
#define USER_SP(r) REGISTER(r, sp)
#define LINK_WORDS 0
#define LINK_REGISTER(r) 0
#define CODE_ADDRESS(word) (word)
#endif

/* A failed call returns -errno (include/linux/err.h). */
static __always_inline int has_failed(s64 returned)
{
    return (u64)returned >= (u64)-MAX_ERRNO;
}
