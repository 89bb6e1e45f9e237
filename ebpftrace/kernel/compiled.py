# SPDX-License-Identifier: Apache-2.0
"""What compiling a BPF source gives: tables to make and programs to load, as plain data.

A program refers to a table by a place holder, the table's position in the list; ``installed`` puts the
table's file descriptor there.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import NamedTuple

_INSTRUCTION_BYTES = 8  # struct bpf_insn, include/uapi/linux/bpf.h
_LOAD_TABLE = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: the first half of a load of 64 bits ..."""
_PSEUDO_MAP_FD = 1
"""... and the source register that says they are a table's file descriptor."""


class Table(NamedTuple):
    """What ``BPF_MAP_CREATE`` wants."""

    name: str
    type: int
    key_bytes: int
    leaf_bytes: int
    entries: int
    flags: int


class Program(NamedTuple):
    """What ``BPF_PROG_LOAD`` wants."""

    name: str
    """Of its function; ``tracepoint__CATEGORY__EVENT`` and ``raw_tracepoint__EVENT`` say where it belongs."""
    instructions: bytes


class Compiled(NamedTuple):
    """One source file."""

    tables: tuple[Table, ...]
    programs: tuple[Program, ...]

    def to_bytes(self) -> bytes:
        """For a file."""
        programs = [(name, b64encode(code).decode("ascii")) for name, code in self.programs]
        return json.dumps({"tables": self.tables, "programs": programs}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Compiled:
        """What ``to_bytes`` gave.  Raises ValueError for anything else."""
        try:
            content = json.loads(raw)
            tables = tuple(Table(str(name), *map(int, numbers)) for name, *numbers in content["tables"])
            programs = tuple(
                Program(str(name), b64decode(code, validate=True)) for name, code in content["programs"]
            )
        except (TypeError, KeyError) as error:
            raise ValueError("no compiled program") from error
        return cls(tables, programs)


def relocated(instructions: bytes, places: Mapping[int, int]) -> bytes:
    """The instructions with every reference to a table, a number of ``places``, replaced by what it says.

    Raises ValueError for a reference that is not there, or instructions that are cut.
    """
    if len(instructions) % _INSTRUCTION_BYTES:
        raise ValueError("instructions are cut")
    found = bytearray(instructions)
    for at in range(0, len(found), _INSTRUCTION_BYTES):
        code, registers, _, number = struct.unpack_from("=BBhi", found, at)
        if code == _LOAD_TABLE and registers >> 4 == _PSEUDO_MAP_FD:
            if number not in places:
                raise ValueError("a table that is not there")
            struct.pack_into("=i", found, at + 4, places[number])
    return bytes(found)
