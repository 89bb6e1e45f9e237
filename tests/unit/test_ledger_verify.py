# SPDX-License-Identifier: Apache-2.0
"""The ledger's special cases, and its answer compared with /proc."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.addresses import RangeSet
from ebpftrace.callflags import MAP_FIXED, MREMAP_FIXED
from ebpftrace.ledger.effects import effects
from ebpftrace.ledger.events import Remapped, Unmapped
from ebpftrace.ledger.replay import Ledger
from ebpftrace.ledger.verify import as_shown, unexplained, unsized_starts, verify, without_ended
from ebpftrace.model import FailedCall, Interval, Mapping, Row, ThreadId, Vma
from ebpftrace.vmas import Vmas

THREAD = ThreadId(11, 1)


def vma(start: int, end: int, path: str = "", perms: str = "rw-p") -> Vma:
    return Vma(start, end, perms, 0, "00:00", 0, path)


def row(start: int, end: int, since: int) -> Row:
    return Row(start, end - start, since, since, THREAD, 3, 0x22, 5)


@pytest.mark.parametrize(
    "name", ["[heap]", "[stack]", "[stack:12]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]"]
)
def test_special_areas_are_no_mappings_and_need_no_explanation(name: str) -> None:
    areas = [vma(10, 20, name), vma(20, 30, "[anon:arena]")]
    mappings = Ledger(areas).outstanding([])
    assert [mapping.pieces for mapping in mappings] == [(Interval(20, 30),)]
    assert verify([], Vmas(areas), 0).unexplained_bytes == 10


def test_guard_and_stack_of_the_baseline_stay_two_mappings() -> None:
    guard, stack = Ledger([vma(10, 11, perms="---p"), vma(11, 20)]).outstanding([])
    assert (guard.pieces, stack.pieces) == ((Interval(10, 11),), (Interval(11, 20),))
    assert stack.before_attach
    assert (stack.mapper, stack.prot, stack.flags, stack.since) == (None, None, None, None)


def test_a_part_that_moved_is_a_mapping_of_its_own_with_the_same_maker() -> None:
    ledger = Ledger([])
    ledger.apply(Remapped(Interval(14, 16), Interval(40, 44), 8, 9))
    rest, moved = ledger.outstanding([row(10, 20, 5)])
    assert rest.pieces == (Interval(10, 14), Interval(16, 20))
    assert moved.pieces == (Interval(40, 44),)
    assert (moved.mapper, moved.made_at, moved.since, moved.site) == (THREAD, 5, 9, 5)


def test_what_moved_from_nowhere_known_is_there_and_nobodys() -> None:
    ledger = Ledger([vma(10, 20, "[vdso]")])
    ledger.apply(Remapped(Interval(10, 20), Interval(40, 50), 8, 9))
    [moved] = ledger.outstanding([row(38, 42, 3)])[1:]
    assert (moved.pieces, moved.mapper, moved.made_at) == ((Interval(40, 50),), None, None)


def test_a_late_hole_spares_what_is_newer() -> None:
    ledger = Ledger([vma(0, 10)])
    rows = [row(4, 6, 7)]
    ledger.compact(rows, 8)
    ledger.apply(Unmapped(Interval(2, 8), 6))
    assert [mapping.pieces for mapping in ledger.outstanding(rows)] == [
        (Interval(0, 2), Interval(8, 10)),
        (Interval(4, 6),),
    ]


def test_pending_is_what_compact_folds() -> None:
    ledger = Ledger([])
    for at in (3, 5, 9):
        ledger.apply(Unmapped(Interval(0, 4), at))
    assert ledger.pending == 3
    ledger.compact([], 5)
    assert ledger.pending == 1


def test_verify_drops_phantoms_and_counts_both_sides() -> None:
    mapping = Mapping((Interval(10, 20), Interval(30, 40)), 5, THREAD, 3, 0x22, 5, 5)
    phantom = Mapping((Interval(60, 64),), 5, THREAD, 3, 0x22, 5, 5)
    areas = [vma(8, 12, perms="---p"), vma(12, 18), vma(35, 36)]
    verified = verify([mapping, phantom], Vmas(areas), 100)
    assert [left.pieces for left in verified.mappings] == [(Interval(10, 18), Interval(35, 36))]
    assert (verified.unexplained_bytes, verified.phantom_bytes) == (2, 2 + 9 + 4)


owned = st.lists(st.sampled_from([None, 0, 1, 2, 3]), max_size=16)
"""Page by page: which of four mappings holds it; 3 came after the reading."""
seen = st.lists(st.sampled_from(["", "a", "b", "[heap]"]), min_size=16, max_size=16)
"""Page by page: in an area of which name; none where it is empty."""


@given(owned, seen)
def test_verify_equals_the_page_model(holders: list[int | None], names: list[str]) -> None:
    pages = {which: [page for page, holder in enumerate(holders) if holder == which] for which in range(4)}
    mappings = [
        Mapping(tuple(joined(held)), 5, THREAD, 3, 0x22, 5, 101 if which == 3 else 5)
        for which, held in pages.items()
        if held
    ]
    areas = [vma(page, page + 1, name) for page, name in enumerate(names) if name]
    verified = verify(mappings, Vmas(areas), 100)
    kept = {which: [page for page in held if names[page] or which == 3] for which, held in pages.items()}
    assert [mapping.pieces for mapping in verified.mappings] == [
        tuple(joined(held)) for held in kept.values() if held
    ]
    explained = {page for held in kept.values() for page in held}
    assert verified.unexplained_bytes == sum(
        name in ("a", "b") and page not in explained for page, name in enumerate(names)
    )
    assert verified.phantom_bytes == sum(len(pages[which]) - len(kept[which]) for which in pages)


def joined(pages: list[int]) -> list[Interval]:
    starts = [page for page in pages if page - 1 not in pages]
    ends = [page + 1 for page in pages if page + 1 not in pages]
    return [Interval(start, end) for start, end in zip(starts, ends)]


def test_verify_keeps_what_came_after_the_reading() -> None:
    late = Mapping((Interval(10, 20),), 5, THREAD, 3, 0x22, 5, 101)
    assert verify([late], Vmas([vma(12, 14)]), 100) == ([late], 0, 0)


def test_a_row_that_a_failed_munmap_restores_does_not_hide_newer_ones() -> None:
    ledger = Ledger([])
    restored, newer = row(0, 10, 5), row(4, 6, 7)
    ledger.compact([newer], 8)
    assert [mapping.pieces for mapping in ledger.outstanding([restored, newer])] == [
        (Interval(0, 4), Interval(6, 10)),
        (Interval(4, 6),),
    ]


cells = st.integers(0, 24)
spans = st.tuples(cells, cells).map(lambda ends: Interval(min(ends), max(ends)))


@given(st.sampled_from(["mmap", "mremap"]), spans, spans, st.sets(cells), st.lists(spans, max_size=3))
def test_what_a_failed_call_did_is_what_is_not_mapped_any_more(
    kind: str, old: Interval, new: Interval, mapped: set[int], later: list[Interval]
) -> None:
    call = FailedCall(
        kind, 22, old.start, old.size, new, MAP_FIXED if kind == "mmap" else MREMAP_FIXED, 1, 100
    )
    known = {cell for span in later for cell in range(*span)}
    covered = RangeSet((cell, cell + 1) for cell in sorted(mapped))
    found = effects([call], covered, [*((101, span) for span in later), (99, Interval(0, 25))])

    gone = {cell for event in found if isinstance(event, Unmapped) for cell in range(*event.interval)}
    replaced = set(range(*old)) | (set(range(*new)) if kind == "mremap" and old.size else set())
    if kind == "mremap" and not old.size:
        replaced = set()
    assert gone == replaced - mapped - known
    moves = [event for event in found if isinstance(event, Remapped)]
    moved = {cell + move.new.start - move.old.start for move in moves for cell in range(*move.old)}
    assert moved == (
        {cell - old.start + new.start for cell in set(range(*old)) - mapped - known}
        & set(range(*new))
        & mapped
        if kind == "mremap"
        else set()
    )
    assert all(move.may_be_empty for move in moves)


def test_nothing_comes_from_where_nothing_was() -> None:
    ledger = Ledger([vma(40, 50)])
    ledger.apply(Remapped(Interval(10, 20), Interval(40, 50), 8, 9, may_be_empty=True))
    [kept] = ledger.outstanding([])
    assert kept.before_attach


def test_a_mapping_is_as_large_as_the_kernel_made_it_and_has_its_file() -> None:
    huge = vma(0x200000, 0x600000, "/memfd:huge (deleted)")._replace(page=0x200000)
    areas = Vmas([vma(0x1000, 0x9000), huge, vma(0x600000, 0x601000)])
    down = Mapping((Interval(0x5000, 0x9000),), 5, THREAD, 3, 0x122, 5, 5)
    first = Mapping((Interval(0x200000, 0x201000),), 5, THREAD, 3, 0x1, 5, 5)
    second = Mapping((Interval(0x400000, 0x401000),), 5, THREAD, 3, 0x1, 5, 5)
    plain = Mapping((Interval(0x600000, 0x601000),), 5, THREAD, 3, 0x22, 5, 5)
    gone = Mapping((Interval(0x700000, 0x701000),), 5, THREAD, 3, 0x1, 5, 5)
    shown = as_shown([down, first, second, plain, gone], areas, 0x1000)
    assert [one.pieces[0] for one in shown] == [
        (0x1000, 0x9000),
        (0x200000, 0x400000),
        (0x400000, 0x600000),
        (0x600000, 0x601000),
        (0x700000, 0x701000),
    ]
    assert [one.file for one in shown] == ["", "/memfd:huge (deleted)", "/memfd:huge (deleted)", "", ""]
    assert verify(shown[:4], areas, 9)[1:] == (0, 0)


def test_a_segment_of_the_baseline_that_is_gone_is_ended() -> None:
    before = Vmas(
        [vma(0x1000, 0x3000, "/SYSV1 (deleted)"), vma(0x4000, 0x5000, "/[aio]"), vma(0x6000, 0x7000)]
    )
    segments = unsized_starts(before)
    assert segments == {0x1000, 0x4000}
    stood = Ledger(before).outstanding([])
    now = Vmas([vma(0x1000, 0x2000), vma(0x4000, 0x5000, "/[aio]")])
    left = without_ended(stood, segments, now)
    assert [one.start for one in left] == [0x4000, 0x6000]  # what else is gone has events


def test_what_no_mapping_explains_is_named_by_proc() -> None:
    areas = Vmas([vma(10, 20, "/[aio] (deleted)"), vma(20, 40), vma(50, 60, "[stack]"), vma(70, 71, "/x")])
    mapping = Mapping((Interval(20, 25), Interval(30, 40)), 5, THREAD, 3, 0x22, 5, 5)
    assert unexplained([mapping], areas) == [("/[aio] (deleted)", 10), ("[anon]", 5), ("/x", 1)]
