/* The user registers of the current task, from which a call's arguments are read at its exit. */
#pragma once

#ifdef TASK_STACK_OFFSET
/* Before Linux 5.15: pt_regs lie at the top of the task's kernel stack (task_pt_regs()). */
static __always_inline const struct pt_regs *caller_registers(struct pt_regs *storage)
{
    u64 stack = 0;

    bpf_probe_read_kernel(&stack, sizeof(stack),
                          (void *)(bpf_get_current_task() + TASK_STACK_OFFSET));
    bpf_probe_read_kernel(storage, sizeof(*storage),
                          (void *)(stack + KERNEL_STACK_BYTES - sizeof(*storage)));
    return storage;
}
#else
/* By number: the bcc of older distributions declares neither. */
static void *(*current_task_btf)(void) = (void *)158;
static struct pt_regs *(*task_registers)(void *task) = (void *)175;

static __always_inline const struct pt_regs *caller_registers(struct pt_regs *storage)
{
    return task_registers(current_task_btf());
}
#endif

/* The syscall's number and arguments as its caller passed them; still there when it returns. */
#if defined(__aarch64__)
#define CALL_NUMBER(r) ((u32)(r)->syscallno)
#define ARGUMENT_1(r) ((r)->orig_x0)
#define ARGUMENT_2(r) ((r)->regs[1])
#define ARGUMENT_3(r) ((r)->regs[2])
#define ARGUMENT_4(r) ((r)->regs[3])
#define ARGUMENT_5(r) ((r)->regs[4])
#define USER_IP(r) ((r)->pc)
#define USER_SP(r) ((r)->sp)
#else
#define CALL_NUMBER(r) ((u32)(r)->orig_ax)
#define ARGUMENT_1(r) ((r)->di)
#define ARGUMENT_2(r) ((r)->si)
#define ARGUMENT_3(r) ((r)->dx)
#define ARGUMENT_4(r) ((r)->r10)
#define ARGUMENT_5(r) ((r)->r8)
#define USER_IP(r) ((r)->ip)
#define USER_SP(r) ((r)->sp)
#endif

/* A failed call returns -errno (include/linux/err.h). */
static __always_inline int has_failed(s64 returned)
{
    return (u64)returned >= (u64)-4095;
}
