// SPDX-License-Identifier: Apache-2.0
/* bcc's helpers include it, but have the definitions already from the bpf.h that bcc carries itself. */
#pragma once
