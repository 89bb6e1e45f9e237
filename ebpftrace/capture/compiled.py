# SPDX-License-Identifier: Apache-2.0
"""The result of compiling a BPF source: tables to make and programs to load, as plain data.

A program refers to a table by the table's position in the list; ``installed`` replaces it by the table's file
descriptor.
"""

from __future__ import annotations

import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import NamedTuple

_INSTRUCTION_BYTES = 8  # struct bpf_insn, include/uapi/linux/bpf.h
_LOAD_TABLE = 0x18
"""BPF_LD | BPF_IMM | BPF_DW: the first half of a load of 64 bits."""
_PSEUDO_MAP_FD = 1
"""Source register of such a load, if the value is a table's file descriptor."""


class Table(NamedTuple):
    """The arguments of ``BPF_MAP_CREATE``."""

    name: str
    type: int
    key_bytes: int
    leaf_bytes: int
    entries: int
    flags: int


class Program(NamedTuple):
    """The arguments of ``BPF_PROG_LOAD``."""

    name: str
    """The C function; ``tracepoint__CATEGORY__EVENT`` and ``raw_tracepoint__EVENT`` say where to attach."""
    instructions: bytes


class Compiled(NamedTuple):
    """The tables and programs of one source file."""

    tables: tuple[Table, ...]
    programs: tuple[Program, ...]

    def to_bytes(self) -> bytes:
        """Encode for a file."""
        programs = [(name, b64encode(code).decode("ascii")) for name, code in self.programs]
        return json.dumps({"tables": self.tables, "programs": programs}).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Compiled:
        """Decode what ``to_bytes`` returned.  Raises ValueError for anything else."""
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
    """The instructions with each reference to a table replaced by its value in ``places``.

    Raises ValueError for a reference that ``places`` lacks, or instructions that are cut.
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
