# SPDX-License-Identifier: Apache-2.0
"""Leaked bytes and mappings as a pprof profile, which `go tool pprof`, Pyroscope and Parca read.

The messages of https://github.com/google/pprof/blob/main/proto/profile.proto, in the wire format of
https://protobuf.dev/programming-guides/encoding/: so few of them that no library is needed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from typing import Optional, Union

from ebpftrace import frames
from ebpftrace.fingerprint import fingerprint
from ebpftrace.model import Finding, Frame, Report
from ebpftrace.text import escape, without_surrogates

_VARINT, _BYTES = 0, 2
_UINT64 = (1 << 64) - 1

_SAMPLE_TYPE, _SAMPLE, _MAPPING, _LOCATION, _FUNCTION, _STRING_TABLE = 1, 2, 3, 4, 5, 6
_TIME_NANOS, _DURATION_NANOS, _DEFAULT_SAMPLE_TYPE, _COMMENT = 9, 10, 14, 13
"""Fields of Profile."""


def render(reports: Sequence[Report]) -> bytes:
    """The profile, packed by gzip."""
    builder = _Profile()
    for report in reports:
        leaks = [finding for finding in report.findings if finding.fails and finding.size]
        if leaks and report.target.exe:
            builder.add_module(report.target.exe)  # readers take the first one for the program itself
        for leak in leaks:
            builder.add(leak, report)
    return gzip.compress(builder.encoded(reports), mtime=0)


class _Profile:
    """Collects samples, and numbers what they share."""

    def __init__(self) -> None:
        self._strings: dict[str, int] = {"": 0}
        self._mappings: dict[str, int] = {}
        self._functions: dict[tuple[str, str], int] = {}
        self._locations: dict[Frame, int] = {}
        self._samples: list[bytes] = []

    def add(self, finding: Finding, report: Report) -> None:
        """One sample: a leak, innermost frame first."""
        stack = [self._location(frame) for frame in finding.stack.frames]
        if not stack:
            stack = [self._location(finding.start_routine or Frame("[no stack]"))]
        labels = {
            "verdict": finding.verdict.value,
            "fingerprint": fingerprint(finding),
            "process": escape(report.target.comm),
        }
        parts = [_packed(1, stack), _packed(2, (finding.count, finding.size))]
        parts += [
            _message(3, _number(1, self._string(key)) + _number(2, self._string(value)))
            for key, value in labels.items()
        ]
        pid = _number(1, self._string("pid")) + _number(3, report.target.pid)
        self._samples.append(_message(_SAMPLE, b"".join((*parts, _message(3, pid)))))

    def add_module(self, file: str) -> None:
        """Number a program or library that has code in the profile."""
        self._string(file)
        self._mappings.setdefault(file, len(self._mappings) + 1)

    def encoded(self, reports: Sequence[Report]) -> bytes:
        """The message Profile."""
        kinds = [("leaked_mappings", "count"), ("leaked_space", "bytes")]
        parts = [
            _message(_SAMPLE_TYPE, _number(1, self._string(kind)) + _number(2, self._string(unit)))
            for kind, unit in kinds
        ]
        parts += self._samples
        parts += [
            # The functions, files, lines and inlined frames in it are known: no symbols are to be looked for.
            _message(_MAPPING, b"".join((_number(1, number), _number(5, self._string(file)),
                                         *(_number(field, 1) for field in (7, 8, 9, 10)))))
            for file, number in self._mappings.items()
        ]  # fmt: skip
        parts += [self._encoded_location(frame, number) for frame, number in self._locations.items()]
        parts += [
            _message(_FUNCTION, b"".join((_number(1, number), _number(2, self._string(name)),
                                          _number(3, self._string(name)), _number(4, self._string(file)))))
            for (name, file), number in self._functions.items()
        ]  # fmt: skip
        ended = max((report.clock.wall_ns(report.ended_at) for report in reports), default=0)
        longest = max((report.seconds for report in reports), default=0.0)
        comment = self._string("what threads that exited left mapped, by ebpftrace mmap-leaks")
        default = self._string("leaked_space")
        parts += [_message(_STRING_TABLE, text.encode("utf-8")) for text in self._strings]
        parts += [_number(_TIME_NANOS, ended), _number(_DURATION_NANOS, round(longest * 1e9))]
        parts += [_packed(_COMMENT, (comment,)), _number(_DEFAULT_SAMPLE_TYPE, default)]
        return b"".join(parts)

    def _string(self, text: str) -> int:
        return self._strings.setdefault(without_surrogates(text), len(self._strings))

    def _location(self, frame: Frame) -> int:
        if frame not in self._locations:
            self._locations[frame] = len(self._locations) + 1
            self._function(frame)
            if frame.module:
                self.add_module(frame.module)
        return self._locations[frame]

    def _function(self, frame: Frame) -> int:
        key = (frames.name(frame), escape(frame.file or ""))
        for text in key:
            self._string(text)
        return self._functions.setdefault(key, len(self._functions) + 1)

    def _encoded_location(self, frame: Frame, number: int) -> bytes:
        line = _number(1, self._function(frame)) + _number(2, frame.line or 0)
        mapping = self._mappings.get(frame.module or "", 0)
        address = frame.offset or 0
        return _message(
            _LOCATION, _number(1, number) + _number(2, mapping) + _number(3, address) + _message(4, line)
        )


def _number(field: int, value: Optional[int]) -> bytes:
    """A field of a whole number; 0 is what a missing one means."""
    return _varint(field << 3 | _VARINT) + _varint(value) if value else b""


def _message(field: int, data: Union[bytes, bytearray]) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(data)) + data


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(_varint, values)))


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    rest = value & _UINT64
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
