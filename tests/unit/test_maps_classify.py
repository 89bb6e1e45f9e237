# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.classify import classify, compare
from ebpftrace.classify.changes import What, grouped
from ebpftrace.classify.model import Area, Kind, Reading, Totals, total, unexplained
from ebpftrace.classify.repeated import MANY, Repeated, repeated
from ebpftrace.model import Heap, Interval, ListedThread, LiveThread, ReadState, ThreadLists, Vma

PAGE = 4096
BASE = 0x7F0000000000
MIB = 1 << 20
NO_LISTS = ThreadLists(ReadState.ABSENT)


def vma(
    start: int, size: int, perms: str = "rw-p", path: str = "", inode: int = 0, rss: int = 0, huge: int = 0
) -> Vma:
    guard = perms.startswith("---")
    return Vma(start, start + size, perms, 0, "08:01", inode, path, rss, 0, guard, huge)


def stack(start: int, size: int = 1 * MIB, rss: int = 0) -> list[Vma]:
    return [vma(start, PAGE, "---p"), vma(start + PAGE, size, rss=rss)]


def listed_thread(
    start: int, end: int, tid: int, exited: bool = False, detached: bool = False
) -> ListedThread:
    return ListedThread(end - 64, 0 if exited else tid, 0x1234, Interval(start, end), False, exited, detached)


def areas_of(vmas: Sequence[Vma], thread_lists: ThreadLists = NO_LISTS, **seen: object) -> list[Area]:
    areas, _ = classify(Reading(vmas, thread_lists, **seen))  # type: ignore[arg-type]
    return areas


def kinds_of(vmas: Sequence[Vma], thread_lists: ThreadLists = NO_LISTS, **seen: object) -> list[Kind]:
    return [area.kind for area in areas_of(vmas, thread_lists, **seen)]


def test_files_are_code_of_images_or_other() -> None:
    vmas = [
        vma(0x1000, PAGE, "r--p", "/bin/server", 7),
        vma(0x2000, PAGE, "r-xp", "/bin/server", 7),
        vma(0x3000, PAGE, "rw-p", "/bin/server", 7),
        vma(0x4000, PAGE, "rw-p"),
        vma(0x9000, PAGE, "r--s", "/var/db/data", 8),
        vma(0xB000, PAGE, "---p", "/bin/server", 7),
    ]
    assert kinds_of(vmas) == [Kind.RODATA, Kind.TEXT, Kind.DATA, Kind.DATA, Kind.FILE, Kind.GUARD]
    assert areas_of(vmas)[3].note == "bss"


def test_names_of_the_kernel_tell() -> None:
    named = {
        "[heap]": Kind.HEAP,
        "[stack]": Kind.MAIN_STACK,
        "[vdso]": Kind.KERNEL,
        "[vvar_vclock]": Kind.KERNEL,
        "[anon:my pool]": Kind.NAMED,
        "/SYSV00000000 (deleted)": Kind.SHARED,
        "/memfd:x\\012y (deleted)": Kind.SHARED,
        "/dev/zero (deleted)": Kind.SHARED,
        "/dev/shm/ring": Kind.SHARED,
        "[anon_shmem:ring]": Kind.SHARED,
        "/anon_hugepage (deleted)": Kind.HUGE,
        "/dev/nvidia0": Kind.DEVICE,
        "anon_inode:[io_uring]": Kind.DEVICE,
        "/dev/shmoo": Kind.DEVICE,
    }
    for path, kind in named.items():
        inode = 0 if path.startswith("[") else 5
        assert kinds_of([vma(BASE, PAGE, "rw-p", path, inode)]) == [kind], path


def test_what_a_process_may_name_is_no_proof_of_a_kernel_area() -> None:
    assert kinds_of([vma(BASE, PAGE, "rw-p", "[anon:[heap]]")]) == [Kind.NAMED]
    assert kinds_of([vma(BASE, PAGE, "r--p", "/tmp/[vdso]", 5)]) == [Kind.FILE]


def test_anonymous_memory_by_access() -> None:
    assert kinds_of([vma(BASE, PAGE, "rwxp")]) == [Kind.JIT]
    assert kinds_of([vma(BASE, PAGE, "---p")]) == [Kind.GUARD]
    assert kinds_of([vma(BASE, 64 * MIB, "---p")]) == [Kind.RESERVED]
    assert kinds_of([vma(BASE, PAGE, "rw-p", huge=2 * MIB)]) == [Kind.HUGE]


def test_vsyscall_page_is_in_no_address_space() -> None:
    assert areas_of([vma(0xFFFFFFFFFF600000, PAGE, "--xp", "[vsyscall]")]) == []


def test_guard_below_anonymous_memory_is_one_stack_shaped_area() -> None:
    areas = areas_of([*stack(BASE), *stack(BASE + 2 * MIB)])
    assert [area.kind for area in areas] == [Kind.STACK_SHAPED] * 2
    assert [(area.start, area.size, area.guard) for area in areas] == [
        (BASE, MIB + PAGE, PAGE),
        (BASE + 2 * MIB, MIB + PAGE, PAGE),
    ]
    (similar,) = unexplained(areas)
    assert (similar.totals.number, similar.size) == (2, MIB + PAGE)


def test_lists_tell_whose_stack_it_is_and_what_is_orphaned() -> None:
    end = MIB + PAGE
    starts = [BASE + index * 4 * MIB for index in range(4)]
    thread_lists = ThreadLists(
        ReadState.READ,
        threads=(
            listed_thread(starts[0], starts[0] + end, 70),
            listed_thread(starts[1], starts[1] + end, 0, exited=True),
            listed_thread(starts[2], starts[2] + end, 0, exited=True, detached=True),
        ),
        stack_cache=(Interval(starts[3], starts[3] + end),),
    )
    vmas = [one for start in starts for one in stack(start, rss=8192)]
    areas = areas_of(vmas, thread_lists, threads=[LiveThread(1070, 70, "job\n", None)])
    assert [area.kind for area in areas] == [
        Kind.THREAD_STACK,
        Kind.ORPHANED_STACK,
        Kind.ORPHANED_STACK,
        Kind.STACK_CACHE,
    ]
    assert (areas[0].tid, areas[0].thread, areas[0].perms) == (1070, "job\n", "rw-p")
    assert areas[1].start_routine == 0x1234
    assert areas[2].note == "detached, ended by a bare exit system call"
    assert all((area.size, area.guard, area.rss) == (end, PAGE, 8192) for area in areas)


def test_unstable_lists_prove_no_orphan() -> None:
    thread_lists = ThreadLists(
        ReadState.UNSTABLE, threads=(listed_thread(BASE, BASE + MIB + PAGE, 0, exited=True),)
    )
    assert kinds_of(stack(BASE), thread_lists) == [Kind.THREAD_STACK]


def test_stacks_that_the_kernel_merged_are_reported_apart_and_share_its_figures() -> None:
    thread_lists = ThreadLists(
        ReadState.READ,
        threads=tuple(
            listed_thread(BASE + i * MIB, BASE + (i + 1) * MIB, 70 + i, exited=i == 1) for i in range(3)
        ),
    )
    areas = areas_of([vma(BASE, 4 * MIB, rss=5 * PAGE)], thread_lists)
    assert [area.kind for area in areas] == [
        Kind.THREAD_STACK,
        Kind.ORPHANED_STACK,
        Kind.THREAD_STACK,
        Kind.ANONYMOUS,
    ]
    assert sum(area.rss for area in areas) == 5 * PAGE


def test_live_stack_pointer_shows_a_stack_that_no_list_lists() -> None:
    thread = LiveThread(9, 9, "raw", BASE + PAGE + 100)
    (area,) = areas_of(stack(BASE), threads=[thread])
    assert (area.kind, area.tid, area.size) == (Kind.THREAD_STACK, 9, MIB + PAGE)
    (small,) = areas_of([vma(BASE, 40 << 10)], threads=[LiveThread(9, 9, "raw", BASE + 40000)])
    assert small.kind is Kind.THREAD_STACK


def test_stack_pointer_in_a_heap_makes_no_stack_of_it() -> None:
    inside = LiveThread(9, 9, "go", BASE + 5 * PAGE)
    assert kinds_of([vma(BASE, 64 * MIB)], threads=[inside]) == [Kind.ANONYMOUS]
    two = [inside, LiveThread(10, 10, "go", BASE + 9 * PAGE)]
    assert kinds_of(stack(BASE), threads=two) == [Kind.STACK_SHAPED]
    assert kinds_of([vma(BASE, PAGE, "rw-p", "[stack]")], threads=[LiveThread(1, 1, "m", BASE + 9)]) == [
        Kind.MAIN_STACK
    ]


def test_heap_of_malloc_is_one_area_with_what_is_not_in_use_yet() -> None:
    start = 0x7F0040000000
    vmas = [vma(start, 132 << 10, rss=PAGE), vma(start + (132 << 10), (64 * MIB) - (132 << 10), "---p")]
    (area,) = areas_of(vmas, heaps=[Heap(start, start + 64 * MIB, True)])
    assert (area.kind, area.size, area.rss, area.perms, area.guard) == (
        Kind.MALLOC_ARENA,
        64 * MIB,
        PAGE,
        "rw-p",
        0,
    )


def test_best_evidence_counts_where_claims_overlap() -> None:
    thread_lists = ThreadLists(
        ReadState.READ,
        threads=(listed_thread(BASE, BASE + MIB, 7),),
        stack_cache=(Interval(BASE, BASE + 2 * MIB),),
    )
    areas = areas_of([vma(BASE, 4 * MIB)], thread_lists)
    assert [(area.kind, area.size) for area in areas] == [
        (Kind.THREAD_STACK, MIB),
        (Kind.ANONYMOUS, 3 * MIB),
    ]


def test_what_is_mapped_many_times_is_named_with_its_sums() -> None:
    vmas = [vma(BASE + i * 4 * PAGE, 2 * PAGE, "rw-s", "/var/db/data", 8, rss=PAGE) for i in range(20)]
    start = vmas[-1].end + PAGE
    vmas += [vma(start + i * 4 * PAGE, PAGE, "rw-s", "/memfd:x (deleted)", 100 + i) for i in range(MANY)]
    start = vmas[-1].end + PAGE
    vmas += [vma(start + i * 4 * PAGE, PAGE, "r--p", "/lib/once", 9) for i in range(MANY - 1)]
    assert repeated(areas_of(vmas)) == [
        Repeated("/var/db/data", 1, Totals(20, 40 * PAGE, 20 * PAGE, 0)),
        Repeated("/memfd:x (deleted)", MANY, Totals(MANY, MANY * PAGE, 0, 0)),
    ]


def test_memory_behind_the_data_of_a_file_is_no_mapping_of_it() -> None:
    vmas = []
    for start in range(BASE, BASE + MANY * 4 * PAGE, 4 * PAGE):
        vmas += [vma(start, PAGE, "r-xp", "/lib/x", 7), vma(start + PAGE, PAGE, "rw-p", "/lib/x", 7)]
        vmas.append(vma(start + 2 * PAGE, PAGE))
    assert [one.totals.number for one in repeated(areas_of(vmas))] == [2 * MANY]


# --- any address space -----------------------------------------------------------------------------

perms = st.sampled_from(["rw-p", "---p", "r-xp", "rwxp", "rw-s", "r--p"])
paths = st.sampled_from(["", "", "", "[heap]", "[stack]", "/lib/x", "/dev/shm/a", "[anon:x]", "[vdso]"])


@st.composite
def spaces(draw: st.DrawFn) -> list[Vma]:
    vmas = []
    at = BASE
    for gap, pages, access, path in draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 600), perms, paths), max_size=25)
    ):
        at += gap * PAGE
        rss = draw(st.integers(0, pages)) * PAGE
        vmas.append(vma(at, pages * PAGE, access, path, 3 if path.startswith("/") else 0, rss))
        at += pages * PAGE
    return vmas


places = st.integers(0, 8000).map(lambda page: BASE + page * PAGE)
ranges = st.tuples(places, st.integers(1, 900)).map(lambda pair: Interval(pair[0], pair[0] + pair[1] * PAGE))


@st.composite
def sights(draw: st.DrawFn) -> Reading:
    threads = [
        ListedThread(one.end - 8, tid, 1, one, False, draw(st.booleans()), draw(st.booleans()))
        for tid, one in enumerate(draw(st.lists(ranges, max_size=6)), start=1)
    ]
    state = draw(st.sampled_from(list(ReadState)))
    thread_lists = ThreadLists(
        state, threads=tuple(threads), stack_cache=tuple(draw(st.lists(ranges, max_size=3)))
    )
    live = [
        LiveThread(tid, tid, "t", pointer)
        for tid, pointer in enumerate(draw(st.lists(st.none() | places, max_size=6)), start=1)
    ]
    heaps = [Heap(one.start, one.end, True) for one in draw(st.lists(ranges, max_size=3))]
    return Reading(draw(spaces()), thread_lists, live, heaps, draw(st.lists(ranges, max_size=4)))


def sums_of(vmas: Sequence[Vma]) -> tuple[int, int]:
    return sum(one.size for one in vmas), sum(one.rss or 0 for one in vmas)


@given(sights())
def test_no_byte_is_lost_or_counted_twice(reading: Reading) -> None:
    areas, _ = classify(reading)
    sums = total(areas)
    assert (sums.size, sums.resident) == sums_of(reading.vmas)
    for low, high in zip(areas, areas[1:]):
        assert low.end <= high.start
    assert all(0 <= area.guard <= area.size <= area.end - area.start and area.rss >= 0 for area in areas)


@given(sights(), sights())
def test_changes_add_up(before: Reading, after: Reading) -> None:
    old, new = classify(before)[0], classify(after)[0]
    growth = compare(old, new, 1.0)
    difference = total(new).minus(total(old))
    assert sum(change.size for change in growth.changes) == difference.size
    sums = Totals(*(sum(column) for column in zip(Totals(), *growth.kinds.values())))
    assert sums == difference
    similar = grouped(growth.changes)
    assert sum(group.number for group in similar) == len(growth.changes)
    assert all(group.size == group.step * group.number for group in similar)


@given(sights())
def test_nothing_changed_is_no_change(reading: Reading) -> None:
    areas, _ = classify(reading)
    growth = compare(areas, areas, 1.0)
    assert growth.changes == ()
    assert growth.kinds == {}


def test_a_thread_that_exits_turns_its_stack_into_an_orphan() -> None:
    end = BASE + MIB + PAGE
    live = ThreadLists(ReadState.READ, threads=(listed_thread(BASE, end, 5),))
    gone = ThreadLists(ReadState.READ, threads=(listed_thread(BASE, end, 5, exited=True),))
    new = [*stack(BASE), *stack(BASE + 8 * MIB)]
    (became, appeared) = sorted(
        compare(areas_of(stack(BASE), live), areas_of(new, gone), 1.0).changes, key=lambda c: c.area.start
    )
    assert (became.what, became.area.kind, became.size) == (What.BECAME, Kind.ORPHANED_STACK, 0)
    assert (appeared.what, appeared.size) == (What.APPEARED, MIB + PAGE)
