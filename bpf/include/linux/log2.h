// SPDX-License-Identifier: Apache-2.0
/* bcc's BPF_STACK_TRACE sizes its table with roundup_pow_of_two. */
#pragma once

/* A constant expression for a constant n, as the size of a table must be. */
#define roundup_pow_of_two(n) ((n) <= 1 ? 1 : 1 << (32 - __builtin_clz((n) - 1)))
