# SPDX-License-Identifier: Apache-2.0
"""The report of ``ebpftrace scan`` as text: suspect processes, and the memory of the host."""

from __future__ import annotations

from collections.abc import Callable

from ebpftrace.classify.host_scan import HostScan
from ebpftrace.classify.meminfo import Attention
from ebpftrace.classify.ranking import Candidate, ProcessStats, Rank, Reason
from ebpftrace.errors import how_to_be_permitted
from ebpftrace.model import ReadState
from ebpftrace.report.tables import WIDTH, table, wrapped
from ebpftrace.text import change, count, duration, escape, plural, shorten, size, wall

_NAME_WIDTH = 15
_HIDDEN = "/proc hides the processes of other users (hidepid)"
_MAX_RATIO = 999.0
_OPTIONAL = ("ARENAS", "RATIO", "WHY", "THR", "RSS", "BYTES")
"""Columns for wide terminals."""
_NEXT_STEP = {
    Rank.NEVER_JOINED: "mmap-leaks",
    Rank.UNDECIDED: "mmap-leaks",
    Rank.NOT_JOINED: "mmap-leaks",
    Rank.GROWTH: "mmap-leaks",
    Rank.SURPLUS: "mmap-leaks",
    Rank.MANY_AREAS: "maps",
    Rank.UNTOUCHED: "maps",
    Rank.ARENAS: "maps",
}


def render(host_scan: HostScan, top: int, width: int = WIDTH) -> str:
    """The scan as text in ``width`` cells (at least 60); ``top``: most processes to list."""
    lines = [*wrapped(_headline(host_scan), width=width), ""]
    lines += _suspects(host_scan, top, width)
    lines += _processes(host_scan, top, width)
    lines += _host(host_scan, width)
    for note in _notes(host_scan):
        lines += wrapped(note, first="note     ", width=width)
    return "\n".join(lines).rstrip() + "\n"


def reason_text(reason: Reason, figures: ProcessStats) -> str:
    """Why a process is suspected, in a few words."""
    return _TEXTS[reason.rank](reason, figures)


def reason_name(reason: Reason) -> str:
    """One word for it, the same in text and JSON."""
    return reason.rank.name.lower().replace("_", "-")


_TEXTS: dict[Rank, Callable[[Reason, ProcessStats], str]] = {
    Rank.NEVER_JOINED: lambda reason, _: f"{plural(reason.number, 'exited thread')} never joined",
    Rank.UNDECIDED: lambda reason, _: f"cannot tell whether {plural(reason.number, 'exited thread')} leaked",
    Rank.NOT_JOINED: lambda reason, _: f"{plural(reason.number, 'exited thread')} not joined so far",
    Rank.GROWTH: lambda reason, _: f"VIRT grew {change(0, reason.size)}",
    Rank.SURPLUS: lambda reason, _: f"{plural(reason.number, 'stack-like area')} without a thread",
    Rank.MANY_AREAS: lambda reason, _: f"{count(reason.number)} VMAs, near vm.max_map_count",
    Rank.UNTOUCHED: lambda reason, _: f"{size(reason.size)} writable but untouched",
    Rank.ARENAS: lambda reason, _: f"{plural(reason.number, 'malloc arena')}",
}


def _headline(host_scan: HostScan) -> str:
    proved = [one for one in host_scan.candidates if one.reasons and one.reasons[0].rank is Rank.NEVER_JOINED]
    examined = plural(len(host_scan.candidates), "process", "processes")
    if proved:
        worst = proved[0].figures
        threads = sum(one.figures.leaked for one in proved)
        bytes_leaked = sum(one.figures.leaked_size for one in proved)
        were = "was" if threads == 1 else "were"
        where = f"in {escape(worst.comm)} (PID {worst.pid})"
        if len(proved) > 1:
            others = plural(len(proved) - 1, "other process", "other processes")
            where = f"{count(worst.leaked)} of them {where}, the rest in {others}"
        return (
            f"LEAK: {plural(threads, 'thread')} exited and {were} never joined, "
            f"{size(bytes_leaked)} of stacks still mapped, {where}; {examined} examined"
        )
    suspected = [one for one in host_scan.candidates if one.reasons]
    if suspected:
        first = suspected[0]
        why = reason_text(first.reasons[0], first.figures)
        return (
            f"No leak proved in {examined}; {plural(len(suspected), 'needs', 'need')} attention, first "
            f"{escape(first.figures.comm)} (PID {first.figures.pid}): {why}"
        )
    unseen = host_scan.unreadable + host_scan.not_looked
    limits = f"; the mappings of {count(unseen)} of them were not seen" if unseen else ""
    if host_scan.hidden:
        return f"CANNOT TELL: {_HIDDEN}, and nothing is suspicious in {examined}{limits}"
    if not host_scan.sees_all:
        return f"CANNOT TELL: the mappings of {count(unseen)} of {examined} were not seen"
    return f"Nothing suspicious in {examined}{limits}"


def _suspects(host_scan: HostScan, top: int, width: int) -> list[str]:
    """One line for each process that something speaks against: what, and what to do next."""
    suspected = [one for one in host_scan.candidates[:top] if one.reasons]
    if not suspected:
        return []
    lines = ["Suspects"]
    for one in suspected:
        figures = one.figures
        why = ", ".join(reason_text(reason, figures) for reason in one.reasons)
        step = f"ebpftrace {_NEXT_STEP[one.reasons[0].rank]} -p {figures.pid}"
        lines += wrapped(f"{why}; next: {step}", first=f"   {figures.pid} {_name(figures)}: ", width=width)
    return [*lines, ""]


def _name(figures: ProcessStats) -> str:
    return shorten(escape(figures.comm), _NAME_WIDTH)


def _processes(host_scan: HostScan, top: int, width: int) -> list[str]:
    growth = host_scan.seconds is not None
    header = ">PID|NAME|>VIRT|>RSS|>RATIO|>THR|>EXITED|>BYTES|>ARENAS"
    header += "|>GROWTH|WHY" if growth else "|WHY"
    rows = [_cells(one, growth) for one in host_scan.candidates[:top]]
    lines = ["Processes, most suspect first", *table(header, rows, width=width, optional=_OPTIONAL)]
    hidden = len(host_scan.candidates) - top
    if hidden > 0:
        lines.append(f"   and {plural(hidden, 'more process', 'more processes')} (--top)")
    return [*lines, ""]


def _cells(suspected: Candidate, growth: bool) -> list[str]:
    figures = suspected.figures
    proved = figures.thread_lists is ReadState.READ
    cells = [
        str(figures.pid),
        _name(figures),
        size(figures.virt),
        size(figures.rss),
        f"{figures.ratio:.1f}" if figures.ratio < _MAX_RATIO else f"{_MAX_RATIO:.0f}+",
        count(figures.threads),
        count(figures.exited) if proved else "-",
        size(figures.exited_size) if figures.exited and proved else "-",
        count(figures.heaps) if figures.shape is not None else "?",
    ]
    if growth:
        known = figures.virt_growth is not None
        cells.append(change(0, figures.virt_growth) if known else "new")
    cells.append(reason_name(suspected.reasons[0]) if suspected.reasons else "-")
    return cells


def _host(host_scan: HostScan, width: int) -> list[str]:
    memory = host_scan.memory
    if not memory.meminfo:
        return ["/proc/meminfo can't be read here: nothing is known of the host's memory", ""]
    if not memory.attention:
        return [f"/proc/meminfo: none of {memory.judged} figures needs attention", ""]
    lines = ["/proc/meminfo: what deserves attention"]
    for item in memory.attention:
        lines += wrapped(_attention_line(item), first=f"   {item.name:<14} ", width=width)
        lines += wrapped(f"see: {item.next_step}", first=" " * 18, width=width)
    return [*lines, ""]


def _attention_line(item: Attention) -> str:
    share = f" ({100 * item.share:.0f} % of {item.of})" if item.share is not None else ""
    return f"{size(item.value)}{share}: {item.meaning}"


def _notes(host_scan: HostScan) -> list[str]:
    notes = []
    if host_scan.hidden:
        notes.append(f"{_HIDDEN}: {how_to_be_permitted()}")
    if host_scan.unreadable:
        them = plural(host_scan.unreadable, "process", "processes")
        mend = how_to_be_permitted()
        notes.append(f"the mappings of {them} may not be read, judged by size alone: {mend}")
    if host_scan.not_looked:
        them = plural(host_scan.not_looked, "process", "processes")
        notes.append(f"no time for the mappings of {them}, judged by size alone")
    if host_scan.lists_unread:
        them = plural(host_scan.lists_unread, "suspect process", "suspect processes")
        notes.append(
            f"no time for glibc's thread lists of {them}, or they can't be read: EXITED is not known there"
        )
    if host_scan.unsearched:
        them = plural(host_scan.unsearched, "suspect process", "suspect processes")
        notes.append(f"no time to search the memory of {them} for the handles of the exited threads")
    notes.append(
        "EXITED: threads not joined so far, by glibc's thread lists; - where the mappings gave no reason to "
        "read them"
    )
    left_out = [
        plural(host_scan.kernel_threads, "kernel thread"),
        plural(host_scan.zombies, "zombie"),
        f"{plural(host_scan.vanished, 'process', 'processes')} that exited meanwhile",
    ]
    at = wall(host_scan.taken_at, host_scan.taken_at)
    notes.append(f"left out: {', '.join(left_out)}; scanned at {at} in {duration(host_scan.took)}")
    return notes
