# SPDX-License-Identifier: Apache-2.0
"""Suppressions: lines that name leaks to be accepted, in the spirit of LeakSanitizer's.

    # comment
    thread:start_worker            threads, by a function of their stack or what they run
    mapping:file=*/third_party/*   mappings that are no stacks of threads, by a source file
    any:fingerprint=0123456789abcdef

A line is ``TYPE:[FIELD=]GLOB``.  Without a field, the pattern may match any field.  It must match a whole
name, with case; ``*``, ``?`` and ``[...]`` are as in fnmatch(3), and ``*`` matches slashes too.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Optional

from ebpftrace.fingerprint import fingerprint, module_name
from ebpftrace.model import Finding, Frame
from ebpftrace.wrappers import qualified

_MAX_LINE = 4096


class Kind(Enum):
    """The findings that a suppression applies to."""

    THREAD = "thread"
    """Stacks of threads."""
    MAPPING = "mapping"
    """All other findings."""
    ANY = "any"


class Field(Enum):
    """The names that a pattern is compared with."""

    FUNCTION = "function"
    """A function of the stack, or the start routine; with and without its arguments."""
    FILE = "file"
    """The source file of such a function: its path, or the last part of it."""
    MODULE = "module"
    """The program or library of such a function: its path, the last part of it, or that without a version."""
    NAME = "name"
    """The name of a thread that the finding is about."""
    FINGERPRINT = "fingerprint"


class BadSuppression(ValueError):
    """A line that is not a suppression; ``number`` counts from 1."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(f"line {number}: {why}")
        self.number = number


@dataclass(frozen=True)
class Suppression:
    """One line."""

    kind: Kind
    field: Optional[Field]
    """None means any field."""
    glob: str
    line: int = 0

    @property
    def text(self) -> str:
        """The line in the file."""
        return f"{self.kind.value}:{f'{self.field.value}=' if self.field else ''}{self.glob}"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(fnmatch.translate(self.glob))

    def matches(self, traits: Traits) -> bool:
        """Whether it accepts a finding."""
        if self.kind is not Kind.ANY and self.kind is not traits.kind:
            return False
        fields = Field if self.field is None else (self.field,)
        return any(self._pattern.match(name) for field in fields for name in traits.names[field])


@dataclass(frozen=True)
class Traits:
    """The names of one finding that patterns are compared with."""

    kind: Kind
    names: dict[Field, frozenset[str]]

    @classmethod
    def of(cls, finding: Finding) -> Traits:
        """Collect the names of a finding."""
        routine = finding.start_routine
        frames = [*finding.stack.frames, *([routine] if routine is not None else [])]
        owners = {one.outstanding.owner for one in finding.orphans if one.outstanding.owner is not None}
        return cls(
            Kind.THREAD if finding.verdict.of_stacks else Kind.MAPPING,
            {
                Field.FUNCTION: frozenset(name for frame in frames for name in _functions(frame)),
                Field.FILE: frozenset(name for frame in frames for name in _paths(frame.file)),
                Field.MODULE: frozenset(
                    name
                    for frame in frames
                    for name in (*_paths(frame.module), module_name(frame.module or ""))
                    if name
                ),
                Field.NAME: frozenset(owner.name for owner in owners if owner.name),
                Field.FINGERPRINT: frozenset((fingerprint(finding),)),
            },
        )


def parse(text: str) -> tuple[Suppression, ...]:
    """The suppressions of a file.  Raises ``BadSuppression``."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        rule = line.strip()
        if rule and not rule.startswith("#"):
            found.append(_parsed(rule, number))
    return tuple(found)


def first_match(suppressions: Sequence[Suppression], finding: Finding) -> Optional[Suppression]:
    """The first suppression that accepts a finding; None if none does."""
    if not suppressions:
        return None
    traits = Traits.of(finding)
    return next((one for one in suppressions if one.matches(traits)), None)


def _parsed(rule: str, number: int) -> Suppression:
    word, colon, pattern = rule.partition(":")
    kind = next((one for one in Kind if one.value == word.strip()), None)
    if not colon or kind is None:
        raise BadSuppression(number, f"{rule[:60]!a} does not begin with thread:, mapping: or any:")
    name, equals, rest = pattern.partition("=")
    field = next((one for one in Field if equals and one.value == name.strip()), None)
    glob = (rest if field is not None else pattern).strip()
    if not glob:
        raise BadSuppression(number, f"{rule[:60]!a} has no pattern: * matches everything")
    if len(glob) > _MAX_LINE:
        raise BadSuppression(number, f"the pattern is longer than {_MAX_LINE} characters")
    return Suppression(kind, field, glob, number)


def _functions(frame: Frame) -> tuple[str, ...]:
    return (frame.function, qualified(frame.function)) if frame.function else ()


def _paths(path: Optional[str]) -> tuple[str, ...]:
    return (path, posixpath.basename(path)) if path else ()
