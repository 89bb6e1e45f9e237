"""The little that must be known of the running kernel's types, from its BTF.

Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from ebpftrace.errors import CannotTrace

_PATH = Path("/sys/kernel/btf/vmlinux")
_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_STRUCT = 4
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
        """Tell whether a type, function or member of that name exists."""
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

    def _structs(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield of each struct where its name is, its info word, its size, and where its members are."""
        position, end = self._types
        while position + _TYPE.size <= end:
            name, info, size = _TYPE.unpack_from(self._content, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _TAILS:
                break
            fixed, each = _TAILS[kind]
            members = position + _TYPE.size
            position = members + fixed + each * count
            if kind == _STRUCT and position <= end:
                yield name, info, size, members

    def _string(self, offset: int) -> str:
        start = self._strings[0] + offset
        return self._content[start : self._content.find(b"\0", start)].decode("ascii", "replace")
