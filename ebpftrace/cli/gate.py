# SPDX-License-Identifier: Apache-2.0
"""``--fail-on-leak``: the exit status for the reports and COMMAND."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

if TYPE_CHECKING:
    from ebpftrace.model import CommandEnd, Report

STATUS_LEAK = 3
"""A leak was found; --leak-status changes it."""
STATUS_UNDECIDED = 4
"""There may be a leak, because something could not be judged."""

_OPTION = "--fail-on-leak"
_FLOOR = re.compile(r"([1-9][0-9]{0,17})\s*(?:([KMGT])(?:i?B)?|(B))?", re.ASCII | re.IGNORECASE)
_UNITS = "KMGT"


@dataclass(frozen=True)
class Floor:
    """The smallest leak that counts, in threads or mappings, or in bytes."""

    count: int = 1
    size: int = 0

    def reached(self, count: int, size: int) -> bool:
        """Whether a leak with this number of mappings and bytes counts."""
        return count > 0 and count >= self.count and size >= self.size


class FloorType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``20`` (mappings) or ``64MiB`` (bytes)."""

    name = "N|SIZE"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        """Convert for click; all units are powers of 1024."""
        if isinstance(value, Floor):
            return value
        match = _FLOOR.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!a} is neither a number of threads nor a size such as 64MiB.", param, ctx)
        number, unit, is_bytes = int(match[1]), match[2], match[3]
        if unit:
            return Floor(size=number << 10 * (1 + _UNITS.index(unit.upper())))
        return Floor(size=number) if is_bytes else Floor(count=number)


def fail_on_leak(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--fail-on-leak`` of a ``GateCommand``."""
    return click.option(
        _OPTION,
        type=FloorType(),
        metavar="[=N|=SIZE]",
        help=f"Exit with status {STATUS_LEAK} where there is a leak (of at least N threads or mappings, or "
        f"SIZE bytes), with {STATUS_UNDECIDED} where something could not be judged.",
    )(command)


class GateCommand(click.Command):
    """A command whose --fail-on-leak needs no value, and takes one only after ``=``.

    click would take the next word, which may be COMMAND.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add the default value, then parse as click does."""
        end = args.index("--") if "--" in args else len(args)
        options = [f"{_OPTION}=1" if word == _OPTION else word for word in args[:end]]
        return super().parse_args(ctx, options + args[end:])


@dataclass(frozen=True, order=True)
class _Found:
    count: int
    size: int


@dataclass(frozen=True)
class _Last:
    found: _Found
    undecided: int
    may_hide: bool


class Gate:
    """Determines the exit status from the reports."""

    def __init__(self, floor: Optional[Floor], leak_status: int) -> None:
        """Without ``floor``, a leak is no failure."""
        self._floor = floor
        self._leak_status = leak_status
        self._most: dict[int, _Found] = {}
        """The largest leak of each target; a leak in an earlier report counts even if a later one lacks
        it."""
        self._last: dict[int, _Last] = {}
        self.has_lost = False
        """Some processes could not be followed."""
        self.leaves_out = False
        """A saved report lacks some of the leaks that were found."""

    def add(self, target: int, report: Report) -> None:
        """Add one report; ``target`` is any number that identifies the traced process."""
        leaks = [finding for finding in report.findings if finding.fails]
        found = _Found(sum(finding.count for finding in leaks), sum(finding.size for finding in leaks))
        self._most[target] = max(self._most.get(target, found), found)
        self._last[target] = _Last(found, report.in_doubt, report.losses.may_hide)

    @property
    def fails(self) -> bool:
        """Whether there is a leak that counts."""
        return self._reached(list(self._most.values()))

    @property
    def fails_by_earlier(self) -> bool:
        """Whether only earlier reports of --interval, and not the last ones, have a leak that counts."""
        return self.fails and not self._reached([last.found for last in self._last.values()])

    @property
    def is_unsure(self) -> bool:
        """Whether something could not be judged."""
        return (
            self.has_lost
            or self.leaves_out
            or any(last.undecided or last.may_hide for last in self._last.values())
        )

    def _reached(self, found: Sequence[_Found]) -> bool:
        count, size = sum(one.count for one in found), sum(one.size for one in found)
        return self._floor is not None and self._floor.reached(count, size)

    def status(self, command: Optional[CommandEnd]) -> int:
        """The exit status: a leak comes before COMMAND's status; 4 is used only if COMMAND succeeded."""
        if self.fails:
            return self._leak_status
        status = command.status if command is not None else 0
        if not status and self._floor is not None and self.is_unsure:
            return STATUS_UNDECIDED
        return status
