# SPDX-License-Identifier: Apache-2.0
"""--fail-on-leak: which exit status follows from the reports and from COMMAND."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from reports import healthy, never_joined_before_attach

from ebpftrace.cli.gate import STATUS_UNDECIDED, Floor, FloorType, Gate, GateCommand
from ebpftrace.model import CommandEnd, Losses, Report

LEAK = 3
QUIET = replace(healthy(), findings=(), losses=Losses(), undecided=0)


def report(**changes: object) -> Report:
    return replace(QUIET, **changes)  # type: ignore[arg-type]


def leaking(count: int, leak: bool = True) -> Report:
    return report(findings=(replace(never_joined_before_attach(count), leak=leak),)) if count else report()


def ended(status: int) -> CommandEnd:
    return CommandEnd(("x",), 1, exit_status=status)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans(), st.integers(0, 2)), max_size=6),
    st.one_of(st.none(), st.integers(1, 8).map(lambda count: Floor(count=count))),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_against_the_rules(
    reported: list[tuple[int, int, bool, int]], floor: Optional[Floor], command: Optional[int]
) -> None:
    """(target, threads, leak, undecided) of each report, in the order they were made."""
    gate = Gate(floor, LEAK)
    for target, threads, leak, undecided in reported:
        gate.add(target, replace(leaking(threads, leak), undecided=undecided))
    most = {target: max(n * leak for t, n, leak, _ in reported if t == target) for target, *_ in reported}
    last = {target: undecided for target, _, _, undecided in reported}
    status = gate.status(None if command is None else ended(command))
    if floor is not None and sum(most.values()) >= floor.count:
        assert status == LEAK
    elif command:
        assert status == command
    elif floor is not None and any(last.values()):
        assert status == STATUS_UNDECIDED
    else:
        assert status == 0


def test_what_could_not_be_recorded_is_not_judged() -> None:
    gate = Gate(Floor(), LEAK)
    gate.add(0, report(losses=Losses(events=1)))
    assert gate.status(None) == STATUS_UNDECIDED


def test_a_stack_that_is_missing_is_no_doubt() -> None:
    gate = Gate(Floor(), LEAK)
    gate.add(0, report(losses=Losses(stacks=1)))
    assert gate.status(None) == 0


def test_a_leak_of_an_earlier_report_counts_and_is_reported() -> None:
    gate = Gate(Floor(), LEAK)
    gate.add(0, leaking(2))
    assert not gate.fails_by_earlier
    gate.add(0, leaking(0))
    assert gate.status(ended(0)) == LEAK
    assert gate.fails_by_earlier


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("1", Floor(count=1)),
        ("20", Floor(count=20)),
        ("64MiB", Floor(size=64 << 20)),
        ("64m", Floor(size=64 << 20)),
        ("1GB", Floor(size=1 << 30)),
        ("4096B", Floor(size=4096)),
    ],
)
def test_floors(text: str, floor: Floor) -> None:
    assert FloorType().convert(text, None, None) == floor


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "64 furlongs", "1" * 30, "٣"])
def test_what_is_no_floor(text: str) -> None:
    with pytest.raises(click.BadParameter):
        FloorType().convert(text, None, None)


@pytest.mark.parametrize(
    ("arguments", "floor", "rest"),
    [
        (["--fail-on-leak", "20"], Floor(), ("20",)),
        (["--fail-on-leak=20", "./x"], Floor(count=20), ("./x",)),
        (["--fail-on-leak", "--", "--fail-on-leak"], Floor(), ("--fail-on-leak",)),
        (["./x"], None, ("./x",)),
    ],
)
def test_the_option_takes_a_value_only_behind_an_equals_sign(
    arguments: list[str], floor: Optional[Floor], rest: tuple[str, ...]
) -> None:
    seen: list[object] = []

    @click.command(cls=GateCommand)
    @click.option("--fail-on-leak", type=FloorType())
    @click.argument("command", nargs=-1, type=click.UNPROCESSED)
    def gate(fail_on_leak: Optional[Floor], command: tuple[str, ...]) -> None:
        seen.extend((fail_on_leak, command))

    assert CliRunner().invoke(gate, arguments).exit_code == 0
    assert seen == [floor, rest]
