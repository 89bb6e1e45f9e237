// SPDX-License-Identifier: Apache-2.0
/* bcc's helpers include it for programs on packets, which ours are not. */
#pragma once
