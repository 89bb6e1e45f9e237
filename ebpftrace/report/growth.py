# SPDX-License-Identifier: Apache-2.0
"""``growth`` as text: a line for each interval, as pidstat -r prints them, and a summary.

Plain, greppable text; only a terminal gets a curve besides, and lines that fit it where it is narrow.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from rich.cells import cell_len

from ebpftrace import frames
from ebpftrace.growth.model import Cause, How, SiteGrowth, Size, Step, Summary
from ebpftrace.model import Clock, EndedBy, Frame, Stack, TargetInfo
from ebpftrace.report.headline import lost_line
from ebpftrace.report.sparkline import sparkline
from ebpftrace.report.tables import WIDTH, table, wrapped
from ebpftrace.text import change, count, duration, escape, period, plural, rate, shorten, size, wall

_KIB = 1024
_CAUSES_SHOWN = 3
_SITES_SHOWN = 10
_STACKS_SHOWN = 3
_FRAMES_SHOWN = 16
_CALLERS_SHOWN = 3
_NAME_WIDTH = 16
_LINE = "{:<8} {:>11} {:>8} {:>10} {:>7}  {}"
_LEAST_CAUSE = 28
"""Cells for a size, a call, a thread and a place: as many as a terminal of 80 columns has beside the rest."""
_BELOW = " " * 9
_PID_CELLS = 8
"""PIDs have at most seven digits (proc(5), /proc/sys/kernel/pid_max), and a space follows."""
_CURVE_WIDTH = 64
_BESIDE_CURVE = 20
"""Cells for what stands beside the curve."""
_OUTERMOST = "_start"
"""Calls main, in every program."""
_ENDED = {
    EndedBy.INTERRUPT: ", interrupted",
    EndedBy.TARGET_EXIT: ", ended because the target exited",
    EndedBy.EXEC: ", ended because the target called exec",
}


def title(target: TargetInfo, first: Size, *, width: int = WIDTH) -> str:
    """Which process it is, and how large, in ``width`` cells (at least 60) as all that follow."""
    name = shorten(escape(target.comm), _NAME_WIDTH)
    return _page([f"{name} (PID {target.pid}): VIRT {size(first.virt)}, RSS {size(first.rss)}"], width)


def columns(*, of_several: bool = False, width: int = WIDTH) -> str:
    """The names of the columns; ``of_several``: with one for PIDs, as ``first_line`` and ``step`` with it."""
    room = width - _PID_CELLS * of_several
    by = "BY" if _cause_room(room) else ""
    line = _LINE.format("TIME", "VIRT KiB", "+KiB", "RSS KiB", "+KiB", by)
    return _page(["", _beside("PID", line) if of_several else line], width)


def first_line(clock: Clock, first: Size, *, pid: Optional[int] = None, width: int = WIDTH) -> str:
    """The line of a first size; ``pid`` where several processes are watched."""
    now = clock.wall_ns(first.at)
    line = _sizes(wall(now, now), first, "", "", "")
    return _page([line if pid is None else _beside(str(pid), line)], width)


def step(interval: Step, clock: Clock, *, pid: Optional[int] = None, width: int = WIDTH) -> str:
    """The line of one interval, and one more for each further cause; for each where the page is narrow.

    ``pid``: of which process, where several are watched.
    """
    if pid is not None:
        lines = _step(interval, clock, width - _PID_CELLS)
        return _page([_beside(str(pid), lines[0]), *(_beside("", line) for line in lines[1:])], width)
    return _page(_step(interval, clock, width), width)


def _step(interval: Step, clock: Clock, width: int) -> list[str]:
    now = clock.wall_ns(interval.after.at)
    beside = _cause_room(width)
    causes = list(_causes(interval, beside or width - len(_BELOW)))
    first = causes[0] if causes and beside else ""
    lines = [_sizes(wall(now, now), interval.after, _kib(interval.virt), _kib(interval.rss), first)]
    if beside:
        return lines + [_LINE.format("", "", "", "", "", cause) for cause in causes[1:]]
    return lines + [_BELOW + cause for cause in causes]


def _beside(pid: str, line: str) -> str:
    return f"{pid:>{_PID_CELLS - 1}} {line}"


def summary(told: Summary, *, curve: bool, of_several: bool = False, width: int = WIDTH) -> str:
    """Totals of the window; with a ``curve`` of VIRT where a terminal can draw it."""
    whole = told.whole
    name = f"{shorten(escape(told.target.comm), _NAME_WIDTH)} (PID {told.target.pid})"
    lines = ["", *([name] if of_several else []), *_verdict(told, width), ""]
    if curve:
        drawn = sparkline(told.sizes, min(_CURVE_WIDTH, width - _BESIDE_CURVE))
        lines += [f"VIRT {drawn} {change(0, whole.virt)}", ""] if drawn else []
    if told.sites:
        lines += ["Growth by call, thread and place, net over the window", *_table(told, width), ""]
    regular = [site for site in told.sites if site.regular is not None]
    for site in regular[:_STACKS_SHOWN]:
        lines += [*_stack(site, width), ""]
    lines += _closing(told, width)
    return _page(lines, width)


def _page(lines: Iterable[str], width: int) -> str:
    return "".join(f"{shorten(line, width).rstrip()}\n" for line in lines)


def _sizes(time: str, at: Size, virt: str, rss: str, cause: str) -> str:
    return _LINE.format(time, at.virt // _KIB, virt, at.rss // _KIB, rss, cause)


def _kib(difference: int) -> str:
    return f"{difference // _KIB:+d}" if difference else "0"


def _cause_room(width: int) -> int:
    """Cells for a cause beside the sizes; 0 where it stands below them."""
    room = width - len(_LINE.format("", "", "", "", "", ""))
    return room if room >= _LEAST_CAUSE else 0


def _causes(interval: Step, room: int) -> Iterable[str]:
    if interval.causes is None:
        return
    shown = [cause for cause in interval.causes if cause.size]
    if shown and interval.since.at < interval.before.at:
        yield f"in {duration((interval.after.at - interval.since.at) / 1e9)}:"
    for cause in shown[:_CAUSES_SHOWN]:
        start = f"{cause.size // _KIB:+d} {cause.how.value} "
        yield start + _who_and_where(cause, room - cell_len(start))
    rest = shown[_CAUSES_SHOWN:]
    if rest:
        yield f"{sum(cause.size for cause in rest) // _KIB:+d} by {plural(len(rest), 'more cause')}"
    if interval.unexplained:
        yield f"{interval.unexplained // _KIB:+d} unexplained"


def _who_and_where(cause: Cause, room: int) -> str:
    if cause.before_attach:
        return "of what was mapped before attach"
    who = f"{_who(cause)}: "
    return who + _where(cause.stack, max(room - cell_len(who), 0))


def _who(cause: Cause) -> str:
    if not cause.threads:
        return "?"
    name = shorten(escape(cause.threads[0].name), _NAME_WIDTH) or str(cause.threads[0].id.tid)
    return name if len(cause.threads) == 1 else f"{count(len(cause.threads))} x {name}"


def _where(stack: Stack, room: int) -> str:
    """The callers outside run-time libraries, innermost first, as many as there is room for."""
    names = [_name(frame) for frame in _callers(stack)]
    line = shorten(names[0], room) if names else "no stack"
    for name in names[1:_CALLERS_SHOWN]:
        longer = f"{line} < {name}"
        if cell_len(longer) > room:
            break
        line = longer
    return line


def _name(frame: Frame) -> str:
    return escape(frame.function) if frame.function else frames.name(frame)


def _place(frame: Frame) -> str:
    """The function, and the place in the source or in the file."""
    if frame.file:
        return f"{_name(frame)} {frames.source(frame, full=False)}"
    if frame.function and frame.function_offset is not None:
        return f"{_name(frame)}+0x{frame.function_offset:x}"
    return _name(frame)


def _callers(stack: Stack) -> list[Frame]:
    first = frames.culprit(stack)
    if first is None:
        return []
    after = stack.frames[stack.frames.index(first) :]
    own = [frame for frame in after if frame.module == first.module and frame.function != _OUTERMOST]
    return own or [first]


def _verdict(told: Summary, width: int) -> list[str]:
    regular = [site for site in told.sites if site.regular is not None]
    lines = []
    for site in regular:
        lines += wrapped(_period(site), first="PERIOD: ", width=width)
    if not regular:
        none = f"No period: nothing was seen to grow regularly in {duration(told.whole.seconds)}"
        lines += wrapped(none, width=width)
    lost = lost_line(told.losses)
    return [*lines, *wrapped(lost, width=width)] if lost else lines


def _period(site: SiteGrowth) -> str:
    regular, cause = site.regular, site.cause
    assert regular is not None
    thread = f"thread '{_who(cause)}'" if len(cause.threads) == 1 else f"threads '{_who(cause)}'"
    who = thread if cause.threads else "threads not known"
    return f"{change(0, regular.step)} every {period(regular.period)}, {who}, {_path(cause.stack)}"


def _path(stack: Stack) -> str:
    return " < ".join(map(_place, _callers(stack)[:_CALLERS_SHOWN])) or "no stack"


def _table(told: Summary, width: int) -> list[str]:
    header = ">BYTES|CALL|>NUMBER|>PER MINUTE|EVERY|THREAD|WHERE"
    rows = [_cells(site, told.whole.seconds) for site in told.sites[:_SITES_SHOWN]]
    lines = table(header, rows, indent=3, width=width, spare=("NUMBER", "PER MINUTE", "CALL"))
    rest = told.sites[_SITES_SHOWN:]
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
        "mapped before attach" if cause.before_attach else _where(cause.stack, WIDTH),
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


def _closing(told: Summary, width: int) -> list[str]:
    whole, calls = told.whole, told.calls
    ended = told.clock.wall_ns(whole.after.at)
    began = told.clock.wall_ns(whole.before.at)
    span = f"{duration(whole.seconds)}, {wall(began, ended)} to {wall(ended, ended)}"
    seen = f"{count(calls.mmap)} mmap, {count(calls.munmap)} munmap, {count(calls.mremap)} mremap, "
    seen += f"{count(calls.brk)} brk; {'see LOST above' if told.losses.any else 'nothing lost'}"
    virt = f"VIRT {size(whole.after.virt)} ({change(whole.before.virt, whole.after.virt)}"
    rises = sum(after > before for before, after in zip(told.sizes, told.sizes[1:]))
    if whole.seconds > 0 and whole.virt > 0 and rises > 1:
        virt += f", {rate(whole.virt * 60 / whole.seconds)}"
    rss = f"RSS {size(whole.after.rss)} ({change(whole.before.rss, whole.after.rss)})"
    lines = [
        *wrapped(f"{virt}), {rss}", first="memory   ", width=width),
        *wrapped(f"{span}{_ENDED.get(told.ended_by, '')}: {seen}", first="window   ", width=width),
    ]
    if whole.unexplained:
        why = "by no call that was seen: the main thread's stack, shmat, or between two readings"
        lines += wrapped(f"{change(0, whole.unexplained)} {why}", first="unexplained  ", width=width)
    for note in told.notes:
        lines += wrapped(escape(note), first="note     ", width=width)
    if told.cost is not None:
        share = 100 * told.cost.cpu_seconds / whole.seconds if whole.seconds > 0 else 0.0
        cpu = duration(told.cost.cpu_seconds)
        lines.append(f"tracer   {cpu} of CPU time ({share:.1f} % of one CPU)")
    return lines
