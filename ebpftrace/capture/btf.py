# SPDX-License-Identifier: Apache-2.0
"""Offsets, sizes and ids of the running kernel's types, from its BTF.

Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Optional

from ebpftrace.errors import CannotTrace

_PATH = Path("/sys/kernel/btf/vmlinux")
_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_STRUCT, _UNION, _FUNC = 4, 5, 12
_MAX_NESTED = 8
"""Depth to which nested structs and unions without a name are searched."""
# Bytes that follow a type of each kind: (fixed, for each of its vlen elements).
_TAILS = {
    0: (0, 0),
    1: (4, 0),
    2: (0, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    7: (0, 0),
    8: (0, 0),
    9: (0, 0),
    10: (0, 0),
    11: (0, 0),
    12: (0, 0),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    16: (0, 0),
    17: (4, 0),
    18: (0, 0),
    19: (0, 12),
}


class Btf:
    """The types of the running kernel."""

    def __init__(self, content: bytes) -> None:
        """Parse the header.  Raises CannotTrace where this is not BTF."""
        self._content = content
        if len(content) < _HEADER.size or _HEADER.unpack_from(content)[0] != _MAGIC:
            raise CannotTrace("the kernel's type information (BTF) can't be read")
        _, _, _, header, types, type_bytes, strings, string_bytes = _HEADER.unpack_from(content)
        self._types = (header + types, header + types + type_bytes)
        self._strings = (header + strings, header + strings + string_bytes)
        if max(self._types[1], self._strings[1]) > len(content):
            raise CannotTrace("the kernel's type information (BTF) is cut short")

    @classmethod
    def of_running_kernel(cls) -> Btf:
        """Read ``/sys/kernel/btf/vmlinux``.  Raises CannotTrace where the kernel has none."""
        try:
            return cls(_PATH.read_bytes())
        except OSError as error:
            raise CannotTrace(
                f"the kernel has no type information ({_PATH}: {error.strerror})",
                "use a kernel built with CONFIG_DEBUG_INFO_BTF, as all distribution kernels since 5.8 are",
            ) from None

    def has_name(self, name: str) -> bool:
        """Whether a type, function or member of that name exists."""
        return self._content.find(b"\0" + name.encode() + b"\0", *self._strings) >= 0

    def struct_size(self, struct_name: str) -> int:
        """Return the size of a struct in bytes.  Raises CannotTrace where there is none."""
        for name, _, size, _ in self._structs():
            if self._string(name) == struct_name:
                return size
        raise CannotTrace(f"the kernel's type information lacks {struct_name}")

    def member_offset(self, struct_name: str, member: str) -> int:
        """Return the offset of a member in a struct, in bytes.  Raises CannotTrace where there is none."""
        for name, info, _, members in self._structs():
            if self._string(name) != struct_name:
                continue
            for index in range(info & 0xFFFF):
                member_name, _, bits = _MEMBER.unpack_from(self._content, members + index * _MEMBER.size)
                if self._string(member_name) == member:
                    return int(bits & 0xFFFFFF if info >> 31 else bits) // 8
        raise CannotTrace(f"the kernel's type information lacks {struct_name}.{member}")

    def offsets(self, wanted: Mapping[str, Collection[str]]) -> dict[tuple[str, str], int]:
        """Return the offsets of members, in bytes, by (struct, member), also inside unnamed members.

        Takes a tenth of a second for any number of members.  Members that the kernel lacks are left out.
        """
        positions = array("I", [0])  # type ids count from 1
        structs: dict[str, int] = {}
        name_of = {self._find(name): name for name in wanted}
        for position, name, kind in self._all_types():
            positions.append(position)
            if kind == _STRUCT and name in name_of:
                structs.setdefault(name_of[name], position)
        found = {}
        for struct_name, position in structs.items():
            for member in wanted[struct_name]:
                offset = self._member(positions, position, self._find(member), 0)
                if offset is not None:
                    found[struct_name, member] = offset
        return found

    def function_id(self, function: str) -> int:
        """Return the number of a function's type.  Raises CannotTrace where there is none."""
        numbers = self.function_ids([function])
        if function not in numbers:
            raise CannotTrace(f"the kernel's type information lacks the function {function}")
        return numbers[function]

    def function_ids(self, functions: Collection[str]) -> dict[str, int]:
        """Return the numbers of functions' types by name; functions that the kernel lacks are left out."""
        wanted = {self._find(name): name for name in functions}
        wanted.pop(None, None)
        return {
            wanted[name]: number
            for number, (_, name, kind) in enumerate(self._all_types(), 1)
            if kind == _FUNC and name in wanted
        }

    def _member(
        self, positions: array[int], position: int, wanted: Optional[int], depth: int
    ) -> Optional[int]:
        """Offset in bytes of the member whose name has the string offset ``wanted``, if any."""
        _, info, _ = _TYPE.unpack_from(self._content, position)
        for index in range(info & 0xFFFF):
            at = position + _TYPE.size + index * _MEMBER.size
            name, kind, bits = _MEMBER.unpack_from(self._content, at)
            offset = int(bits & 0xFFFFFF if info >> 31 else bits) // 8
            if name:
                if name == wanted:
                    return offset
            elif depth < _MAX_NESTED and kind < len(positions) and self._has_members(positions[kind]):
                inside = self._member(positions, positions[kind], wanted, depth + 1)
                if inside is not None:
                    return offset + inside
        return None

    def _has_members(self, position: int) -> bool:
        _, info, _ = _TYPE.unpack_from(self._content, position)
        return info >> 24 & 0x1F in (_STRUCT, _UNION)

    def _find(self, name: str) -> Optional[int]:
        """The string offset of a name; no two strings are equal."""
        at = self._content.find(b"\0" + name.encode() + b"\0", *self._strings)
        return None if at < 0 else at + 1 - self._strings[0]

    def _structs(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield for each struct the offset of its name, its info word and size, the offset of its members."""
        for position, name, kind in self._all_types():
            if kind == _STRUCT:
                _, info, size = _TYPE.unpack_from(self._content, position)
                yield name, info, size, position + _TYPE.size

    def _all_types(self) -> Iterator[tuple[int, int, int]]:
        """Yield for each type its offset, the offset of its name, its kind; end before one that is cut."""
        position, end = self._types
        while position + _TYPE.size <= end:
            name, info, _ = _TYPE.unpack_from(self._content, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _TAILS:
                break
            fixed, each = _TAILS[kind]
            begin = position
            position += _TYPE.size + fixed + each * count
            if position > end:
                break
            yield begin, name, kind

    def _string(self, offset: int) -> str:
        start = self._strings[0] + offset
        return self._content[start : self._content.find(b"\0", start)].decode("ascii", "replace")
