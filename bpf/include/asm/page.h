// SPDX-License-Identifier: Apache-2.0
/*
 * bcc's ring buffer macros count in pages.  arm64 has pages of 4, 16 or 64 KiB, so whoever compiles
 * passes the size.
 */
#pragma once

#ifndef PAGE_SIZE
#define PAGE_SIZE 4096
#endif
