# SPDX-License-Identifier: Apache-2.0
"""The report of ``ebpftrace maps`` as text: what the address space is made of, and what changed."""

from __future__ import annotations

from collections.abc import Sequence

from ebpftrace.classify.changes import Growth, SimilarChanges, grouped
from ebpftrace.classify.maps_report import MapsReport
from ebpftrace.classify.model import UNEXPLAINED, Area, Kind, Totals, unexplained
from ebpftrace.classify.repeated import repeated
from ebpftrace.glibc import most_arenas
from ebpftrace.model import ReadState
from ebpftrace.report.headline import leak_lines, undecided_line
from ebpftrace.report.tables import WIDTH, table, wrapped
from ebpftrace.text import address, change, count, duration, escape, pid_inside, plural, shorten, size, wall

_MEANING = {
    Kind.ORPHANED_STACK: "thread exited, not joined: see above",
    Kind.STACK_SHAPED: "a guard below, no thread known: see below",
    Kind.ANONYMOUS: "mapped by the program for its own use: see below",
    Kind.NAMED: "named by the program",
    Kind.HEAP: "brk: malloc's main arena",
    Kind.MALLOC_BLOCK: "large allocations of malloc",
    Kind.THREAD_STACK: "of live threads: see below",
    Kind.MAIN_STACK: "of the first thread",
    Kind.HUGE: "huge TLB pages, not in the process's RSS",
    Kind.SHARED: "tmpfs, memfd, System V, shared anonymous",
    Kind.JIT: "executable memory without a file",
    Kind.TEXT: "code of programs and libraries",
    Kind.RODATA: "their constants",
    Kind.DATA: "their variables",
    Kind.FILE: "other mapped files",
    Kind.DEVICE: "devices and kernel buffers",
    Kind.RESERVED: "no access: costs address space only",
    Kind.GUARD: "no access, small",
    Kind.KERNEL: "from the kernel",
}
_NEAR_LIMIT = 0.1
_NAME_WIDTH = 24
_LABEL = "         "


def render(maps: MapsReport, top: int, list_all: bool, width: int = WIDTH) -> str:
    """One look as text in ``width`` cells (at least 60); ``top``: most rows of each table of areas."""
    parts = [wrapped(line, width=width) for line in _headline(maps)]
    parts += [[""], *_head(maps, width), [""]]
    if maps.growth is not None:
        parts += [_growth(maps.growth, top, width)]
    else:
        parts += [_classes(maps, width), _stacks(maps, top, width), _unexplained(maps, top, width)]
        parts += [_repeated(maps, top, width)]
    if list_all:
        parts.append(_all(maps, width))
    parts += [wrapped(escape(note), first="note     ", width=width) for note in maps.notes]
    lines = [line.rstrip() for part in parts for line in part]
    return "\n".join(lines).rstrip() + "\n"


def _headline(maps: MapsReport) -> list[str]:
    lines = []
    if maps.growth is not None:
        lines.append(_growth_line(maps.growth))
    verdicts = leak_lines(maps.findings)
    undecided = undecided_line(maps.findings)
    if undecided:
        verdicts.append(undecided)
    lines += verdicts
    if not verdicts and maps.growth is None:
        largest = sorted(maps.kinds.items(), key=lambda item: item[1].size, reverse=True)[:3]
        made_of = ", ".join(f"{kind.value} {size(sums.size)}" for kind, sums in largest)
        lines.append(f"VIRT {size(maps.total.size)} is mostly {made_of}; {_no_orphans(maps)}")
    return lines


def _no_orphans(maps: MapsReport) -> str:
    shaped = maps.of(Kind.STACK_SHAPED)
    waiting = maps.of(Kind.ORPHANED_STACK)
    if waiting.number:
        why = next((finding.evidence[0] for finding in maps.findings if finding.evidence), "")
        return escape(why) or f"{plural(waiting.number, 'exited thread')} not joined so far"
    if maps.thread_lists.state is ReadState.READ:
        return "no exited thread waits for a join (glibc's thread lists)"
    threads = (maps.target.threads or 1) - 1
    if shaped.number > threads:
        areas = plural(shaped.number, "area resembles a stack", "areas resemble stacks")
        return f"{areas} without a thread ({size(shaped.size)})"
    return "no more stacks than threads seen"


def _head(maps: MapsReport, width: int) -> list[list[str]]:
    target = maps.target
    facts = [f"VIRT {size(maps.total.size)}", f"RSS {size(maps.rss)}"]
    if target.threads is not None:
        facts.append(plural(target.threads, "thread"))
    limit = maps.max_vma_count
    near = limit is not None and maps.vma_count >= _NEAR_LIMIT * limit
    share = f" of at most {count(limit)} (vm.max_map_count)" if near and limit else ""
    facts.append(f"{plural(maps.vma_count, 'VMA')}{share}")
    when = wall(maps.taken_at, maps.taken_at)
    pid = pid_inside(target.pid, target.inner_pid)
    parts = [
        wrapped(
            f"{escape(target.comm)} ({pid}) at {when}: {', '.join(facts)}",
            first="target   ",
            width=width,
        )
    ]
    if target.exe:
        parts.append([_LABEL + shorten(escape(target.exe), width - len(_LABEL))])
    if maps.of(Kind.ORPHANED_STACK).number:
        step = f"ebpftrace mmap-leaks -p {target.pid}    names the code that leaks, live"
        parts.append(wrapped(step, first="next     ", width=width))
    return parts


def _classes(maps: MapsReport, width: int) -> list[str]:
    rows = [(kind.value, *_figures(sums), _meaning(kind, maps)) for kind, sums in maps.kinds.items()]
    rows.append(("total", *_figures(maps.total), ""))
    optional = ("WHAT", "SWAP") if maps.total.swap else ("SWAP", "WHAT")
    return [*table("CLASS|>COUNT|>VIRT|>RSS|>SWAP|WHAT", rows, width=width, optional=optional, fold=True), ""]


def _figures(sums: Totals) -> tuple[str, str, str, str]:
    swap = size(sums.swap) if sums.swap else "-"
    return count(sums.number), size(sums.size), size(sums.resident), swap


def _meaning(kind: Kind, maps: MapsReport) -> str:
    if kind is Kind.MALLOC_ARENA:
        most, counted = most_arenas(maps.thread_lists.libc, maps.cores)
        return f"{plural(maps.arenas, 'arena')}, at most {most} by default ({plural(counted, 'core')})"
    if kind is Kind.STACK_CACHE:
        return f"kept by glibc for new threads, limit {size(maps.thread_lists.stack_cache_limit)}"
    return _MEANING[kind]


def _stacks(maps: MapsReport, top: int, width: int) -> list[str]:
    stacks = [area for area in maps.areas if area.kind is Kind.THREAD_STACK]
    if not stacks:
        return []
    stacks.sort(key=lambda area: (area.resident, area.size), reverse=True)
    rows = [
        (
            str(area.tid) if area.tid is not None else "-",
            shorten(escape(area.thread), _NAME_WIDTH) if area.tid is not None else "-",
            size(area.size),
            size(area.resident),
            address(area.start),
            area.note,
        )
        for area in stacks[:top]
    ]
    return [
        f"Stacks of live threads, most resident first ({count(len(stacks))})",
        *table(">TID|THREAD|>VIRT|>RSS|AT|", rows, indent=3, width=width, optional=("AT", "")),
        *_more(len(stacks) - top, "stack"),
        "",
    ]


def _more(hidden: int, noun: str) -> list[str]:
    return [f"   and {plural(hidden, f'more {noun}')} (--top, --all)"] if hidden > 0 else []


def _unexplained(maps: MapsReport, top: int, width: int) -> list[str]:
    groups = unexplained(maps.areas)
    if not groups:
        return []
    rows = [
        (
            count(group.totals.number),
            size(group.size),
            size(group.totals.size),
            size(group.totals.resident),
            group.perms,
            group.kind.value,
            address(group.first.start),
        )
        for group in groups[:top]
    ]
    sums = sum(maps.of(kind).size for kind in UNEXPLAINED)
    header, optional = ">COUNT|>EACH|>VIRT|>RSS|PERM|CLASS|FIRST AT", ("VIRT", "PERM", "CLASS")
    return [
        f"Largest unexplained areas, equal ones together ({size(sums)})",
        *table(header, rows, indent=3, width=width, optional=optional),
        *_more(len(groups) - top, "group"),
        "",
    ]


def _repeated(maps: MapsReport, top: int, width: int) -> list[str]:
    names = repeated(maps.areas)
    if not names:
        return []
    rows = [
        (
            count(one.totals.number),
            count(one.files) if one.files else "-",
            size(one.totals.size),
            size(one.totals.resident),
            escape(one.path),
        )
        for one in names[:top]
    ]
    return [
        *wrapped("Mapped many times under one name (a page counts as resident in each mapping)", width=width),
        *table(">COUNT|>FILES|>VIRT|>RSS|NAME", rows, indent=3, width=width, optional=("FILES", "RSS")),
        *_more(len(names) - top, "name"),
        "",
    ]


def _growth_line(growth: Growth) -> str:
    virt, resident = _sums(growth)
    line = f"In {duration(growth.seconds)}: VIRT {change(0, virt)}, RSS {change(0, resident)}"
    grew = [(sums.size, kind, sums.number) for kind, sums in growth.kinds.items() if sums.size > 0]
    if grew:
        bytes_grown, kind, number = max(grew, key=lambda entry: entry[0])
        line += f"; most of it {kind.value} {change(0, bytes_grown)}"
        line += f" ({plural(number, 'area')} more)" if number > 0 else ""
    return line


def _sums(growth: Growth) -> tuple[int, int]:
    sums = growth.kinds.values()
    return sum(one.size for one in sums), sum(one.resident for one in sums)


def _growth(growth: Growth, top: int, width: int) -> list[str]:
    if not growth.kinds and not growth.changes:
        return ["Nothing changed.", ""]
    rows = [
        (
            kind.value,
            change(0, sums.number, count),
            change(0, sums.size),
            change(0, sums.resident),
            change(0, sums.swap),
        )
        for kind, sums in growth.kinds.items()
    ]
    lines = [*table("CLASS|>COUNT|>VIRT|>RSS|>SWAP", rows, width=width, optional=("SWAP",)), ""]
    groups = grouped(growth.changes)
    if groups:
        lines += ["Areas that changed, equal ones together"]
        changed = [
            (
                group.what.value,
                count(group.number),
                change(0, group.step),
                change(0, group.resident),
                group.kind.value,
                address(group.first.area.start),
                _whose(group),
            )
            for group in groups[:top]
        ]
        header, optional = "WHAT|>COUNT|>EACH|>RSS|CLASS|FIRST AT|OF", ("RSS", "FIRST AT", "OF")
        lines += table(header, changed, indent=3, width=width, optional=optional)
        lines += [*_more(len(groups) - top, "group"), ""]
    return lines


def _whose(group: SimilarChanges) -> str:
    if group.was is not None:
        return f"was {group.was.value}"
    first = _identity(group.first.area)
    return first if group.same_path else f"{first} and others"


def _identity(area: Area) -> str:
    """The text of the last column: the thread that uses the area, its file, or a remark."""
    if area.tid is not None:
        return f"{area.tid} {escape(area.thread)}"
    return escape(area.path) or area.note


def _all(maps: MapsReport, width: int) -> list[str]:
    rows: Sequence[Sequence[str]] = [
        (
            f"{area.start:x}-{area.end:x}",
            size(area.size),
            size(area.resident),
            size(area.swap) if area.swap else "-",
            area.perms,
            area.kind.value,
            _identity(area),
        )
        for area in maps.areas
    ]
    header, optional = "RANGE|>VIRT|>RSS|>SWAP|PERM|CLASS|OF", ("SWAP", "PERM", "RSS", "CLASS")
    return ["All areas", *table(header, rows, width=width, optional=optional), ""]
