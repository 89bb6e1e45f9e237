# SPDX-License-Identifier: Apache-2.0
"""What smaps gained, split by page faults: it adds up, and no place gets more than there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.size_changes.resident import (
    Extent,
    Pattern,
    Residence,
    Touch,
    Why,
    attribute,
    regions,
    shares,
    split,
)

PAGE, HUGE = 4096, 2 << 20
BASE = 0x7F0000000000
WINDOW = (0, 3_000)


@st.composite
def readings(draw: st.DrawFn) -> list[Extent]:
    """Ascending, disjoint mappings in a small space, so that those of two readings overlap."""
    cuts = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=12)))
    found = []
    for start, end in zip(cuts, cuts[1:]):
        if draw(st.booleans()):
            rss = draw(st.integers(0, end - start)) * PAGE
            swap = draw(st.integers(0, 3)) * PAGE
            kind = draw(st.sampled_from(["heap", "anonymous", "file"]))
            found.append(Extent(BASE + start * PAGE, BASE + end * PAGE, rss, swap, kind, kind == "file"))
    return found


touch_lists = st.lists(
    st.builds(
        Touch,
        address=st.integers(0, 62 * PAGE).map(lambda offset: BASE + offset),
        at=st.integers(-10, 4000),
        faults=st.integers(1, 20),
        place=st.sampled_from("abcd"),
        is_huge=st.booleans(),
    ),
    max_size=30,
)


def attributed(
    before: list[Extent], after: list[Extent], touches: list[Touch], gone: dict[str, int] | None = None
) -> Residence:
    touched: Counter[Hashable] = Counter()
    for touch in touches:
        touched[touch.place] += touch.faults
    touched.update(gone or {})
    return attribute(before, after, touches, touched, WINDOW, PAGE, HUGE, 16)


@given(readings(), readings())
def test_regions_keep_the_sums_and_are_disjoint(before: list[Extent], after: list[Extent]) -> None:
    found = regions(before, after)
    assert sum(region.rss_before for region in found) == sum(extent.rss for extent in before)
    assert sum(region.rss_after for region in found) == sum(extent.rss for extent in after)
    assert sum(region.swap_before for region in found) == sum(extent.swap for extent in before)
    assert sum(region.swap_after for region in found) == sum(extent.swap for extent in after)
    assert all(one.end <= other.start for one, other in zip(found, found[1:]))
    for extent in (*before, *after):
        assert sum(region.start <= extent.start and extent.end <= region.end for region in found) == 1


@given(readings(), readings(), touch_lists)
def test_parts_and_rest_add_up_to_what_smaps_gained(
    before: list[Extent], after: list[Extent], touches: list[Touch]
) -> None:
    reported = attributed(before, after, touches)
    change = sum(extent.rss for extent in after) - sum(extent.rss for extent in before)
    assert reported.rss_after - reported.rss_before == change
    assert reported.gained - reported.given_back == change
    assert reported.unattributed >= 0
    assert all(place.resident >= 0 for place in reported.places)
    for kind in reported.kinds:
        parts = sum(part for place in reported.places for name, part in place.by_kind if name == kind.kind)
        assert parts == kind.attributed <= kind.gained
        assert (kind.why is None) == (kind.attributed == kind.gained)
        assert kind.given_back >= 0
    for place in reported.places:
        assert place.resident == sum(part for _, part in place.by_kind)
        assert sum(place.thirds) == place.kept <= place.touched
    grown = [region for region in regions(before, after) if region.change > 0]
    for place in reported.places:
        if place.resident:
            assert any(
                region.start <= touch.address < region.end
                for region in grown
                for touch in touches
                if touch.place == place.place
            )


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=9).filter(any))
def test_split_adds_up_and_is_fair(total: int, weights: list[int]) -> None:
    parts = split(total, weights)
    assert sum(parts) == total
    assert all(
        abs(part * sum(weights) - total * weight) <= sum(weights) for part, weight in zip(parts, weights)
    )


def extent(pages: int, rss: int, kind: str = "heap", start: int = BASE, is_file: bool = False) -> Extent:
    return Extent(start, start + pages * PAGE, rss * PAGE, 0, kind, is_file)


def touches_of(place: str, pages: range, each: int = 16, at: int = 1000) -> list[Touch]:
    return [Touch(BASE + page * PAGE, at, each, place) for page in pages]


def test_a_heap_is_split_by_the_shares_of_the_faults() -> None:
    touches = [*touches_of("much", range(0, 1200, 16)), *touches_of("little", range(1200, 1600, 16))]
    reported = attributed([extent(10, 0)], [extent(1600, 1600)], touches)
    assert [(place.place, place.resident // PAGE) for place in reported.places] == [
        ("much", 1200),
        ("little", 400),
    ]
    assert reported.unattributed == 0


def test_more_faults_than_pages_give_no_more_than_smaps_gained() -> None:
    reported = attributed([extent(10, 0)], [extent(1600, 100)], touches_of("all", range(0, 1600, 16)))
    assert [place.resident for place in reported.places] == [100 * PAGE]


def test_what_had_no_fault_is_not_attributed() -> None:
    reported = attributed([], [extent(10_000, 10_000)], touches_of("some", range(0, 1600, 16)))
    (kind,) = reported.kinds
    assert kind.why is Why.NO_FAULT
    assert kind.attributed == 1600 * PAGE
    assert reported.unattributed == 8400 * PAGE


def test_too_little_for_one_of_so_many_is_told_apart_from_what_had_no_fault() -> None:
    few, many = (attributed([], [extent(1000, rss)], []).kinds[0] for rss in (40, 400))
    assert (few.why, few.attributed) == (Why.FEW, 0)
    assert (many.why, many.attributed) == (Why.NO_FAULT, 0)


@given(st.integers(-100, 1000), touch_lists)
def test_shares_of_an_interval_are_no_more_than_what_was_gained(pages: int, touches: list[Touch]) -> None:
    attributed = shares(pages * PAGE, touches, PAGE, HUGE)
    assert sum(part for _, part in attributed) <= max(pages * PAGE, 0)
    assert all(part > 0 for _, part in attributed)


def test_a_file_may_have_sixteen_pages_a_fault() -> None:
    file = extent(16_000, 16_000, "file", is_file=True)
    reported = attributed([], [file], touches_of("reader", range(0, 16_000, 256)))
    assert reported.unattributed == 0


def test_a_mapping_that_shrank_gives_no_part_to_those_who_touched_it() -> None:
    other = BASE + (1 << 30)
    before = [extent(100, 90), extent(100, 0, start=other)]
    after = [extent(100, 50), extent(100, 30, start=other)]
    touches = [*touches_of("shrank", range(50)), Touch(other, 10, 32, "grew")]
    reported = attributed(before, after, touches)
    assert {place.place: place.resident for place in reported.places} == {"shrank": 0, "grew": 30 * PAGE}
    assert (reported.gained, reported.given_back) == (30 * PAGE, 40 * PAGE)


def test_a_huge_page_of_one_fault_counts_whole() -> None:
    pages = HUGE // PAGE
    whole = [Touch(BASE, 10, 1, "huge", True), *touches_of("small", range(pages, 2 * pages), each=1)]
    reported = attributed([], [extent(2 * pages, 2 * pages)], whole)
    assert {place.place: place.resident for place in reported.places} == {"huge": HUGE, "small": HUGE}


def test_a_huge_page_that_was_made_of_small_ones_counts_by_them() -> None:
    pages = HUGE // PAGE
    small = [touch._replace(is_huge=True) for touch in touches_of("made", range(pages), each=1)]
    reported = attributed(
        [], [extent(2 * pages, 2 * pages)], [*small, *touches_of("s", range(pages, 2 * pages), 1)]
    )
    assert {place.place: place.resident for place in reported.places} == {"made": HUGE, "s": HUGE}


@pytest.mark.parametrize(
    ("times", "pattern"),
    [
        ([100, 1100, 2100], Pattern.STEADY),
        ([100, 1100, 1200], Pattern.EARLY),
        ([100, 100, 2900], Pattern.VARYING),
    ],
)
def test_when_it_was_touched(times: list[int], pattern: Pattern) -> None:
    touches = [touch for at in times for touch in touches_of("place", range(at, at + 10), 1, at)]
    (place,) = attributed([], [extent(4000, 30)], touches).places
    assert place.pattern is pattern


def test_few_faults_say_nothing_of_when() -> None:
    (place,) = attributed([], [extent(4000, 30)], touches_of("place", range(3))).places
    assert place.pattern is Pattern.UNKNOWN


def test_what_was_touched_and_is_gone_stays_known() -> None:
    reported = attributed([], [extent(100, 16)], touches_of("kept", range(1)), gone={"pool": 500})
    by_place = {place.place: place for place in reported.places}
    assert by_place["pool"].touched == 500 * PAGE
    assert by_place["pool"].kept == by_place["pool"].resident == 0
