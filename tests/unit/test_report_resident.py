# SPDX-License-Identifier: Apache-2.0
"""``growth --rss`` as text, JSON and folded stacks: sums stay, and hostile names do no harm."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from test_growth import AFTER, BEFORE, CLOCK, SUMMARY, stacks, text_of_targets

from ebpftrace.model import Frame, Stack
from ebpftrace.report import growth, growth_json, resident
from ebpftrace.size_changes.model import Step
from ebpftrace.size_changes.resident import Extent, Place, ResidentSummary, RssCause, Touch, attribute

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "ebpftrace/report/schema/growth-1.json").read_text())
PAGE, HUGE = 4096, 2 << 20
BASE = 0x7F0000000000
FILL = Stack(
    (Frame("fill", "cache.c", 7, "/opt/server", 0x100), Frame("main", "cache.c", 9, "/opt/server", 0x200))
)


def attributed(
    touches: list[Touch], places: dict[Hashable, Place], *, rss: int = 1600, kind: str = "heap", lost: int = 0
) -> ResidentSummary:
    touched: Counter[Hashable] = Counter()
    for touch in touches:
        touched[touch.place] += touch.faults
    after = [Extent(BASE, BASE + 4000 * PAGE, rss * PAGE, 0, kind)]
    residence = attribute([], after, touches, touched, (0, 3000), PAGE, HUGE, 16)
    return ResidentSummary(residence, places, 16, len(touches), lost)


def filled(times: range) -> ResidentSummary:
    touches = [Touch(BASE + 16 * number * PAGE, at, 16, "fill") for number, at in enumerate(times)]
    return attributed(touches, {"fill": Place("worker", FILL)})


shown_places = st.dictionaries(
    st.integers(0, 5), st.builds(Place, text_of_targets, stacks), min_size=6, max_size=6
).map(lambda places: dict(enumerate(places.values())))
summaries = st.builds(
    attributed,
    st.lists(
        st.builds(
            Touch,
            st.integers(0, 3999).map(lambda page: BASE + page * PAGE),
            st.integers(0, 3000),
            st.integers(1, 50),
            st.integers(0, 5),
            st.booleans(),
        ),
        max_size=30,
    ),
    shown_places,
    rss=st.integers(0, 4000),
    kind=text_of_targets,
    lost=st.integers(0, 3),
)


def is_plain(page: str, width: int) -> bool:
    return all(
        line == line.rstrip()
        and cell_len(line) <= width
        and not any(unicodedata.category(character).startswith("C") for character in line)
        for line in page.split("\n")
    )


@settings(max_examples=40, deadline=None)
@given(summaries, st.sampled_from([60, 80, 100]))
def test_hostile_names_keep_to_the_page_and_the_contract(summary: ResidentSummary, width: int) -> None:
    whole = replace(SUMMARY, resident=summary)
    assert is_plain(growth.summary(whole, curve=False, width=width), width)
    line = growth_json.summary(whole)
    assert line.isascii()
    document = json.loads(line)
    jsonschema.validate(document, SCHEMA)
    listed = document["resident"]
    parts = sum(place["bytes"] for place in listed["places"])
    assert parts + listed["no_place"] == listed["gained"]
    assert listed["gained"] - listed["given_back"] == listed["rss_end"] - listed["rss_start"]
    lines = resident.folded([whole]).splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == listed["gained"]
    assert all(line.count(" ") == 1 for line in lines)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(RssCause, st.builds(Place, text_of_targets, stacks), st.integers(0, 2**40)), max_size=6
    )
)
def test_an_interval_has_a_line_for_each_place(causes: list[RssCause]) -> None:
    step = Step(BEFORE, AFTER, (), BEFORE, tuple(causes))
    for width in (60, 100):
        assert is_plain(growth.step(step, CLOCK, width=width), width)
    document = json.loads(growth_json.step(step, CLOCK, 7))
    jsonschema.validate(document, SCHEMA)
    assert [cause["bytes"] for cause in document["rss_causes"]] == [cause.size for cause in causes]


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (range(0, 3000, 30), "filled memory all along and keeps it: a leak, or a cache that is not full yet"),
        (range(100), "filled memory early and keeps it: a cache or a pool that is full, rather than a leak"),
    ],
)
def test_leaked_or_only_held(times: range, said: str) -> None:
    page = " ".join(growth.summary(replace(SUMMARY, resident=filled(times)), curve=False).split())
    assert f"fill {said}" in page
    assert "RSS by smaps: 6400 KiB became resident, 100 % of it in places that are known" in page
    assert "100 % all along" in page or "100 % early" in page
    assert "LeakSanitizer" in page


def test_what_has_no_place_says_why() -> None:
    nothing = attributed([], {}, rss=1600)
    page = " ".join(growth.summary(replace(SUMMARY, resident=nothing), curve=False).split())
    assert "0 % of it in places that are known" in page
    assert "no place: 6400 KiB without page faults that were seen at its address" in page


def test_what_is_too_little_to_be_sampled_is_one_line() -> None:
    little = replace(SUMMARY, resident=attributed([], {}, rss=10))
    page = " ".join(growth.summary(little, curve=False).split())
    assert "became resident, less than one sampled page fault represents (one of" in page
    assert "KIND OF MEMORY" not in page
    assert "no place" not in page


def test_lost_faults_are_shown() -> None:
    summary = attributed([Touch(BASE, 10, 1600, "fill")], {"fill": Place("worker", FILL)}, lost=3)
    assert "LOST     3 sampled page faults" in growth.summary(replace(SUMMARY, resident=summary), curve=False)
    assert "LOST" not in growth.summary(replace(SUMMARY, resident=filled(range(9))), curve=False)


def test_a_flame_graph_has_every_byte_that_became_resident() -> None:
    whole = replace(SUMMARY, resident=filled(range(90)))
    page = resident.flamegraph([whole])
    (line,) = [line for line in page.splitlines() if line.startswith("const report = ")]
    data = json.loads(line[len("const report = ") : -1])
    assert sum(stack["weight"] for stack in data["stacks"]) == whole.resident.residence.gained  # type: ignore[union-attr]
    names = [box[0] for box in data["stacks"][0]["boxes"]]
    assert names == ["app_server", "worker", "[incomplete]", "main", "fill"]


def test_folded_stacks_begin_with_process_and_thread() -> None:
    lines = resident.folded([replace(SUMMARY, resident=filled(range(100)))]).splitlines()
    assert lines == ["app_server;worker;[incomplete];main;fill 6553600"]
