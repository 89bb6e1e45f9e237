# SPDX-License-Identifier: Apache-2.0
"""What was measured, as Markdown; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.ratios import NO_PROGRESS
from benchmarks.results import Cell, Import, OwnCost, Program, Results, Scan, Searched

BEGIN = "<!-- make bench writes from here -->"
END = "<!-- to here -->"

_MANY = 10
"""Ratios from here on are shown without decimals."""
_MIB = 1 << 20


def page(results: Results, kinds: Sequence[tuple[str, str]]) -> str:
    """All tables; ``kinds`` are the names of the kinds of load and what each does."""
    names = [name for name, _ in kinds]
    loads = _table(("load", "what it does"), [kind for kind in kinds if kind[0] in results.table])
    sections = {
        "Conditions": _table(("what", "value"), results.conditions.items()),
        "Side by side": f"{side_by_side(results, names)}\n\n{loads}" if results.table else "",
        "What an operation costs more": added(results, names),
        "The tracer's own cost": own_cost(results.own),
        "A scan of the host": scans(results.scans),
        "A search for handles and pointers": searches(results.searches),
        "Programs in the kernel": programs(results.programs),
        "Imports": imports(results.imports),
        "Not measured": "\n".join(f"- {failure}" for failure in results.failures),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def overview(results: Results, kinds: Sequence[tuple[str, str]]) -> str:
    """The medians alone; ``kinds`` as for ``page``."""
    shown = [(name, what) for name, what in kinds if name in results.table]
    rows = [
        (tool, *(median_text(results.table[name].get(tool, Cell())) for name, _ in shown))
        for tool in _tools(results, [name for name, _ in shown])
    ]
    return _table(("times slower", *(what for _, what in shown)), rows) + "\n"


def side_by_side(results: Results, kinds: Sequence[str]) -> str:
    """One row for each tool, one column for each kind of load, and below it what could not be measured."""
    columns = [kind for kind in kinds if kind in results.table]
    rows = []
    failures = []
    for tool in _tools(results, columns):
        cells = [results.table[kind].get(tool, Cell()) for kind in columns]
        rows.append((tool, *(ratio_text(cell) for cell in cells), _seen(cells)))
        failures += [f"{tool}, {kind}: {cell.failure}" for kind, cell in zip(columns, cells) if cell.failure]
    notes = "".join(f"\n- not measured: {failure}" for failure in failures)
    return _table(("tool", *columns, "calls seen"), rows) + ("\n" + notes if notes else "")


def added(results: Results, kinds: Sequence[str]) -> str:
    """The time that each tool adds to one operation of each kind of load."""
    columns = [kind for kind in kinds if kind in results.table and kind in results.paces]
    untraced = ("an operation, untraced", *(_duration(results.paces[kind]) for kind in columns))
    rows = [
        (tool, *(_added_text(results.table[kind].get(tool, Cell()), results.paces[kind]) for kind in columns))
        for tool in _tools(results, columns)
    ]
    return _table(("tool", *columns), [untraced, *rows]) if columns else ""


def ratio_text(cell: Cell) -> str:
    """The median, and from the lowest to the highest round."""
    spread = cell.spread
    if spread is None or spread.median == NO_PROGRESS:
        return median_text(cell)
    return f"{median_text(cell)} ({_number(spread.low)}-{_number(spread.high)})"


def median_text(cell: Cell) -> str:
    """The median, after a ``~`` where the machine was noisy, or in words why there is none."""
    spread = cell.spread
    if spread is None:
        return "not measured" if cell.failure else "-"
    if spread.median == NO_PROGRESS:
        return "no progress"
    return f"{'~' if cell.is_noisy else ''}{_number(spread.median)}"


def own_cost(costs: Iterable[OwnCost]) -> str:
    """One row for each measurement; empty where there is none."""
    rows = [
        (
            f"{cost.amount:,.0f} {cost.what}" if cost.amount >= 0 else f"unlimited {cost.what}",
            f"{cost.attach_seconds:.2f} s",
            f"{100 * cost.cpu_share:.2f} %",
            f"{cost.anonymous_bytes / _MIB:.0f} MiB",
            f"{cost.pss_bytes / _MIB:.0f} MiB",
            f"{cost.report_seconds:.2f} s",
            f"{cost.detach_seconds:.2f} s",
        )
        for cost in costs
    ]
    head = ("traced", "start to attached", "CPU, of one core", "anonymous", "Pss", "report", "detach")
    return _table(head, rows) if rows else ""


def programs(measured: Iterable[Program]) -> str:
    """One row for each BPF program and load; empty where there is none."""
    rows = [
        (program.kind, program.name, f"{program.runs:,}", f"{program.ns_per_run:.0f} ns")
        for program in measured
    ]
    return _table(("load", "program", "runs", "time of a run"), rows) if rows else ""


def scans(measured: Iterable[Scan]) -> str:
    """One row for each size of host; empty where there is none."""
    rows = [
        (f"{scan.processes:,}", f"{scan.seconds:.2f} s", f"{scan.cpu_seconds:.2f} s") for scan in measured
    ]
    return _table(("processes", "time", "CPU"), rows) if rows else ""


def searches(measured: Iterable[Searched]) -> str:
    """One row for each case; empty where there is none."""
    rows = [
        (
            f"{one.resident_bytes / _MIB:,.0f} MiB",
            f"{one.suspects:,}",
            "works" if one.works else "waits",
            str(one.passes),
            f"{one.seconds:.2f} s",
            f"{one.cpu_seconds:.2f} s",
            f"{one.most_bytes / _MIB:.0f} MiB",
            "-" if one.slowdown is None else f"{one.slowdown:.2f}",
        )
        for one in measured
    ]
    head = ("searched", "suspects", "process", "passes", "time", "CPU", "memory", "times slower meanwhile")
    return _table(head, rows) if rows else ""


def imports(measured: Iterable[Import]) -> str:
    """One row for each import; empty where there is none."""
    rows = [
        (
            f"`{entry.statement}`",
            f"{1000 * entry.seconds:.0f} ms",
            ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in entry.costliest),
        )
        for entry in measured
    ]
    return _table(("import", "time", "most of it"), rows) if rows else ""


def replaced(text: str, new: str) -> str:
    """The document with what stands between BEGIN and END replaced.  Raises ValueError without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} and {END}")
    return f"{before}{begin}\n\n{new}\n{end}{after}"


def _tools(results: Results, kinds: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(tool for kind in kinds for tool in results.table[kind]))


def _added_text(cell: Cell, pace: float) -> str:
    spread = cell.spread
    if spread is None or spread.median == NO_PROGRESS:
        return median_text(cell)
    return _duration((spread.median - 1) * pace)


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _seen(cells: Sequence[Cell]) -> str:
    shares = [cell.seen for cell in cells if cell.seen is not None]
    if not shares:
        return "-"
    # A call that was made while the tool came or went is no error of it.
    return f"{100 * min(1.0, *shares, 1.0):.0f} %"


def _number(ratio: float) -> str:
    if ratio == NO_PROGRESS:
        return "∞"
    return f"{ratio:.0f}" if ratio >= _MANY else f"{ratio:.2f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escaped(str(cell)) for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")
