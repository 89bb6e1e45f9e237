// SPDX-License-Identifier: Apache-2.0
/* Included by bcc's bundled bpf.h for the opcodes of classic BPF, which no program written in C needs. */
#pragma once
