# SPDX-License-Identifier: Apache-2.0
"""Offsets of members, on type information made up here and that of the running kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ebpftrace.capture.btf import Btf

INT, STRUCT, UNION = 1, 4, 5
Member = tuple[str, int, int]
"""Name, type, offset in bytes."""


def btf(*types: tuple[int, str, Sequence[Member]]) -> Btf:
    """Type information of these types, which are numbered from 1."""
    strings = b"\0"
    at: dict[str, int] = {"": 0}
    for text in [one for _, name, members in types for one in (name, *(member[0] for member in members))]:
        if text not in at:
            at[text] = len(strings)
            strings += text.encode() + b"\0"
    body = b""
    for kind, name, members in types:
        body += struct.pack("<III", at[name], kind << 24 | len(members), 8)
        body += struct.pack("<I", 0) if kind == INT else b""
        for member, of, offset in members:
            body += struct.pack("<III", at[member], of, offset * 8)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings))
    return Btf(header + body + strings)


def test_members_of_unnamed_members_count_from_the_outermost() -> None:
    types = btf(
        (INT, "long", ()),
        (STRUCT, "", [("deep", 1, 0), ("deeper", 1, 8)]),
        (UNION, "", [("path", 1, 0), ("", 2, 0)]),
        (STRUCT, "file", [("first", 1, 0), ("", 3, 16), ("named", 2, 40)]),
    )
    wanted = {"file": ["first", "path", "deeper", "deep", "absent"], "nowhere": ["first"]}
    assert types.offsets(wanted) == {
        ("file", "first"): 0,
        ("file", "path"): 16,
        ("file", "deep"): 16,
        ("file", "deeper"): 24,
    }


def test_structs_that_hold_themselves_end() -> None:
    assert btf((STRUCT, "", [("", 1, 0)]), (STRUCT, "s", [("", 1, 8), ("x", 1, 4)])).offsets(
        {"s": ["x"]}
    ) == {("s", "x"): 4}
