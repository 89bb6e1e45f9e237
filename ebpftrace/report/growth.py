# SPDX-License-Identifier: Apache-2.0
"""``growth`` as text: a line for each interval, as pidstat -r prints them, and a summary.

Plain, greppable text; only a terminal gets a curve besides, and lines that fit it where it is narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

from rich.cells import cell_len

from ebpftrace import frames
from ebpftrace.frames import MAX_CALLERS, callers, function_name, where
from ebpftrace.model import Clock, EndedBy, Frame, Stack, TargetInfo
from ebpftrace.report import resident
from ebpftrace.report.headline import lost_line
from ebpftrace.report.tables import WIDTH, table, wrapped
from ebpftrace.size_changes.model import Cause, How, SiteGrowth, Size, Step, Summary
from ebpftrace.text import (
    change,
    count,
    cpu_time,
    duration,
    escape,
    period,
    pid_inside,
    plural,
    rate,
    shorten,
    size,
    wall,
)

_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_KIB = 1024
_CAUSES_SHOWN = 3
_SITES_SHOWN = 10
_STACKS_SHOWN = 3
_FRAMES_SHOWN = 16
_NAME_WIDTH = 16
_LINE = "{:<8} {:>11} {:>8} {:>10} {:>7}  {}"
_MIN_CAUSE = 28
"""Cells for a size, a call, a thread and a place: as many as a terminal of 80 columns has beside the rest."""
_BELOW = " " * 9
_PID_CELLS = 8
"""PIDs have at most seven digits (proc(5), /proc/sys/kernel/pid_max), and a space follows."""
_BY_CALL = "VIRT by call, thread and place, net over the window"
_CURVE_WIDTH = 64
_BESIDE_CURVE = 20
"""Width of the columns beside the curve."""
_ENDED = {
    EndedBy.INTERRUPT: ", interrupted",
    EndedBy.TARGET_EXIT: ", ended because the target exited",
    EndedBy.EXEC: ", ended because the target called exec",
}


def title(target: TargetInfo, first: Size, *, width: int = WIDTH) -> str:
    """Return the process and its size; ``width`` in cells, at least 60, as for the functions below."""
    name = shorten(escape(target.comm), _NAME_WIDTH)
    return _page([f"{name} (PID {target.pid}): VIRT {size(first.virt)}, RSS {size(first.rss)}"], width)


def columns(*, of_several: bool = False, width: int = WIDTH) -> str:
    """The names of the columns; ``of_several``: with one for PIDs, as ``first_line`` and ``step`` with it."""
    width_left = width - _PID_CELLS * of_several
    by = "BY" if _cause_width(width_left) else ""
    line = _LINE.format("TIME", "VIRT KiB", "+KiB", "RSS KiB", "+KiB", by)
    return _page(["", _beside("PID", line) if of_several else line], width)


def first_line(clock: Clock, first: Size, *, pid: Optional[int] = None, width: int = WIDTH) -> str:
    """The line of a first size; ``pid`` where several processes are watched."""
    now = clock.wall_ns(first.at)
    line = _sizes(wall(now, now), first, "", "", "")
    return _page([line if pid is None else _beside(str(pid), line)], width)


def step(
    interval: Step, clock: Clock, *, pid: Optional[int] = None, by_rss: bool = False, width: int = WIDTH
) -> str:
    """The line of one interval, and one more for each further cause; for each where the page is narrow.

    ``pid``: of which process, where several are watched; ``by_rss``: causes are those of RSS alone.
    """
    if pid is not None:
        lines = _step(interval, clock, by_rss, width - _PID_CELLS)
        return _page([_beside(str(pid), lines[0]), *(_beside("", line) for line in lines[1:])], width)
    return _page(_step(interval, clock, by_rss, width), width)


def _step(interval: Step, clock: Clock, by_rss: bool, width: int) -> list[str]:
    now = clock.wall_ns(interval.after.at)
    beside = _cause_width(width)
    width_left = beside or width - len(_BELOW)
    causes = [] if by_rss else list(_causes(interval, width_left))
    causes += resident.causes(interval, width_left)
    if causes and interval.since.at < interval.before.at:
        causes.insert(0, f"in {duration((interval.after.at - interval.since.at) / 1e9)}:")
    first = causes[0] if causes and beside else ""
    lines = [_sizes(wall(now, now), interval.after, _kib(interval.virt), _kib(interval.rss), first)]
    if beside:
        return lines + [_LINE.format("", "", "", "", "", cause) for cause in causes[1:]]
    return lines + [_BELOW + cause for cause in causes]


def _beside(pid: str, line: str) -> str:
    return f"{pid:>{_PID_CELLS - 1}} {line}"


def summary(
    totals: Summary,
    *,
    curve: bool,
    of_several: bool = False,
    by_rss: bool = False,
    width: int = WIDTH,
) -> str:
    """Totals of the window; with a ``curve`` of VIRT where a terminal can draw it.

    ``by_rss``: what filled memory comes before the calls.
    """
    whole = totals.whole
    pid = pid_inside(totals.target.pid, totals.target.inner_pid)
    name = f"{shorten(escape(totals.target.comm), _NAME_WIDTH)} ({pid})"
    lines = ["", *([name] if of_several else []), *_verdict(totals, width), ""]
    if curve:
        drawn = sparkline(totals.sizes, min(_CURVE_WIDTH, width - _BESIDE_CURVE))
        lines += [f"VIRT {drawn} {change(0, whole.virt)}", ""] if drawn else []
    filled = [] if totals.resident is None else [*resident.section(totals.resident, width), ""]
    called = [_BY_CALL, *_table(totals, width), ""] if totals.sites else []
    lines += filled + called if by_rss else called + filled
    regular = [site for site in totals.sites if site.regular is not None]
    for site in regular[:_STACKS_SHOWN]:
        lines += [*_stack(site, width), ""]
    lines += _closing(totals, width)
    return _page(lines, width)


def _page(lines: Iterable[str], width: int) -> str:
    return "".join(f"{shorten(line, width).rstrip()}\n" for line in lines)


def _sizes(time: str, at: Size, virt: str, rss: str, cause: str) -> str:
    return _LINE.format(time, at.virt // _KIB, virt, at.rss // _KIB, rss, cause)


def _kib(difference: int) -> str:
    return f"{difference // _KIB:+d}" if difference else "0"


def _cause_width(width: int) -> int:
    """Width of a cause beside the sizes; 0 if it has lines of its own below them."""
    width_left = width - len(_LINE.format("", "", "", "", "", ""))
    return width_left if width_left >= _MIN_CAUSE else 0


def _causes(interval: Step, width_left: int) -> Iterable[str]:
    if interval.causes is None:
        return
    shown = [cause for cause in interval.causes if cause.size]
    for cause in shown[:_CAUSES_SHOWN]:
        start = f"{cause.size // _KIB:+d} {cause.how.value} "
        yield start + _who_and_where(cause, width_left - cell_len(start))
    rest = shown[_CAUSES_SHOWN:]
    if rest:
        yield f"{sum(cause.size for cause in rest) // _KIB:+d} by {plural(len(rest), 'more cause')}"
    if interval.unexplained:
        yield f"{interval.unexplained // _KIB:+d} unexplained"


def _who_and_where(cause: Cause, width_left: int) -> str:
    if cause.before_attach:
        return shorten("of what was mapped before attach", width_left)
    who = f"{_who(cause)}: "
    return who + where(cause.stack, max(width_left - cell_len(who), 0))


def _who(cause: Cause) -> str:
    if not cause.threads:
        return "?"
    name = shorten(escape(cause.threads[0].name), _NAME_WIDTH) or str(cause.threads[0].id.tid)
    return name if len(cause.threads) == 1 else f"{count(len(cause.threads))} x {name}"


def _place(frame: Frame) -> str:
    """The function, and the place in the source or in the file."""
    if frame.file:
        return f"{function_name(frame)} {frames.source(frame, full=False)}"
    if frame.function and frame.function_offset is not None:
        return f"{function_name(frame)}+0x{frame.function_offset:x}"
    return function_name(frame)


def _verdict(totals: Summary, width: int) -> list[str]:
    regular = [site for site in totals.sites if site.regular is not None]
    lines = []
    for site in regular:
        lines += wrapped(_period(site), first="PERIOD: ", width=width)
    if not regular:
        none = f"No period: VIRT was not seen to grow regularly in {duration(totals.whole.seconds)}"
        lines += wrapped(none, width=width)
    lost = lost_line(totals.losses)
    return [*lines, *wrapped(lost, width=width)] if lost else lines


def _period(site: SiteGrowth) -> str:
    regular, cause = site.regular, site.cause
    assert regular is not None
    thread = f"thread '{_who(cause)}'" if len(cause.threads) == 1 else f"threads '{_who(cause)}'"
    who = thread if cause.threads else "threads not known"
    return f"{change(0, regular.step)} every {period(regular.period)}, {who}, {_path(cause.stack)}"


def _path(stack: Stack) -> str:
    return " < ".join(map(_place, callers(stack)[:MAX_CALLERS])) or "no stack"


def _table(totals: Summary, width: int) -> list[str]:
    header = ">BYTES|CALL|>NUMBER|>PER MINUTE|EVERY|THREAD|WHERE"
    rows = [_cells(site, totals.whole.seconds) for site in totals.sites[:_SITES_SHOWN]]
    lines = table(header, rows, indent=3, width=width, optional=("NUMBER", "PER MINUTE", "CALL"))
    rest = totals.sites[_SITES_SHOWN:]
    if rest:
        total = change(0, sum(site.cause.size for site in rest))
        lines.append(f"   and {plural(len(rest), 'more place')}, {total}")
    return lines


def _cells(site: SiteGrowth, seconds: float) -> list[str]:
    cause, regular = site.cause, site.regular
    pace = size(round(cause.size * 60 / seconds)) if seconds > 0 and regular is not None else "-"
    return [
        change(0, cause.size),
        cause.how.value,
        count(cause.mappings) if cause.mappings else "-",
        pace,
        period(regular.period) if regular is not None else "-",
        "-" if cause.before_attach else _who(cause),
        "mapped before attach" if cause.before_attach else where(cause.stack, WIDTH),
    ]


def _stack(site: SiteGrowth, width: int) -> list[str]:
    cause, regular = site.cause, site.regular
    if regular is None or not cause.stack.frames:
        return []
    done = "moved the break" if cause.how is How.BRK else "mapped"
    lines = [f"{change(0, regular.step)} every {period(regular.period)}: {done} at"]
    shown = cause.stack.frames[:_FRAMES_SHOWN]
    digits = len(str(len(shown) - 1))
    for index, frame in enumerate(shown):
        first, *more = frames.lines(frame, width - digits - 5)
        lines += [f"   #{index:<{digits}} {first}", *(" " * (digits + 5) + place for place in more)]
    if len(cause.stack.frames) > _FRAMES_SHOWN:
        lines.append(f"   ... {plural(len(cause.stack.frames) - _FRAMES_SHOWN, 'more frame')}")
    if cause.stack.note:
        lines += wrapped(f"({escape(cause.stack.note)})", first="   ", width=width)
    return lines


def _closing(totals: Summary, width: int) -> list[str]:
    whole, calls = totals.whole, totals.calls
    ended = totals.clock.wall_ns(whole.after.at)
    began = totals.clock.wall_ns(whole.before.at)
    span = f"{duration(whole.seconds)}, {wall(began, ended)} to {wall(ended, ended)}"
    seen = f"{count(calls.mmap)} mmap, {count(calls.munmap)} munmap, {count(calls.mremap)} mremap, "
    seen += f"{count(calls.brk)} brk; {'see LOST above' if totals.losses.any else 'nothing lost'}"
    virt = f"VIRT {size(whole.after.virt)} ({change(whole.before.virt, whole.after.virt)}"
    rises = sum(after > before for before, after in zip(totals.sizes, totals.sizes[1:]))
    if whole.seconds > 0 and whole.virt > 0 and rises > 1:
        virt += f", {rate(whole.virt * 60 / whole.seconds)}"
    rss = f"RSS {size(whole.after.rss)} ({change(whole.before.rss, whole.after.rss)})"
    lines = [
        *wrapped(f"{virt}), {rss}", first="memory   ", width=width),
        *wrapped(f"{span}{_ENDED.get(totals.ended_by, '')}: {seen}", first="window   ", width=width),
    ]
    if whole.unexplained:
        why = "by no call that was seen: the main thread's stack, or between two readings"
        lines += wrapped(f"{change(0, whole.unexplained)} {why}", first="unexplained  ", width=width)
    for note in totals.notes:
        lines += wrapped(escape(note), first="note     ", width=width)
    if totals.cost is not None:
        lines.append(f"tracer   {cpu_time(totals.cost.cpu_seconds, whole.seconds)}")
    return lines


def sparkline(values: Sequence[int], width: int) -> str:
    """The values as at most ``width`` blocks, the least as the lowest one; empty where all are equal."""
    if not values or min(values) == max(values):
        return ""
    cells = min(width, len(values))
    bounds = [len(values) * cell // cells for cell in range(cells + 1)]
    # The last of each group: a curve of growth then ends where it ends.
    shown = [values[end - 1] for end in bounds[1:]]
    least, most = min(values), max(values)
    return "".join(_BLOCKS[(value - least) * (len(_BLOCKS) - 1) // (most - least)] for value in shown)


def can_draw(encoding: Optional[str]) -> bool:
    """A stream of this encoding (None: UTF-8) has the blocks."""
    try:
        _BLOCKS.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
