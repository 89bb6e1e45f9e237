# SPDX-License-Identifier: Apache-2.0
"""Reads what ``mmap-leaks --json`` wrote back into reports: the way back of ``mmap_leaks_json``.

A report that was read renders as the one that was written, but for what the file does not have: findings and
threads that --top left out, times finer than a microsecond, and sites.  Its clock counts from 1970.
"""

from __future__ import annotations

import errno
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple, Optional, TypeVar

from ebpftrace.model import (
    ALL_LISTED,
    NOT_SEARCHED,
    NOTHING_LEFT_OUT,
    Accepted,
    AcceptedBy,
    Calls,
    Certainty,
    Clock,
    CommandEnd,
    EndedBy,
    Failures,
    Finding,
    Frame,
    Holder,
    Interval,
    LeftOut,
    Losses,
    Mapping,
    Memory,
    Orphan,
    Outstanding,
    OwnedBy,
    Processes,
    Reached,
    Report,
    Search,
    Site,
    Stack,
    StackSource,
    Sums,
    TargetInfo,
    Thread,
    ThreadId,
    ThreadTotal,
    TracerCost,
    Unlisted,
    Verdict,
    Where,
)
from ebpftrace.report.mmap_leaks_json import SCHEMA

_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_BYTE_OR_SURROGATE = re.compile(r"\\x([89a-f][0-9a-f])|\\u(d[89a-f][0-9a-f]{2})")
"""The escape sequences that ``text.without_surrogates`` writes."""
_RAW = 0xDC00
_UNNAMED_ERROR = re.compile(r"error (\d{1,9})")
_FAR = 1 << 64
_LARGE = 1e18
_LONGEST = 1e9
"""Seconds of a window, thirty years."""
_LOSSES = ("events", "mappings", "stacks", "threads")


class BadReport(ValueError):
    """The text is no report of ours; the message says why."""


class Saved(NamedTuple):
    """The contents of one file."""

    reports: tuple[Report, ...]
    processes: Optional[Processes]
    """Counts of the followed processes; None if the file has none."""


def read(text: str) -> Saved:
    """All reports of a file: one document, or one a line.  Raises BadReport."""
    reports: list[Report] = []
    processes: Optional[Processes] = None
    for number, line in _lines(text):
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadReport(f"line {number} is not JSON") from error
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise BadReport(f"line {number} is not of the schema {SCHEMA}")
        try:
            inner = _list(document, "reports") if "reports" in document else [document]
            reports += map(_report, map(_object, inner))
            processes = _maybe(document, "processes", _processes) or processes
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadReport(f"line {number} does not fit the schema: {_why(error)}") from error
    if not reports:
        raise BadReport("there is no report in it")
    return Saved(tuple(reports), processes)


def lives(reports: Sequence[Report]) -> list[tuple[int, int]]:
    """Return a key for each report: its process, and the number of the program that the process executed."""
    ended: Counter[int] = Counter()
    found = []
    for report in reports:
        found.append((report.target.pid, ended[report.target.pid]))
        ended[report.target.pid] += report.ended_by is not EndedBy.INTERVAL
    return found


def last_reports(reports: Sequence[Report]) -> list[Report]:
    """The last report of each process, without those of --interval that came before it."""
    return list(dict(zip(lives(reports), reports)).values())


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Return the JSON texts: each line, or the whole text if one document spans several lines."""
    if text.lstrip()[:1] == "{" and text.lstrip()[1:2] in ("\n", "\r"):
        yield 1, text
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def _why(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


# --- parts of JSON ---------------------------------------------------------------


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object is expected")
    return value


def _list(source: dict[str, Any], name: str) -> list[Any]:
    value = source[name]
    if not isinstance(value, list):
        raise TypeError(f"{name} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is expected")
    return _BYTE_OR_SURROGATE.sub(lambda found: chr(_code(found)), value)


def _code(found: re.Match[str]) -> int:
    return _RAW + int(found[1], 16) if found[1] else int(found[2], 16)


def _whole(value: Any) -> int:
    if type(value) is not int or not -_FAR < value < _FAR:
        raise TypeError("a whole number of 64 bits is expected")
    return value


def _real(value: Any) -> float:
    if (type(value) is int or type(value) is float) and -_LARGE < value < _LARGE:
        return float(value)
    raise TypeError("a number is expected")


def _seconds(value: Any) -> float:
    seconds = _real(value)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError("a number of seconds is expected")
    return seconds


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false is expected")
    return value


def _address(value: Any) -> int:
    text = _text(value)
    if not text.startswith("0x") or len(text) > 18:
        raise ValueError("an address is expected")
    return int(text, 16)


def _time(value: Any) -> int:
    """Ns since 1970."""
    since = datetime.fromisoformat(_text(value)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


def _maybe(source: dict[str, Any], name: str, read_as: Callable[[Any], _T]) -> Optional[_T]:
    """A member that may be null or, in a file of an older version, missing."""
    value = source.get(name)
    return None if value is None else read_as(value)


def _or(source: dict[str, Any], name: str, read_as: Callable[[Any], _T], default: _T) -> _T:
    value = _maybe(source, name, read_as)
    return default if value is None else value


def _choice(kind: type[_E], value: Any) -> _E:
    return kind(_text(value))


# --- the report -------------------------------------------------------------------


def _report(source: dict[str, Any]) -> Report:
    window, memory = _object(source["window"]), _object(source["memory"])
    target, losses = _object(source["target"]), _object(source["losses"])
    outstanding: dict[str, Any] = _or(source, "outstanding", _object, {})
    return Report(
        target=TargetInfo(
            pid=_whole(target["pid"]),
            comm=_text(target["comm"]),
            exe=_text(target["exe"]),
            threads=_maybe(target, "threads_end", _whole),
            threads_start=_maybe(target, "threads_start", _whole),
            parent=_maybe(target, "parent_pid", _whole),
            inner_pid=_maybe(target, "inner_pid", _whole),
        ),
        seconds=_seconds(window["seconds"]),
        ended_by=_choice(EndedBy, window["ended_by"]),
        ended_at=_or(window, "ended_at", _time, 0),
        clock=Clock(0, 0),
        memory=Memory(
            *(_maybe(memory, name, _whole) for name in ("virt_start", "virt_end", "rss_start", "rss_end"))
        ),
        calls=_calls(_object(source["calls"])),
        losses=Losses(*(_or(losses, name, _whole, 0) for name in _LOSSES)),
        threads=tuple(map(_thread, map(_object, _list(source, "threads")))),
        findings=tuple(map(_finding, map(_object, _list(source, "findings")))),
        outstanding_mappings=_or(outstanding, "mappings", _whole, 0),
        outstanding_bytes=_or(outstanding, "bytes", _whole, 0),
        unexplained_bytes=_or(source, "unexplained_bytes", _whole, 0),
        unexplained=tuple(
            (_text(_object(one)["name"]), _whole(one["bytes"])) for one in source.get("unexplained") or ()
        ),
        notes=tuple(map(_text, source.get("notes") or ())),
        undecided=_or(source, "undecided", _whole, 0),
        cost=_maybe(source, "cost", _cost),
        command=_maybe(source, "command", _command),
        searched=_or(source, "search", _search, NOT_SEARCHED),
        executed=_or(source, "executed", _text, ""),
        processes=_maybe(source, "processes", _processes),
        is_child=_or(source, "is_child", _truth, False),
        threads_only=_or(source, "threads_only", _truth, False),
        left_out=_or(source, "hidden", _left_out, NOTHING_LEFT_OUT),
    )


def _calls(source: dict[str, Any]) -> Calls:
    return Calls(
        mmap=_or(source, "mmap", _whole, 0),
        munmap=_or(source, "munmap", _whole, 0),
        mremap=_or(source, "mremap", _whole, 0),
        brk=_or(source, "brk", _whole, 0),
        clone=_whole(source["clone"]),
        thread_exit=_whole(source["thread_exit"]),
        fork=_or(source, "fork", _whole, 0),
        failed=tuple(
            Failures(_text(one["call"]), _error(_text(one["error"])), _whole(one["count"]))
            for one in map(_object, source.get("failed") or ())
        ),
    )


def _error(name: str) -> int:
    """The way back of ``text.error_name``."""
    unnamed = _UNNAMED_ERROR.fullmatch(name)
    if unnamed:
        return int(unnamed[1])
    number = getattr(errno, name, None)
    if type(number) is not int:
        raise ValueError(f"{name[:40]!a} is no error")
    return number


def _thread(source: dict[str, Any]) -> ThreadTotal:
    thread = Thread(
        ThreadId(_whole(source["tid"]), 0),
        _text(source["name"]),
        tgid=0,
        exited_at=None if _truth(source["alive"]) else 0,
        inner_tid=_maybe(source, "inner_tid", _whole),
    )
    return ThreadTotal(
        thread,
        _whole(source["mappings"]),
        _whole(source["bytes"]),
        _or(source, "brk_growth", _whole, 0),
        _or(source, "stack", _stack, Stack()),
    )


def _left_out(value: Any) -> LeftOut:
    names = ("findings", "leaks", "bytes", "threads", "thread_bytes")
    return LeftOut(*(_or(_object(value), name, _whole, 0) for name in names))


def _cost(value: Any) -> TracerCost:
    source = _object(value)
    return TracerCost(
        _real(source["cpu_seconds"]), _maybe(source, "bpf_seconds", _real), _maybe(source, "bpf_runs", _whole)
    )


def _command(value: Any) -> CommandEnd:
    source = _object(value)
    return CommandEnd(
        tuple(map(_text, _list(source, "argv"))),
        0,
        _maybe(source, "exit_status", _whole),
        _maybe(source, "signal", _whole),
    )


def _processes(value: Any) -> Processes:
    return Processes(*(_whole(_object(value)[name]) for name in ("followed", "judged", "lost")))


def _search(value: Any) -> Search:
    source = _object(value)
    return Search(
        complete=_truth(source["complete"]),
        gaps=tuple(map(_text, _list(source, "gaps"))),
        unsearched_bytes=_whole(source["unsearched_bytes"]),
        searches=_whole(source["searches"]),
        bytes_searched=_whole(source["bytes"]),
        cpu_seconds=_real(source["cpu_seconds"]),
    )


# --- findings ---------------------------------------------------------------------


def _finding(source: dict[str, Any]) -> Finding:
    return Finding(
        verdict=_choice(Verdict, source["verdict"]),
        leak=_truth(source["leak"]),
        evidence=tuple(map(_text, _list(source, "evidence"))),
        advice=_text(source["advice"]),
        before_attach=_truth(source["before_attach"]),
        orphans=tuple(map(_orphan, map(_object, _list(source, "mappings")))),
        bytes_per_minute=_maybe(source, "bytes_per_minute", _real),
        stack=_stack(source["stack"]),
        start_routine=_maybe(source, "start_routine", _frame),
        period=_maybe(source, "period_seconds", _real),
        batch=_or(source, "batch", _whole, 1),
        certainty=_choice(Certainty, source.get("certainty", Certainty.LIKELY.value)),
        reach=_maybe(source, "reach", _reached),
        undecided=_or(source, "undecided", _truth, False),
        accepted=_maybe(source, "accepted", _accepted),
        sites=tuple(_site(_object(one)) for one in source.get("sites") or ()),
        more_sites=_or(source, "more_sites", _whole, 0),
        called=tuple(
            (_text(one["function"]), _whole(one["count"])) for one in map(_object, source.get("called") or ())
        ),
        unlisted=_or(source, "more_mappings", _unlisted, ALL_LISTED),
    )


def _unlisted(value: Any) -> Unlisted:
    source = _object(value)
    return Unlisted(_sums(source), _sums(_object(source["before_attach"])))


def _sums(source: dict[str, Any]) -> Sums:
    return Sums(
        _whole(source["count"]),
        _whole(source["bytes"]),
        _maybe(source, "rss_bytes", _whole),
        _or(source, "swap_bytes", _whole, 0),
    )


def _site(source: dict[str, Any]) -> Site:
    return Site(_stack(source["stack"]), _whole(source["count"]), _whole(source["bytes"]))


def _accepted(value: Any) -> Accepted:
    return Accepted(_choice(AcceptedBy, _object(value)["by"]), _text(value["why"]))


def _stack(value: Any) -> Stack:
    source = _object(value)
    return Stack(
        tuple(map(_frame, _list(source, "frames"))),
        _truth(source["complete"]),
        _choice(StackSource, source["source"]),
        _or(source, "note", _text, ""),
    )


def _frame(value: Any) -> Frame:
    source = _object(value)
    return Frame(
        _maybe(source, "function", _text),
        _maybe(source, "file", _text),
        _maybe(source, "line", _whole),
        _maybe(source, "module", _text),
        _maybe(source, "offset", _whole),
        _or(source, "inlined", _truth, False),
    )


def stack_of(value: Any) -> Stack:
    """The way back of ``json_parts.stack_object``.  Raises KeyError, TypeError or ValueError."""
    return _stack(value)


def _reached(value: Any) -> Reached:
    source = _object(value)
    return Reached(
        _whole(source["checked"]),
        _whole(source["lost"]),
        _whole(source["kept"]),
        _truth(source["complete"]),
        tuple(map(_holder, map(_object, _list(source, "holders")))),
    )


def _holder(source: dict[str, Any]) -> Holder:
    return Holder(
        _choice(Where, source["where"]),
        _maybe(source, "address", _address),
        _or(source, "symbol", _text, ""),
        _maybe(source, "thread", _whole),
        _or(source, "thread_name", _text, ""),
        _maybe(source, "frame", _frame),
    )


def _orphan(source: dict[str, Any]) -> Orphan:
    start, end = _address(source["start"]), _address(source["end"])
    pieces = tuple(_piece(one) for one in source.get("pieces") or ()) or (Interval(start, end),)
    made_at, mapper = _maybe(source, "mapped_at", _time), _maybe(source, "mapper_tid", _whole)
    made = _maybe(source, "made_bytes", _whole)
    mapping = Mapping(
        pieces=pieces,
        made_at=made_at,
        mapper=None if mapper is None else ThreadId(mapper, 0),
        prot=_maybe(source, "prot", _whole),
        flags=_maybe(source, "flags", _whole),
        site=0,
        made=Interval(start, start + made) if made else None,
        file=_or(source, "file", _text, ""),
    )
    owned_by = _maybe(source, "owned_by", lambda value: _choice(OwnedBy, value))
    outstanding = Outstanding(mapping, _owner(source), owned_by, None)
    return Orphan(
        outstanding,
        _maybe(source, "rss_bytes", _whole),
        _maybe(source, "guard_bytes", _whole),
        _or(source, "swap_bytes", _whole, 0),
    )


def _piece(value: Any) -> Interval:
    return Interval(_address(_object(value)["start"]), _address(value["end"]))


def _owner(source: dict[str, Any]) -> Optional[Thread]:
    tid = _maybe(source, "owner_tid", _whole)
    if tid is None:
        return None
    creator = _maybe(source, "owner_creator_tid", _whole)
    return Thread(
        ThreadId(tid, _or(source, "owner_started_at", _time, 0)),
        _or(source, "owner_name", _text, ""),
        tgid=0,
        exited_at=_maybe(source, "owner_exited_at", _time),
        creator=None if creator is None else ThreadId(creator, 0),
        creator_name=_maybe(source, "owner_creator_name", _text),
        inner_tid=_maybe(source, "owner_inner_tid", _whole),
        creator_inner_tid=_maybe(source, "owner_creator_inner_tid", _whole),
    )
