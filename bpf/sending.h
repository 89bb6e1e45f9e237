/* What all our records have in common: how a stack is copied, how often sending is tried. */
#pragma once

/*
 * Copies a user stack from `sp` on, at most STACK_BYTES and what is left of the first page.
 * Returns the bytes copied; the caller tests the bound once more, for the verifier.
 */
static __always_inline u64 copy_user_stack(u8 *memory, u64 sp, u32 *is_cut)
{
    /* A mapping ends on a page boundary: page by page, so that no read fails half-way. */
    u64 size = PAGE_BYTES - (sp & (PAGE_BYTES - 1));

    *is_cut = 0;
    if (size > PAGE_BYTES || read_user(memory, size, (void *)sp))
        return 0;
#pragma unroll
    for (int i = 0; i < STACK_BYTES / PAGE_BYTES; i++) {
        if (size > STACK_BYTES || read_user(memory + size, PAGE_BYTES, (void *)(sp + size)))
            goto copied;
        size += PAGE_BYTES;
        asm volatile("" : "+r"(size));
    }
    *is_cut = 1;
copied:
    /* The compiler knows the bound too well to keep the test that the verifier needs. */
    asm volatile("" : "+r"(size));
    return size;
}
