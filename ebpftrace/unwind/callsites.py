# SPDX-License-Identifier: Apache-2.0
"""Whether a call instruction ends at an address, which distinguishes return addresses from other data.

The encodings are in the Intel SDM volume 2, CALL: E8 rel32, and FF /2 with its addressing forms.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Optional

LONGEST = 7
"""Bytes of the longest call instruction, without prefixes."""


class Call(NamedTuple):
    """A call; ``displacement`` is from its end to its target, None if it goes by register or memory."""

    displacement: Optional[int]


def call_before(code: bytes) -> Optional[Call]:
    """The call instruction that ends where ``code`` ends, None if there is none."""
    if len(code) >= 5 and code[-5] == 0xE8:
        return Call(int(struct.unpack("<i", code[-4:])[0]))
    for length in (2, 3, 4, 6, 7):
        if len(code) >= length and code[-length] == 0xFF and _form(code[-length + 1 :]) == length:
            return Call(None)
    return None


def _form(operand: bytes) -> int:
    """Length of FF /2 with this ModRM byte and what follows it; 0 if it is not a near call."""
    mode, extension, base = operand[0] >> 6, operand[0] >> 3 & 7, operand[0] & 7
    if extension != 2:
        return 0
    if mode == 3:
        return 2
    has_sib = base == 4
    if has_sib and len(operand) > 1 and mode == 0 and operand[1] & 7 == 5:
        return 7
    if mode == 0 and base == 5:
        return 6
    return 2 + has_sib + (0, 1, 4)[mode]
