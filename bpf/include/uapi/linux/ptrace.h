// SPDX-License-Identifier: Apache-2.0
/* The registers of a task: what bcc's PT_REGS_* macros and bpf_task_pt_regs speak of. */
#pragma once

#if defined(__x86_64__)
/* arch/x86/include/asm/ptrace.h */
struct pt_regs {
    unsigned long r15, r14, r13, r12, bp, bx;
    unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
    unsigned long orig_ax;
    unsigned long ip, cs, flags, sp, ss;
};
#elif defined(__aarch64__)
/* arch/arm64/include/asm/ptrace.h, up to the number of the running syscall */
struct pt_regs {
    unsigned long long regs[31];
    unsigned long long sp, pc, pstate;
    unsigned long long orig_x0;
    int syscallno;
    unsigned int reserved;
};
#else
#error "no register layout for this machine yet: x86_64 and aarch64 only"
#endif
