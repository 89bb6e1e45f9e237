# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import jsonschema
import reports
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from ebpftrace.classify import compare
from ebpftrace.classify.maps_report import MapsReport
from ebpftrace.classify.model import Area, Kind
from ebpftrace.classify.repeated import MANY
from ebpftrace.glibc import Cores
from ebpftrace.model import Certainty, Frame, ReadState, TargetInfo, ThreadLists, Verdict
from ebpftrace.report import maps, maps_json

SCHEMA = json.loads((resources.files("ebpftrace.report") / "schema" / "maps-1.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(
    SCHEMA, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
)
MIB = 1 << 20

# What a target can put into a name: anything but NUL, decoded with surrogateescape.
hostile = st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def maps_report(areas: list[Area], name: str = "app_server", **facts: object) -> MapsReport:
    plain = MapsReport(
        target=TargetInfo(31108, name, f"/opt/{name}", 25),
        taken_at=1_700_000_000_123_456_789,
        virt=sum(area.size for area in areas),
        rss=4096,
        vma_count=27_000,
        max_vma_count=65_530,
        thread_lists=ThreadLists(ReadState.READ, libc="glibc 2.36"),
        areas=tuple(areas),
        arenas=2,
        cores=Cores(4, 4),
        findings=(),
        routines={0x1000: Frame("minute_job", module="/opt/app_server", offset=0x1000)},
        notes=(),
    )
    return replace(plain, **facts)  # type: ignore[arg-type]


def area(start: int, size: int, kind: Kind, **facts: object) -> Area:
    return Area(start, start + size, kind, size, 4096, 0, 0, "rw-p", "")._replace(**facts)


def orphans(number: int) -> list[Area]:
    size = 10244 << 10
    return [
        area(0x7F0000000000 + i * size, size, Kind.ORPHANED_STACK, start_routine=0x1000, guard=4096)
        for i in range(number)
    ]


def test_first_line_answers_the_question() -> None:
    leak = replace(reports.never_joined_before_attach(27_000), certainty=Certainty.PROVED)
    first = " ".join(maps.render(maps_report(orphans(27_000), findings=(leak,)), 10, False).split())
    assert first.startswith("LEAK (proved): 27,000 threads exited and were never joined: 263.8 GiB")
    waiting = replace(leak, verdict=Verdict.NOT_JOINED_YET, leak=False, evidence=("kept in workers",))
    page = maps.render(maps_report(orphans(27_000), findings=(waiting,)), 10, False)
    assert "LEAK" not in page
    assert "kept in workers" in page
    unknown = replace(waiting, undecided=True)
    page = maps.render(maps_report(orphans(27_000), findings=(unknown,)), 10, False)
    assert page.startswith("CANNOT TELL: 27,000 stacks of exited threads, 263.8 GiB")
    healthy = maps.render(maps_report([area(0x1000, 8 * MIB, Kind.HEAP)]), 10, False).splitlines()[0]
    assert healthy.startswith("VIRT 8192 KiB is mostly heap 8192 KiB; no exited thread waits for a join")


def test_without_lists_no_more_is_said_than_was_seen() -> None:
    shaped = [area(0x1000 + i * MIB, MIB, Kind.STACK_SHAPED) for i in range(60)]
    absent = ThreadLists(ReadState.ABSENT, "musl")
    assert "60 areas resemble stacks without a thread" in maps.render(
        maps_report(shaped, thread_lists=absent), 10, False
    )
    fewer = maps.render(maps_report(shaped[:3], thread_lists=absent), 10, False)
    assert "no more stacks than threads seen" in fewer
    assert "glibc's thread lists)" not in fewer


def test_growth_is_reported_first_and_similar_changes_together() -> None:
    growth = compare(orphans(2), orphans(5), 60.0)
    lines = maps.render(maps_report(orphans(5), growth=growth), 10, False).splitlines()
    grew = "In 1 min: VIRT +30732 KiB, RSS +12 KiB; most of it orphaned-stack +30732 KiB (3 areas more)"
    assert lines[0] == grew
    (row,) = [line for line in lines if line.strip().startswith("appeared")]
    assert row.split()[:4] == ["appeared", "3", "+10244", "KiB"]


def mapped_files(paths: list[str]) -> list[Area]:
    return [
        area(0x7F0000000000 + i * MIB, 16 << 10, Kind.FILE, path=path, inode=5 + (path != "/db/a"))
        for i, path in enumerate(paths)
    ]


def test_a_file_that_is_mapped_many_times_is_named_in_text_and_json() -> None:
    seen = maps_report(mapped_files(["/db/a"] * 10_000 + ["/db/b"] * 15))
    page = maps.render(seen, 10, False)
    (row,) = [line.split() for line in page.splitlines() if line.endswith("/db/a")]
    assert row == ["10,000", "1", "156.2", "MiB", "39.1", "MiB", "/db/a"]
    assert "/db/b" not in page
    assert maps_json.document(seen)["repeated"] == [
        {
            "path": "/db/a",
            "files": 1,
            "count": 10_000,
            "bytes": 10_000 * 16 << 10,
            "rss_bytes": 10_000 * 4096,
            "swap_bytes": 0,
        }
    ]


def test_growth_by_several_files_is_not_reported_of_the_first_alone() -> None:
    for paths, reported in ((["/db/a"] * 3, "/db/a"), (["/db/a", "/db/b"], "/db/a and others")):
        growth = compare([], mapped_files(paths), 1.0)
        page = maps.render(maps_report(mapped_files(paths), growth=growth), 10, False)
        assert any(line.endswith(f"  {reported}") for line in page.splitlines())


areas = st.lists(
    st.builds(
        Area,
        start=st.integers(0, 1 << 47),
        end=st.integers(0, 1 << 47),
        kind=st.sampled_from(Kind),
        size=st.integers(1, 1 << 47),
        rss=st.integers(0, 1 << 45),
        swap=st.integers(0, 1 << 45),
        huge=st.integers(0, 1 << 45),
        perms=st.just("rw-p"),
        path=hostile,
        guard=st.just(0),
        tid=st.none() | st.integers(1, 1 << 22),
        thread=hostile,
        start_routine=st.sampled_from([0, 0x1000, 0x2000]),
        note=st.just(""),
        inode=st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(areas, areas, hostile, st.booleans(), st.booleans(), st.integers(60, 100))
def test_text_and_json_are_fit_for_any_names_and_width(
    before: list[Area], after: list[Area], name: str, grown: bool, absent: bool, width: int
) -> None:
    thread_lists = ThreadLists(ReadState.ABSENT if absent else ReadState.READ)
    growth = compare(before, after, 1.5) if grown else None
    seen = maps_report(
        [*after, *after[:1] * MANY], name, growth=growth, thread_lists=thread_lists, notes=(f"note {name}",)
    )
    page = maps.render(seen, 5, True, width)
    assert page.endswith("\n")
    for line in page.splitlines():
        assert cell_len(line) <= width
        assert line == line.rstrip()
    assert all(character.isprintable() for character in page.replace("\n", ""))
    text = maps_json.render(seen)
    text.encode("ascii")
    assert text.count("\n") == 1
    loaded = json.loads(text)
    json.dumps(loaded, ensure_ascii=False).encode("utf-8")
    VALIDATOR.validate(loaded)


def test_schema_can_refuse() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    finding = reports.never_joined_before_attach(1)
    good = maps_json.document(maps_report(orphans(1), findings=(finding,)))
    (shown,) = good["findings"]
    assert not VALIDATOR.is_valid({**good, "findings": [{**shown, "verdict": "maybe"}]})
    VALIDATOR.validate(good)
    assert not VALIDATOR.is_valid({**good, "schema": "ebpftrace.maps/2"})
    assert not VALIDATOR.is_valid({**good, "classes": {"stack": good["total"]}})
    assert not VALIDATOR.is_valid({**good, "areas": [{**good["areas"][0], "start": 4096}]})
    assert not VALIDATOR.is_valid({key: good[key] for key in good if key != "growth"})
