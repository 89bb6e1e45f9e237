// SPDX-License-Identifier: Apache-2.0
/*
 * bcc writes the kernel's version into every program.  Kernels since 5.0 do not read it, so it is
 * the oldest that has what we need.
 */
#pragma once

#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
