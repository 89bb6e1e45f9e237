# SPDX-License-Identifier: Apache-2.0
"""Names of global variables, from the symbol tables of ELF files.

The file is the target's and can't be trusted: tables are limited, and only wanted names are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebpftrace.elf import ElfHeaders, Read

_MAX_BYTES = 32 << 20
"""Bytes of one table: 1.4 million symbols."""
_MAX_NAME = 512
_SYMBOL = np.dtype(
    [
        ("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("address", "<u8"),
        ("size", "<u8"),
    ]
)  # fmt: skip
"""Elf64_Sym (elf(5))."""
_OBJECT, _COMMON = 1, 5
_MANGLED = re.compile(r"_ZL?(?:N((?:\d+\w+)+)E|(\d+\w+))")
_TABLES = ((".symtab", ".strtab"), (".dynsym", ".dynstr"))


def variables_at(read: Read, headers: ElfHeaders, addresses: Sequence[int]) -> dict[int, str]:
    """File address -> name such as ``workers+0x10``, for those inside a variable that has a name."""
    found: dict[int, str] = {}
    for table_name, strings_name in _TABLES:
        table, strings = headers.section(table_name), headers.section(strings_name)
        wanted = [address for address in addresses if address not in found]
        if table is None or strings is None or not wanted or table.size > _MAX_BYTES:
            continue
        variables = _variables(read(table.offset, table.size))
        for address, variable in _holding(variables, wanted).items():
            at = int(variable["name"])
            if at < strings.size:
                name = _text(read(strings.offset + at, min(_MAX_NAME, strings.size - at)))
                if name:
                    found[address] = with_offset(name, address - int(variable["address"]))
    return found


def section_at(headers: ElfHeaders, address: int) -> str:
    """The section of a file address and the offset, such as ``.bss+0x40``; empty if it is in none."""
    for section in headers.sections:
        if section.address and section.address <= address < section.address + section.size:
            return with_offset(section.name, address - section.address)
    return ""


def with_offset(name: str, offset: int) -> str:
    """The name and the offset in hexadecimal, unless it is 0."""
    return f"{name}+{offset:#x}" if offset else name


def _variables(raw: bytes) -> NDArray[np.void]:
    """The symbols of variables, by address."""
    symbols = np.frombuffer(raw[: len(raw) - len(raw) % _SYMBOL.itemsize], _SYMBOL)
    kinds = symbols["info"] & 15
    kept: NDArray[np.void] = symbols[((kinds == _OBJECT) | (kinds == _COMMON)) & (symbols["section"] != 0)]
    ordered: NDArray[np.void] = kept[np.argsort(kept["address"], kind="stable")]
    return ordered


def _holding(variables: NDArray[np.void], addresses: Sequence[int]) -> dict[int, NDArray[np.void]]:
    if not len(variables):
        return {}
    wanted = np.array(addresses, np.uint64)
    at = np.searchsorted(variables["address"], wanted, "right") - 1
    held = (at >= 0) & (wanted - variables["address"][at] < np.maximum(variables["size"][at], 1))
    return {address: variables[place] for address, place, is_held in zip(addresses, at, held) if is_held}


def _text(raw: bytes) -> str:
    name = raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return readable(name.split("@", 1)[0])


def readable(name: str) -> str:
    """Demangle a variable's name if it is a plain C++ one, such as ``_ZN3app7workersE``.

    Variables have hardly any other.  The library that demangles all names must not be fed with a target's
    strings in this process.
    """
    mangled = _MANGLED.fullmatch(name)
    if mangled is None:
        return name
    parts, left = [], mangled[1] or mangled[2]
    while left:
        digits = re.match(r"\d{1,4}", left)
        if digits is None:
            return name
        start, end = digits.end(), digits.end() + int(digits[0])
        if not start < end <= len(left):
            return name
        parts.append(left[start:end])
        left = left[end:]
    return "::".join("(anonymous namespace)" if part == "_GLOBAL__N_1" else part for part in parts)
