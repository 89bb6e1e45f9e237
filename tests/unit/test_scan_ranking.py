# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Optional

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from ebpftrace.classify import attention, rank_candidates
from ebpftrace.classify.host_scan import HostScan
from ebpftrace.classify.meminfo import RULES
from ebpftrace.classify.model import Totals
from ebpftrace.classify.ranking import MappingStats, ProcessStats, Rank, excess, expected_gain, shape_of
from ebpftrace.model import ReadState, Vma
from ebpftrace.procfs.hostmemory import parse_meminfo
from ebpftrace.report import scan, scan_json

SCHEMA = json.loads((resources.files("ebpftrace.report") / "schema" / "scan-1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
STACK = 10244 * KIB

CALM = ProcessStats(
    1, "calm", 4, 300 * MIB, 100 * MIB, 0, MappingStats(100, 150 * MIB, Totals(3, 3 * STACK), 0)
)
LEAKING = replace(
    CALM,
    pid=2,
    comm="app_server",
    virt=285 * GIB,
    rss=4 * GIB,
    shape=MappingStats(54_000, 280 * GIB, Totals(27_003, 27_003 * STACK), 2),
    thread_lists=ReadState.READ,
    exited=27_000,
    exited_size=27_000 * STACK,
    leaked=27_000,
    leaked_size=27_000 * STACK,
)
WAITING = replace(LEAKING, leaked=0, leaked_size=0)
UNSEARCHED = replace(WAITING, undecided=27_000, undecided_size=27_000 * STACK)
GROWING = replace(CALM, pid=3, virt_growth=20 * MIB, rss_growth=0, thread_growth=2)
SURPLUS = replace(CALM, pid=4, shape=MappingStats(100, 150 * MIB, Totals(103, 103 * STACK), 0))
UNTOUCHED = replace(CALM, pid=5, shape=MappingStats(100, 9 * GIB, Totals(), 0))
ARENAS = replace(CALM, pid=6, arenas=20)


def test_proof_before_growth_before_shape() -> None:
    ranked = rank_candidates([CALM, ARENAS, UNTOUCHED, SURPLUS, GROWING, LEAKING], 65_530)
    assert [one.figures.pid for one in ranked] == [2, 3, 4, 5, 6, 1]
    tops = [one.reasons[0].rank for one in ranked[:5]]
    assert tops == [Rank.NEVER_JOINED, Rank.GROWTH, Rank.SURPLUS, Rank.UNTOUCHED, Rank.ARENAS]
    assert ranked[-1].reasons == ()


def test_more_bytes_rank_first_and_virt_where_nothing_speaks_against() -> None:
    small = replace(LEAKING, pid=7, virt=900 * GIB, leaked=1, leaked_size=STACK)
    quiet = replace(CALM, pid=8, virt=GIB)
    assert [one.figures.pid for one in rank_candidates([CALM, small, quiet, LEAKING], None)] == [2, 7, 8, 1]


def test_the_process_with_most_exited_threads_ranks_first_however_small_their_stacks() -> None:
    small = replace(LEAKING, pid=7, comm="small", leaked=20_000, leaked_size=20_000 * 68 * KIB)
    large = replace(LEAKING, pid=8, comm="large", leaked=166, leaked_size=166 * STACK)
    few = replace(LEAKING, pid=9, comm="few", leaked=2, leaked_size=2 * GIB)
    ranked = rank_candidates([few, large, small], None)
    assert [one.figures.pid for one in ranked] == [7, 8, 9]
    reported = " ".join(scan.render(host_scan([few, large, small]), 10).split())
    assert reported.startswith(
        "LEAK: 20,168 threads exited and were never joined, 4.9 GiB of stacks still mapped, "
    )
    assert "20,000 of them in small (PID 7), the rest in 2 other processes; 3 processes examined" in reported


def test_unstable_or_absent_lists_prove_nothing() -> None:
    for state in (ReadState.UNSTABLE, ReadState.ABSENT, None):
        (one,) = rank_candidates([replace(WAITING, thread_lists=state)], None)
        assert one.reasons[0].rank is Rank.SURPLUS


def test_threads_that_can_be_joined_are_no_leak_and_unsearched_ones_are_undecided() -> None:
    (waiting,) = rank_candidates([WAITING], None)
    assert waiting.reasons[0] == (Rank.NOT_JOINED, 27_000 * STACK, 27_000)
    page = " ".join(scan.render(host_scan([WAITING]), 10).split())
    assert page.startswith("No leak proved in 1 process; ")
    assert "27,000 exited threads not joined so far" in page
    (unknown,) = rank_candidates([UNSEARCHED], None)
    assert unknown.reasons[0] == (Rank.UNDECIDED, 27_000 * STACK, 27_000)
    assert "cannot tell whether 27,000 exited threads leaked" in scan.render(host_scan([UNSEARCHED]), 10, 200)
    mixed = replace(WAITING, leaked=5, leaked_size=5 * STACK)
    ranks = [(reason.rank, reason.number) for reason in rank_candidates([mixed], None)[0].reasons[:2]]
    assert ranks == [(Rank.NEVER_JOINED, 5), (Rank.NOT_JOINED, 26_995)]


def test_lists_have_the_last_word_on_stacks() -> None:
    (one,) = rank_candidates([replace(SURPLUS, thread_lists=ReadState.READ)], None)
    assert one.reasons == ()


def test_near_the_limit_of_areas() -> None:
    crowded = replace(CALM, shape=MappingStats(40_000, 150 * MIB, Totals(), 0))
    assert [reason.rank for reason in rank_candidates([crowded], 65_530)[0].reasons] == [Rank.MANY_AREAS]
    assert rank_candidates([crowded], None)[0].reasons == ()


def test_lists_are_worth_reading_where_stacks_outnumber_threads() -> None:
    assert expected_gain(CALM) == 0
    assert excess(SURPLUS) == (100, 100 * STACK)
    assert expected_gain(SURPLUS) == 100 * STACK
    assert expected_gain(replace(SURPLUS, threads=104)) == 0
    assert expected_gain(replace(CALM, shape=None)) == 0
    merged = replace(
        CALM, shape=MappingStats(90, 400 * MIB, Totals(), 0)
    )  # guards that are no areas (glibc 2.42)
    assert expected_gain(merged) > 0


def test_shape_counts_guarded_memory_of_the_process_alone() -> None:
    def vma(start: int, size: int, perms: str, inode: int = 0) -> Vma:
        return Vma(
            start, start + size, perms, 0, "0:0", inode, "/x" if inode else "", None, None, perms[0] == "-"
        )

    shape = shape_of(
        [
            vma(0x1000, 0x1000, "---p"),
            vma(0x2000, 0x3000, "rw-p"),
            vma(0x8000, 0x1000, "---p", 7),
            vma(0x9000, 0x1000, "rw-p", 7),
            vma(0x20000, 0x1000, "---p"),
            vma(0x22000, 0x1000, "rw-p"),
            vma(0x30000, 0x1000, "rw-s", 7),
        ],
        0,
    )
    assert (shape.areas, shape.writable, shape.stacks) == (7, 0x5000, Totals(1, 0x4000))


# --- /proc/meminfo ---------------------------------------------------------------------------------

CALM_HOST = {
    "MemTotal": 64 * GIB, "MemFree": 20 * GIB, "MemAvailable": 40 * GIB, "Buffers": GIB, "Cached": 20 * GIB,
    "SwapCached": 0, "SwapTotal": 4 * GIB, "SwapFree": 4 * GIB, "AnonPages": 18 * GIB, "Shmem": GIB,
    "Slab": 3 * GIB, "SReclaimable": 2 * GIB, "SUnreclaim": GIB, "KernelStack": 30 * MIB,
    "PageTables": 200 * MIB,
    "CommitLimit": 36 * GIB, "Committed_AS": 30 * GIB, "VmallocUsed": 200 * MIB, "Percpu": 50 * MIB,
    "Dirty": MIB, "Writeback": 0, "Mlocked": 0, "HardwareCorrupted": 0,
    "HugePages_Total": 0, "HugePages_Free": 0, "HugePages_Rsvd": 0, "Hugepagesize": 2 * MIB, "Hugetlb": 0,
}  # fmt: skip


def test_calm_host_needs_no_attention() -> None:
    judged = attention(CALM_HOST)
    assert judged.attention == ()
    assert judged.judged == len(RULES)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("MemAvailable", {"MemAvailable": 5 * GIB}),
        ("SwapUsed", {"SwapFree": GIB}),
        ("Committed_AS", {"Committed_AS": 300 * GIB}),
        ("SUnreclaim", {"SUnreclaim": 9 * GIB}),
        ("SReclaimable", {"SReclaimable": 30 * GIB}),
        ("Shmem", {"Shmem": 10 * GIB}),
        ("PageTables", {"PageTables": 3 * GIB}),
        ("KernelStack", {"KernelStack": GIB}),
        ("VmallocUsed", {"VmallocUsed": 6 * GIB}),
        ("Percpu", {"Percpu": 2 * GIB}),
        ("HugePagesUnused", {"HugePages_Total": 4096, "HugePages_Free": 4096, "Hugetlb": 8 * GIB}),
        ("Mlocked", {"Mlocked": 20 * GIB}),
        ("DirtyWriteback", {"Dirty": 5 * GIB, "Writeback": 3 * GIB}),
        ("HardwareCorrupted", {"HardwareCorrupted": 4 * KIB}),
        ("Unaccounted", {"AnonPages": 2 * GIB}),
    ],
)
def test_each_threshold_alone(name: str, spoil: dict[str, int]) -> None:
    reported = attention({**CALM_HOST, **spoil}).attention
    assert [one.name for one in reported] == [name]
    assert reported[0].meaning
    assert reported[0].next_step


def test_host_without_a_line_is_not_judged_by_it() -> None:
    assert attention({}).judged == 0
    without_swap = attention({**CALM_HOST, "SwapTotal": 0, "SwapFree": 0})
    assert without_swap.judged == len(RULES) - 1


@given(st.binary(max_size=300))
def test_any_text_of_meminfo_is_parsed(text: bytes) -> None:
    assert all(value >= 0 for value in parse_meminfo(text).values())


def test_meminfo_units() -> None:
    assert parse_meminfo(b"MemTotal:  12 kB\nHugePages_Free:  3\nodd\n") == {
        "MemTotal": 12 * KIB,
        "HugePages_Free": 3,
    }


# --- reports ---------------------------------------------------------------------------------------

hostile = st.binary(max_size=15).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
amounts = st.integers(0, 1 << 47)
shapes = st.builds(
    MappingStats,
    areas=st.integers(1, 70_000),
    writable=amounts,
    stacks=st.builds(Totals, number=st.integers(0, 30_000), size=amounts),
    heaps=st.integers(0, 200),
)
figures = st.builds(
    ProcessStats,
    pid=st.integers(1, 1 << 22),
    comm=hostile,
    threads=st.integers(1, 30_000),
    virt=amounts,
    rss=amounts,
    started=st.just(0),
    shape=st.none() | shapes,
    thread_lists=st.none() | st.sampled_from(ReadState),
    exited=st.integers(0, 30_000),
    exited_size=amounts,
    arenas=st.none() | st.integers(0, 300),
    virt_growth=st.none() | st.integers(-(1 << 47), 1 << 47),
    rss_growth=st.none() | st.integers(-(1 << 40), 1 << 40),
    thread_growth=st.none() | st.integers(-9, 9),
)


def host_scan(processes: list[ProcessStats], seconds: Optional[float] = None, **facts: object) -> HostScan:
    plain = HostScan(
        taken_at=1_700_000_000_000_000_000,
        seconds=seconds,
        candidates=rank_candidates(processes, 65_530),
        kernel_threads=3,
        zombies=0,
        vanished=0,
        unreadable=0,
        not_looked=0,
        lists_unread=0,
        unsearched=0,
        memory=attention(CALM_HOST),
        took=0.1,
    )
    return replace(plain, **facts)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(st.lists(figures, max_size=12), st.none() | st.just(60.0), st.integers(1, 5), st.integers(60, 100))
def test_text_and_json_are_fit_for_any_names_and_width(
    processes: list[ProcessStats], seconds: Optional[float], top: int, width: int
) -> None:
    host = attention({**CALM_HOST, "Shmem": 60 * GIB, "Committed_AS": 1 << 50})
    found = host_scan(
        processes, seconds, memory=host, unreadable=4, lists_unread=1, not_looked=2, unsearched=1
    )
    page = scan.render(found, top, width)
    for line in page.splitlines():
        assert cell_len(line) <= width
        assert line == line.rstrip()
    assert all(character.isprintable() for character in page.replace("\n", ""))
    text = scan_json.render(found, top)
    text.encode("ascii")
    loaded = json.loads(text)
    json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    VALIDATOR.validate(loaded)
    assert len(loaded["processes"]) == min(top, len(processes))
    assert loaded["counts"]["processes"] == len(processes)


def test_first_line_names_the_leak() -> None:
    first = " ".join(scan.render(host_scan([CALM, LEAKING]), 10).split())
    reported = "LEAK: 27,000 threads exited and were never joined, 263.8 GiB of stacks still mapped"
    assert first.startswith(reported)
    assert "app_server (PID 2)" in " ".join(scan.render(host_scan([CALM, LEAKING]), 10).split())
    assert "ebpftrace mmap-leaks -p 2" in scan.render(host_scan([CALM, LEAKING]), 10)


def test_nothing_is_called_calm_that_was_not_seen() -> None:
    assert scan.render(host_scan([CALM]), 10).startswith("Nothing suspicious in 1 process\n")
    assert "were not seen" in scan.render(host_scan([CALM], unreadable=1), 10).splitlines()[0]


@pytest.mark.parametrize(("euid", "advised"), [(0, False), (1000, True)])
def test_only_other_users_are_advised_to_become_root(
    euid: int, advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: euid)
    text = scan.render(host_scan([CALM], unreadable=1), 10)
    assert "the mappings of 1 process may not be read" in text
    assert ("run as root" in text) == advised


def test_schema_can_refuse() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    good = scan_json.document(host_scan([LEAKING]), 5)
    VALIDATOR.validate(good)
    assert good["processes"][0]["exited_threads"] == 27_000
    assert not VALIDATOR.is_valid({**good, "schema": "ebpftrace.scan/2"})
    assert not VALIDATOR.is_valid({**good, "processes": [{**good["processes"][0], "books": "maybe"}]})
