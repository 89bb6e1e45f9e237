// SPDX-License-Identifier: Apache-2.0
/* What all our records have in common: how a stack is copied, how often sending is tried. */
#pragma once

/*
 * Copies a user stack from `sp` on, at most STACK_BYTES and what is left of the first page.  A page that is not
 * in memory is left out, as zeros, and told in `missing`: large buffers are there before they are used.
 * Returns the bytes up to the last page that was there; the caller tests the bound once more, for the verifier.
 */
static __always_inline u64 copy_user_stack(u8 *memory, u64 sp, u32 *is_cut, u32 *missing)
{
    /* A mapping ends on a page boundary: page by page, so that no read fails half-way. */
    u64 size = PAGE_BYTES - (sp & (PAGE_BYTES - 1));
    u64 end = size;
    u32 absent = 0;

    *is_cut = 0;
    *missing = 0;
    if (size > PAGE_BYTES || read_user(memory, size, (void *)sp))
        return 0;
#pragma unroll
    for (int i = 0; i < STACK_BYTES / PAGE_BYTES; i++) {
        if (size > STACK_BYTES || read_user(memory + size, PAGE_BYTES, (void *)(sp + size)))
            absent |= 1U << i;
        else
            end = size + PAGE_BYTES;
        size += PAGE_BYTES;
        asm volatile("" : "+r"(size));
    }
    *is_cut = end == size;
    *missing = absent;
    /* The compiler knows the bound too well to keep the test that the verifier needs. */
    asm volatile("" : "+r"(end));
    return end;
}
