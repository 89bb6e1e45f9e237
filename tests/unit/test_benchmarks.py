# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks make of their figures; the measuring itself is `make bench`."""

from __future__ import annotations

import math
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import chart, empty_probes, imports, side_by_side, tables, tools
from benchmarks.comparison import regressions
from benchmarks.conditions import elsewhere
from benchmarks.loads import KINDS
from benchmarks.perfdata import count_samples
from benchmarks.ratios import NO_PROGRESS, Spread, rotated
from benchmarks.record import Record
from benchmarks.results import Cell, Import, OwnCost, Program, Results, Scan, Searched, from_json, to_json
from benchmarks.slices import Level, Slice, Slowdown, slowdown
from benchmarks.tally import Tally
from benchmarks.tools import FLOOR, OURS, UNTRACED, Tool

ROOT = Path(__file__).resolve().parents[2]
KIND_TEXTS = [("pairs", "mmap & munmap"), ("redis", "a server")]

ABSENT = Tool("absent", ("no-such-tool-here",))
KILLER = Tool("killer", ("sh", "-c", "kill -9 {pid}; echo attached >&2; exec sleep 60"), ready="attached")
_STOPS = (
    "kill -STOP {pid}; trap 'kill -CONT {pid}; exit' INT; echo attached >&2; while :; do sleep 0.05; done"
)
STOPPER = Tool("stopper", ("sh", "-c", _STOPS), ready="attached")


@pytest.fixture
def misbehaving_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "TOOLS", (*tools.TOOLS, ABSENT, KILLER, STOPPER))


lines = st.text(st.sampled_from("ab |\\<&>é"), max_size=6)
ratios = st.floats(0.5, 1e6) | st.just(NO_PROGRESS)
cells = st.builds(
    Cell,
    st.lists(ratios, max_size=5).map(tuple),
    st.none() | st.floats(0, 1),
    lines,
    st.booleans(),
)
tables_of_cells = st.dictionaries(
    st.sampled_from([name for name, _ in KIND_TEXTS]),
    st.dictionaries(lines, cells, max_size=4),
)
results_strategy = st.builds(
    Results,
    conditions=st.dictionaries(lines, lines, max_size=3),
    table=tables_of_cells,
    paces=st.dictionaries(st.sampled_from([name for name, _ in KIND_TEXTS]), st.floats(1e-9, 10)),
    failures=st.lists(lines, max_size=2).map(tuple),
    own=st.lists(
        st.builds(
            OwnCost,
            lines,
            *[st.floats(0, 1e6)] * 3,
            *[st.integers(0)] * 2,
            *[st.floats(0, 1e3)] * 2,
        ),
        max_size=2,
    ).map(tuple),
    searches=st.lists(
        st.builds(
            Searched,
            st.integers(1),
            st.integers(1),
            st.booleans(),
            st.integers(1),
            st.floats(0, 9),
            st.floats(0, 9),
            st.integers(1),
            st.none() | st.floats(0, 9),
        ),
        max_size=2,
    ).map(tuple),
    scans=st.lists(st.builds(Scan, st.integers(1), *[st.floats(0, 9)] * 2), max_size=2).map(tuple),
    imports=st.lists(st.builds(Import, lines, st.floats(0, 9), st.just((("bcc", 0.1),))), max_size=2).map(
        tuple
    ),
    programs=st.lists(
        st.builds(Program, lines, lines, st.integers(1), st.floats(0, 1e6)),
        max_size=2,
    ).map(tuple),
)


def a_slice(**levels: float) -> Slice:
    """A slice of 100 parts at each level, with the pace given."""
    return Slice(100, {int(name[1:]): Level(100, pace) for name, pace in levels.items()})


def test_slowdown_is_against_the_process_before_and_after() -> None:
    assert slowdown(a_slice(_1=1e-6), a_slice(_1=2e-6), a_slice(_1=1e-6)).ratio == pytest.approx(2)
    assert slowdown(a_slice(_1=1e-6), a_slice(_1=2e-6), a_slice(_1=4e-6)).ratio == pytest.approx(1)
    assert slowdown(a_slice(_1=1e-6), Slice(), a_slice(_1=1e-6)).ratio == NO_PROGRESS


@given(st.floats(1, 100), st.dictionaries(st.integers(0, 20), st.floats(1e-9, 1), min_size=1))
def test_noise_is_no_part_of_the_slowdown(ratio: float, noise: dict[int, float]) -> None:
    untraced = Slice(1000, {number: Level(100, pace) for number, pace in noise.items()})
    some = dict(list(noise.items())[:1])
    traced = Slice(1000, {number: Level(70, ratio * pace) for number, pace in some.items()})
    found = slowdown(untraced, traced, untraced)
    assert found.is_similar
    assert found.ratio == pytest.approx(ratio)


def test_where_nothing_is_similar_the_slowdown_says_so() -> None:
    found = slowdown(a_slice(_1=1e-6), a_slice(_9=3e-6), a_slice(_1=1e-6, _2=3e-6))
    assert found == (pytest.approx(2), False)
    few = Slice(2, {1: Level(1, 3e-6), 9: Level(1, 3e-6)})
    assert not slowdown(a_slice(_1=1e-6), few, a_slice(_1=1e-6)).is_similar


@given(st.lists(ratios, min_size=1))
def test_median_is_within_the_spread(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.low <= spread.median <= spread.high


@given(st.lists(st.text(), unique=True), st.integers(0, 50))
def test_each_round_has_all_tools_and_each_is_first_in_some(items: list[str], turn: int) -> None:
    assert sorted(rotated(items, turn)) == sorted(items)
    assert {rotated(items, turn + by)[0] for by in range(len(items))} == set(items)


@given(results_strategy)
def test_what_was_written_is_read_back(results: Results) -> None:
    assert from_json(to_json(results)) == results


def test_something_else_is_not_read() -> None:
    with pytest.raises(ValueError, match="benchmarks"):
        from_json("{}")


@given(results_strategy)
def test_every_table_has_rows_of_one_width(results: Results) -> None:
    for table in tables.page(results, KIND_TEXTS).split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("| ")]
        assert len({len(re.sub(r"\\.", "", row).split("|")) for row in rows}) <= 1


def test_page_says_what_could_not_be_measured() -> None:
    table = {"pairs": {OURS: Cell((1.1, 1.3, 1.2), seen=0.999), "perf": Cell(failure="not installed")}}
    shown = tables.side_by_side(Results(conditions={}, table=table), ["pairs"])
    assert f"| {OURS} | 1.20 (1.10-1.30) | 100 % |" in shown
    assert "perf, pairs: not installed" in shown


def test_calls_that_a_tool_did_not_see_are_shown() -> None:
    table = {"pairs": {"perf": Cell((1.4,), seen=0.031)}}
    assert "| 3 % |" in tables.side_by_side(Results(conditions={}, table=table), ["pairs"])


def test_no_progress_is_said_in_words() -> None:
    assert tables.ratio_text(Cell((NO_PROGRESS, 80.0, NO_PROGRESS))) == "no progress"
    assert tables.ratio_text(Cell((NO_PROGRESS, 80.0, 81.0))) == "81 (80-∞)"


def test_what_was_measured_in_noise_is_marked() -> None:
    assert tables.ratio_text(Cell((1.2, 1.4), is_noisy=True)) == "~1.30 (1.20-1.40)"
    assert tables.median_text(Cell((1.2,), is_noisy=True)) == "~1.20"


def test_added_time_is_of_one_operation() -> None:
    table = {"pairs": {OURS: Cell((1.1, 1.2, 1.3)), "strace": Cell((60.0,)), "perf": Cell((NO_PROGRESS,))}}
    shown = tables.added(Results(conditions={}, table=table, paces={"pairs": 2e-6}), ["pairs", "redis"])
    assert shown.splitlines()[2:] == [
        "| an operation, untraced | 2.00 µs |",
        f"| {OURS} | 400 ns |",
        "| strace | 118.00 µs |",
        "| perf | no progress |",
    ]


def test_overview_has_the_medians_and_names_the_loads() -> None:
    table = {"pairs": {OURS: Cell((1.1, 1.2, 1.3)), "strace": Cell((62.1, 61.9))}}
    shown = tables.overview(Results(conditions={}, table=table), KIND_TEXTS)
    assert shown.splitlines() == [
        "| times slower | mmap & munmap |",
        "| --- | --- |",
        f"| {OURS} | 1.20 |",
        "| strace | 62 |",
    ]


@given(results_strategy)
def test_chart_is_svg_with_a_bar_for_each_tool_measured(results: Results) -> None:
    drawing = ET.fromstring(chart.render(results, KIND_TEXTS, OURS))
    bars = list(drawing.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    measured = [cell for cells in results.table.values() for cell in cells.values() if cell.ratios]
    assert len(bars) == len(measured)
    width = float(drawing.get("viewBox", "").split()[2])
    for bar in bars:
        assert float(bar.get("width", "-1")) > 0
        assert float(bar.get("x", "0")) + float(bar.get("width", "0")) < width


def cell(*values: float) -> Cell:
    return Cell(tuple(values))


def test_regression_is_warned_of() -> None:
    recorded = {"pairs": {FLOOR: cell(1.1), OURS: cell(1.2)}}
    worse = {"pairs": {FLOOR: cell(1.1), OURS: cell(1.35, 1.4, 1.45)}}
    assert list(regressions(recorded, recorded, [OURS], FLOOR)) == []
    (line,) = regressions(recorded, worse, [OURS], FLOOR)
    assert "was 1.20, now 1.40" in line


def test_noise_and_a_costlier_machine_are_no_regression() -> None:
    recorded = {"pairs": {FLOOR: cell(1.1), OURS: cell(1.2)}}
    noisy = {"pairs": {FLOOR: cell(1.1), OURS: cell(1.15, 1.4, 1.5)}}
    costlier = {"pairs": {FLOOR: cell(1.3), OURS: cell(1.4)}}
    assert list(regressions(recorded, noisy, [OURS], FLOOR)) == []
    assert list(regressions(recorded, costlier, [OURS], FLOOR)) == []


def test_what_can_no_longer_be_measured_is_warned_of() -> None:
    recorded = {"pairs": {OURS: cell(1.2)}}
    (line,) = regressions(recorded, {"pairs": {OURS: Cell(failure="refused")}}, [OURS], FLOOR)
    assert "refused" in line


def test_document_keeps_what_is_around_the_tables() -> None:
    document = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    new = tables.replaced(document, "new")
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert tables.replaced(new, "new") == new
    with pytest.raises(ValueError, match="lacks"):
        tables.replaced("nothing", "new")


def test_a_trial_is_written_and_read_beside_what_is_recorded(tmp_path: Path) -> None:
    project = Record.of_the_project()
    before = [path.read_bytes() for path in (project.page, project.readme)]
    trial = Record.of_a_trial(tmp_path / "trial")
    table = {KINDS[0].name: {OURS: Cell((1.25,))}}
    for results in (Results(conditions={"kernel": "x"}), Results(conditions={"kernel": "y"}, table=table)):
        trial.write(results)
        assert trial.read() == results
    assert f"| {OURS} | 1.25 |" in trial.readme.read_text()
    assert "| kernel | y |" in trial.page.read_text()
    assert "1.25" in trial.chart.read_text()
    assert [path.read_bytes() for path in (project.page, project.readme)] == before


def test_what_is_recorded_can_be_read_and_has_its_place() -> None:
    project = Record.of_the_project()
    for page in (project.page, project.readme):
        tables.replaced(page.read_text(), "new")
    if project.results.exists():
        assert set(project.read().table) <= {kind.name for kind in KINDS}


@pytest.mark.usefixtures("misbehaving_tools")
def test_a_tool_that_cannot_run_leaves_the_others_their_figures() -> None:
    kind = KINDS[0]
    printed: list[str] = []
    column = side_by_side.measure(kind, [UNTRACED, ABSENT.name], 2, 0.05, 3600.0, printed.append)
    assert _rounds(printed, UNTRACED) == 2
    assert column.cells[UNTRACED].ratios
    assert column.cells[ABSENT.name] == Cell(failure=f"{ABSENT.command[0]} is not installed")
    assert column.pace is not None
    assert len([line for line in printed if ABSENT.name in line]) == 1


@pytest.mark.usefixtures("misbehaving_tools")
def test_a_tool_that_ends_the_process_is_reported_and_the_next_has_a_new_one() -> None:
    printed: list[str] = []
    column = side_by_side.measure(KINDS[0], [KILLER.name, UNTRACED], 2, 0.05, 3600.0, printed.append)
    assert "ended under it" in column.cells[KILLER.name].failure
    assert _rounds(printed, UNTRACED) == 2
    assert column.cells[UNTRACED].ratios


@pytest.mark.usefixtures("misbehaving_tools")
def test_a_tool_that_holds_the_process_up_is_measured_once() -> None:
    printed: list[str] = []
    column = side_by_side.measure(KINDS[0], [STOPPER.name, UNTRACED], 2, 0.05, 3600.0, printed.append)
    assert column.cells[STOPPER.name].ratios == (NO_PROGRESS,)
    assert _rounds(printed, UNTRACED) == 2
    assert column.cells[UNTRACED].ratios


def test_no_new_round_begins_when_time_is_up() -> None:
    printed: list[str] = []
    side_by_side.measure(KINDS[0], [UNTRACED], 1000, 0.05, 0.0, printed.append)
    assert _rounds(printed, UNTRACED) == 1


def _rounds(printed: list[str], tool: str) -> int:
    """How many there were, noisy or not."""
    return sum(f" round {turn}: {tool}: " in line for turn in range(1, 4) for line in printed)


def test_noisy_rounds_count_only_where_there_are_no_others() -> None:
    tally = Tally()
    assert tally.is_empty
    tally.add_round(Slowdown(1.7, is_similar=False))
    assert tally.cell() == Cell((1.7,), is_noisy=True)
    tally.add_round(Slowdown(1.2, is_similar=True))
    tally.add_round(Slowdown(0.8, is_similar=False))
    assert tally.cell() == Cell((1.2,))
    assert not tally.is_settled


def test_of_what_is_far_slower_one_round_is_enough_whatever_the_noise() -> None:
    tally = Tally()
    tally.add_round(Slowdown(40.0, is_similar=False))
    assert tally.is_settled
    assert tally.cell() == Cell((40.0,))


def test_floor_is_on_the_tracepoints_of_our_programs() -> None:
    source = (ROOT / "bpf" / "ledger.c").read_text()
    found = empty_probes.probes_of(source, {"HAS_SHARED_MEMORY", "EXIT_HAS_MEMORY", "HAS_PREPARE_EXEC"})
    assert {("syscalls", "sys_exit_mmap"), ("syscalls", "sys_enter_munmap"), ("task", "task_newtask")} <= {
        *found
    }
    assert len(found) == len({*found})
    older = empty_probes.probes_of(source, set())
    for probe in (("syscalls", "sys_enter_execve"), ("syscalls", "sys_enter_exit_group")):
        assert probe not in found
        assert probe in older
    assert ("sched", "sched_prepare_exec") in {*found} - {*older}


def test_import_times_are_those_of_the_modules_themselves() -> None:
    reported = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       100 |        100 |     _io\n"
        "import time:      2000 |       2100 |   io\n"
        "import time:       300 |        300 | zipimport\n"
    )
    found = imports.parse("import x", reported)
    assert math.isclose(found.seconds, 0.0024)
    assert found.costliest[0] == ("io", 0.002)


@pytest.mark.parametrize("is_finished", [True, False])
def test_samples_of_perf_are_counted(tmp_path: Path, is_finished: bool) -> None:
    records = b"".join(
        struct.pack("<IHH", kind, 0, 8 + size) + bytes(size) for kind, size in ((1, 32), (9, 8192), (9, 16))
    )
    file = tmp_path / "perf.data"
    size = len(records) if is_finished else 0
    file.write_bytes(struct.pack("<40xQQ", 104, size) + bytes(48) + records)
    assert count_samples(file) == 2
    file.write_bytes(b"PERFILE2")
    assert count_samples(file) == 0


def test_a_part_that_was_measured_on_another_machine_says_so() -> None:
    here = {"kernel": "Linux 6.18", "CPUs": "2, AMD EPYC"}
    assert elsewhere({}, here) == elsewhere(here, here) == ""
    assert elsewhere({**here, "rounds": "9"}, here) == ""
    for other in ("kernel", "CPUs"):
        assert elsewhere({**here, other: "x"}, here) == "; on another machine: 2, AMD EPYC, Linux 6.18"
