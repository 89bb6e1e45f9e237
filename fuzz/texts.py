# SPDX-License-Identifier: Apache-2.0
"""Texts of a target on their way to a screen or into JSON: what comes out cannot act on a terminal."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len

from ebpftrace import frames
from ebpftrace.model import Frame
from ebpftrace.strace.events import Text
from ebpftrace.strace.values import text
from ebpftrace.text import escape, printable, shorten, without_surrogates
from fuzz.reader import Reader

_WIDTHS = (0, 1, 20, 80)


def is_plain(shown: str) -> bool:
    """No control or format character, no surrogate, no separator of lines."""
    return not any(
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for character in shown
    )


def _screen(data: bytes) -> object:
    name = data.decode("utf-8", "surrogateescape")
    shown = escape(name)
    assert is_plain(shown)
    assert is_plain(text(Text(0, data)))
    assert is_plain(frames.line(Frame(name, name, 1, name, 16, True), 80))
    assert printable("ascii", shown).isascii()
    for width in _WIDTHS:
        assert cell_len(shorten(shown, width)) <= width
    return shown == name


def _json(data: bytes) -> object:
    name = data.decode("utf-8", "surrogateescape")
    written = json.dumps(without_surrogates(name))
    assert is_plain(written)
    assert json.loads(written.encode()) == without_surrogates(name)
    return name.encode("utf-8", "surrogateescape") == data


def _seeds() -> Sequence[bytes]:
    return [b"worker-1", b"\x1b[31mred\n\xff", "\u202eab\u0301\ud55c\U0001f600\\".encode()]


READERS = (Reader("screen", _screen, _seeds), Reader("json", _json, _seeds))
