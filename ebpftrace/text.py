# SPDX-License-Identifier: Apache-2.0
"""Small helpers that turn values into printable text: names, sizes, times, rates.

Text of this project is ASCII, so that a report is the same on a terminal, in a pipe and under ``LC_ALL=C``;
only names from the target contain other characters.
"""

from __future__ import annotations

import errno
import re
import time
import unicodedata
from collections.abc import Callable
from typing import Optional

from rich.cells import cell_len

from ebpftrace.units import NS

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_ELLIPSIS = "..."
_SURROGATE = re.compile("[\ud800-\udfff]")
_FIRST_RAW_BYTE, _LAST_RAW_BYTE = 0xDC80, 0xDCFF
_MISSING = "?"


def escape(text: str) -> str:
    r"""Make text from a target safe to print: one line, without any effect on the terminal.

    Every character that can act on a terminal or hide in it becomes a visible escape:
    control characters (C0, DEL, C1: ``\x1b``, ``\n``), format characters (bidirectional
    overrides, zero-width, soft hyphen: ``\u202e``), variation selectors, line and
    paragraph separators, spaces other than the plain one (``\xa0``), code points without
    a meaning, and bytes that are not UTF-8 (decoded with ``surrogateescape``: ``\xff``).
    A backslash is doubled, so that the result can be turned back.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    code = ord(character)
    if _FIRST_RAW_BYTE <= code <= _LAST_RAW_BYTE:
        return f"\\x{code - 0xDC00:02x}"
    if _is_plain(character):
        return character
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    if character in named:
        return named[character]
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _is_plain(character: str) -> bool:
    if unicodedata.category(character).startswith(("C", "Z")) and character != " ":
        return False
    # Variation selectors change the width of the character before them, so the width would be unknown.
    return not ("\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef")


def without_surrogates(text: str) -> str:
    r"""Make text that can be encoded as UTF-8: bytes that were not UTF-8 become ``\xff``.

    Nothing else is changed; this is for formats that escape control characters themselves.
    """
    return _SURROGATE.sub(lambda match: _escape_character(match.group()), text)


def shorten(text: str, width: int) -> str:
    """Cut the middle out of ``text`` so that it takes at most ``width`` terminal cells."""
    if len(text) <= width and cell_len(text) <= width:
        return text
    available = max(width - len(_ELLIPSIS), 0)
    tail_width = (available + 1) // 2
    tail = _prefix(text[::-1], tail_width)[::-1]
    return (_prefix(text, available - tail_width) + _ELLIPSIS + tail)[:width]


def _prefix(text: str, width: int) -> str:
    used = 0
    for index, character in enumerate(text):
        # A combining mark takes no cell, but text with thousands of them must be cut too.
        used += max(cell_len(character), 1)
        if used > width:
            return text[:index]
    return text


def size(value: Optional[int]) -> str:
    """Bytes as text: ``10244 KiB``, ``272.0 GiB``; whole KiB up to 32 MiB, as in pidstat and smaps.

    A number that is not a multiple of a KiB, such as a rate, is given in the largest unit.
    """
    if value is None:
        return _MISSING
    magnitude = abs(value)
    if magnitude < KIB:
        return f"{value} B"
    if value % KIB == 0 and magnitude < 32 * MIB:
        return f"{value // KIB} KiB"
    if magnitude < MIB:
        return f"{value / KIB:.1f} KiB"
    if magnitude < GIB:
        return f"{value / MIB:.1f} MiB"
    if magnitude < TIB:
        return f"{value / GIB:.1f} GiB"
    return f"{value / TIB:.2f} TiB"


def exact_size(value: int) -> str:
    """Bytes in both forms that people grep for: ``10244 KiB = 10489856 bytes``."""
    return size(value) if value < KIB else f"{size(value)} = {value} bytes"


def change(start: Optional[int], end: Optional[int], show: Callable[[int], str] = size) -> str:
    """The signed difference such as ``+10244 KiB``, ``-2``, ``+0``; empty if unknown."""
    if start is None or end is None:
        return ""
    difference = end - start
    if difference == 0:
        return "+0"
    return f"{'+' if difference > 0 else '-'}{show(abs(difference))}"


def rate(bytes_per_minute: float) -> str:
    """Growth, from bytes per minute: ``10244 KiB per minute``."""
    return f"{size(round(bytes_per_minute))} per minute"


def count(number: int) -> str:
    """A number with thousands separators: ``27,842``."""
    return f"{number:,}"


def plural(number: int, singular: str, several: str = "") -> str:
    """A count and its noun: ``1 mapping``, ``27,842 mappings``, ``2 stacks of ...``."""
    return f"{count(number)} {singular if number == 1 else several or singular + 's'}"


def searches(number: int, searched: int) -> str:
    """The number of searches and the bytes of each: ``3 searches of 12.0 MiB``."""
    return f"{plural(number, 'search', 'searches')} of {size(searched)}"


def error_name(number: int) -> str:
    """Name of an errno; the kernel has some that are never returned to programs (include/linux/errno.h)."""
    name: str = errno.errorcode.get(number, f"error {number}")
    return name


_SHORTEST_SHARE = 1.0
"""Seconds; in less than that, most of the CPU time is that of the beginning and of the report."""


def cpu_time(used: float, seconds: float) -> str:
    """CPU time that was used in so many seconds: ``303 ms of CPU time (2.4 % of one CPU)``."""
    share = f" ({100 * used / seconds:.1f} % of one CPU)" if seconds >= _SHORTEST_SHARE else ""
    return f"{duration(used)} of CPU time{share}"


def duration(seconds: float) -> str:
    """A length of time: ``350 us``, ``12.3 ms``, ``1.2 s``, ``2 min 5 s``, ``3 h 12 min``, ``5 d 3 h``."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds == 0:
        return "0 s"
    if seconds < 0.000_999_5:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.999_5:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def period(seconds: float) -> str:
    """A period in the usual form: ``60 s`` rather than ``1 min``, ``2.0 s`` as ``2 s``."""
    rounded = round(seconds, 1)
    if 1 <= rounded <= 120:
        return f"{rounded:.0f} s" if rounded == int(rounded) else f"{rounded} s"
    return duration(seconds)


def wall(wall_ns: int, now_ns: int) -> str:
    """Local wall-clock time, with the date if it is not today's; both arguments are ns since the epoch."""
    moment = time.localtime(wall_ns // NS)
    clock = time.strftime("%H:%M:%S", moment)
    now = time.localtime(now_ns // NS)
    if (moment.tm_year, moment.tm_yday) == (now.tm_year, now.tm_yday):
        return clock
    return f"{time.strftime('%Y-%m-%d', moment)} {clock}"


def address(value: int) -> str:
    """An address in hexadecimal: ``0x7faae0e49000``."""
    return f"0x{value:x}"


def inside(number: int, inner: Optional[int]) -> str:
    """A tid, with what it is in its own PID namespace: ``28720``, ``28720 (9 inside)``."""
    return f"{number} ({inner} inside)" if inner not in (None, number) else str(number)


def pid_inside(pid: int, inner: Optional[int]) -> str:
    """The same of a process, for use in parentheses: ``PID 28718``, ``PID 28718, 1 inside``."""
    return f"PID {pid}, {inner} inside" if inner not in (None, pid) else f"PID {pid}"


def printable(stream_encoding: Optional[str], text: str) -> str:
    r"""The text with escapes such as ``\xe9`` for characters that the encoding (None means UTF-8) lacks."""
    encoding = stream_encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
