// SPDX-License-Identifier: Apache-2.0
/* bcc includes this file before all others and takes a directory for a kernel tree only if it has it. */
#pragma once

/* bcc refuses to compile without it. */
#define CONFIG_BPF_SYSCALL 1

/*
 * On x86_64 since Linux 4.17 and on arm64 since 4.19 a system call's function gets one pointer to
 * the caller's registers; bcc's PT_REGS_SYSCALL_CTX goes by this.
 */
#define CONFIG_ARCH_HAS_SYSCALL_WRAPPER 1
