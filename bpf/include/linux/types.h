// SPDX-License-Identifier: Apache-2.0
/*
 * The types that bcc's bundled bpf.h, the argument structs bcc makes from tracefs, and our programs use.
 * They are the kernel's by name and size, on every 64-bit machine.
 */
#pragma once

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;

typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;

typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;

typedef __u64 __attribute__((aligned(8))) __aligned_u64;

typedef __SIZE_TYPE__ size_t;
typedef unsigned long uintptr_t;
typedef long ssize_t;
typedef long long loff_t;
typedef long off_t;
typedef int pid_t;
typedef unsigned int uid_t;
typedef unsigned int gid_t;
typedef unsigned int dev_t;
typedef unsigned short umode_t;

typedef _Bool bool;
#define true 1
#define false 0

#define NULL ((void *)0)
