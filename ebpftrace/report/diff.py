# SPDX-License-Identifier: Apache-2.0
"""Two runs compared, as text, JSON or Markdown for a comment on a pull request."""

from __future__ import annotations

import json
from typing import Any, Optional

from ebpftrace import __version__
from ebpftrace.known.comparing import Amount, Change, Compared, Comparison, RunSummary
from ebpftrace.text import count, duration, escape, plural, rate, size, without_surrogates

SCHEMA = "ebpftrace.diff/1"
_MARKS = {Change.NEW: "+", Change.GROWN: "+", Change.SAME: "=", Change.SHRUNK: "-", Change.GONE: "-"}
_MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_{}[]<>|#"})


def summary(comparison: Comparison) -> str:
    """One line: did it help?"""
    worse = [*comparison.of(Change.NEW), *comparison.of(Change.GROWN)]
    better = [*comparison.of(Change.GONE), *comparison.of(Change.SHRUNK)]
    same = comparison.of(Change.SAME)
    if worse and better:
        verdict = f"PARTLY: {_kinds(comparison)}"
    elif worse:
        verdict = f"WORSE: {_kinds(comparison)}"
    elif better:
        all_gone = not same and not comparison.of(Change.SHRUNK)
        verdict = f"{'FIXED' if all_gone else 'BETTER'}: {_kinds(comparison)}"
        if comparison.is_unsure:
            verdict = f"CANNOT TELL: {_kinds(comparison)}"
    elif same:
        verdict = f"NO CHANGE: {plural(len(same), 'leak')} in both runs"
    else:
        verdict = "NO LEAK in either run"
    if comparison.is_unsure:
        verdict += "; not all could be judged (see below)"
    return verdict


def _kinds(comparison: Comparison) -> str:
    counted = [(len(comparison.of(change)), change.value) for change in Change]
    return ", ".join(f"{count(number)} {name}" for number, name in counted if number)


def doubts(comparison: Comparison) -> list[str]:
    """Return the limits of the comparison."""
    page = []
    if not comparison.comparable:
        lengths = f"{duration(comparison.old.seconds)} and {duration(comparison.new.seconds)}"
        page.append(f"the windows differ ({lengths}): of leaks without a rate, the amounts are not compared")
    for name, run in (("old", comparison.old), ("new", comparison.new)):
        if run.undecided:
            page.append(
                f"{name} run: of {plural(run.undecided, 'mapping')} it cannot be told whether they are leaked"
            )
        if run.lost:
            page.append(f"{name} run: not everything could be recorded")
        if run.left_out:
            page.append(
                f"{name} run: the saved report leaves out {plural(run.left_out, 'leak')} (--top, --min-bytes)"
            )
    return page


def text(comparison: Comparison) -> str:
    """For a terminal."""
    lines = [summary(comparison)]
    for one in comparison.leaks:
        lines += ["", f"{_MARKS[one.change]} {one.change.value}: {one.leak.verdict.value}, {_amounts(one)}"]
        lines += [f"    {label:<12}{escape(value)}" for label, value in _facts(one)]
    page = doubts(comparison)
    if page:
        lines += ["", *(f"note: {line}" for line in page)]
    return "\n".join(lines) + "\n"


def markdown(comparison: Comparison) -> str:
    """For a comment."""
    lines = [f"**ebpftrace:** {summary(comparison)}", ""]
    if comparison.leaks:
        lines += ["| | leak | where | before | after |", "|---|---|---|---|---|"]
    for one in comparison.leaks:
        where = (
            " ".join(part for part in (one.leak.place or one.leak.routine, one.leak.source) if part) or "?"
        )
        before, after = _amount(one.before), _amount(one.after)
        lines.append(
            f"| {one.change.value} | {one.leak.verdict.value} | {_cell(where)} | {before} | {after} |"
        )
    page = doubts(comparison)
    if page:
        lines += ["", *(f"- {line}" for line in page)]
    return "\n".join(lines).rstrip("\n") + "\n"


def as_json(comparison: Comparison) -> str:
    """As one line of JSON."""
    document = {
        "schema": SCHEMA,
        "version": __version__,
        "summary": summary(comparison),
        "worse": comparison.is_worse,
        "comparable": comparison.comparable,
        "old": _run(comparison.old),
        "new": _run(comparison.new),
        "notes": doubts(comparison),
        "leaks": [_entry(one) for one in comparison.leaks],
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _amounts(one: Compared) -> str:
    if one.change is Change.NEW:
        return _amount(one.after)
    if one.change is Change.GONE:
        return f"was {_amount(one.before)}"
    return f"{_amount(one.before)} -> {_amount(one.after)}"


def _amount(amount: Amount) -> str:
    if not amount.count:
        return "none"
    pace = f", {rate(amount.bytes_per_minute)}" if amount.bytes_per_minute else ""
    return f"{plural(amount.count, 'mapping')}, {size(amount.size)}{pace}"


def _facts(one: Compared) -> list[tuple[str, str]]:
    leak = one.leak
    facts = [("made by", " ".join(part for part in (leak.place, leak.source) if part))] if leak.place else []
    if leak.routine:
        facts.append(("threads ran", leak.routine))
    return [*facts, ("fingerprint", leak.fingerprint)]


def _run(run: RunSummary) -> dict[str, Any]:
    return {
        "leaks": len(run.leaks),
        "count": sum(leak.amount.count for leak in run.leaks.values()),
        "bytes": sum(leak.amount.size for leak in run.leaks.values()),
        "seconds": run.seconds,
        "ended": run.ended,
        "undecided": run.undecided,
    }


def _entry(one: Compared) -> dict[str, Any]:
    leak = one.leak
    return {
        "change": one.change.value,
        "fingerprint": leak.fingerprint,
        "verdict": leak.verdict.value,
        "place": _fit(leak.place),
        "source": _fit(leak.source),
        "start_routine": _fit(leak.routine),
        "before": _amount_object(one.before),
        "after": _amount_object(one.after),
    }


def _amount_object(amount: Amount) -> dict[str, Any]:
    return {"count": amount.count, "bytes": amount.size, "bytes_per_minute": amount.bytes_per_minute}


def _fit(text: str) -> Optional[str]:
    return without_surrogates(text) or None


def _cell(text: str) -> str:
    """Text of the target in a table of Markdown."""
    return escape(text).translate(_MARKDOWN)
