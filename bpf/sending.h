// SPDX-License-Identifier: Apache-2.0
/* The copy of a user stack, for the ledger and for the call trace. */
#pragma once

/*
 * Copies a user stack from `sp` on: the rest of the first step and at most STACK_BYTES.  A step that is not
 * in memory is left out and its bit set in `missing`: buffers on the stack may never have been touched.
 * Returns the bytes up to the last step that was read; the caller tests the bound again, for the verifier.
 */
static __always_inline u64 copy_user_stack(u8 *memory, u64 sp, u32 *is_cut, u32 *missing)
{
    /* Mappings end on page boundaries, so the read of a step succeeds or fails as a whole. */
    u64 size = STEP_BYTES - (sp & (STEP_BYTES - 1));
    u64 end = size;
    u32 absent = 0;

    *is_cut = 0;
    *missing = 0;
    if (size > STEP_BYTES || read_user(memory, size, (void *)sp))
        return 0;
#pragma unroll
    for (int i = 0; i < STACK_BYTES / STEP_BYTES; i++) {
        if (size > STACK_BYTES || read_user(memory + size, STEP_BYTES, (void *)(sp + size)))
            absent |= 1U << i;
        else
            end = size + STEP_BYTES;
        size += STEP_BYTES;
        asm volatile("" : "+r"(size));
    }
    *is_cut = end == size;
    *missing = absent;
    /* Hide the bound from the compiler: it would drop the caller's test, which the verifier needs. */
    asm volatile("" : "+r"(end));
    return end;
}
