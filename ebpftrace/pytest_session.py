# SPDX-License-Identifier: Apache-2.0
"""A session of the pytest plugin: notes what runs when, has the session traced, reports what was left."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Optional

import pytest

from ebpftrace import frames
from ebpftrace.api import LeakTracer, Report
from ebpftrace.capture.checks.machine import lacking_capabilities
from ebpftrace.defaults import SUPPRESSIONS
from ebpftrace.errors import EbpftraceError, TracerFailed
from ebpftrace.known.acceptance import Acceptance
from ebpftrace.known.baseline import BadBaseline
from ebpftrace.known.baseline import parse as parse_baseline
from ebpftrace.known.suppressions import BadSuppression, Suppression, first_match, parse
from ebpftrace.libc import LIBC
from ebpftrace.model import Verdict
from ebpftrace.pytest_blame import NO_TERMS, UNJOINED, Left, Span, Terms, blame
from ebpftrace.report import words
from ebpftrace.text import escape, plural, size
from ebpftrace.user_files import read_text

if TYPE_CHECKING:
    from ebpftrace.known.comparing import Amount
    from ebpftrace.model import Report as ProcessReport
    from ebpftrace.model import Stack

_ATTRIBUTE = "ebpftrace_thread_leaks"
"""Of a test's last report: what pytest-xdist carries from a worker to the controller with it."""
_OUTSIDE = "thread leaks outside of tests and fixtures"
_ADVICE = "join it (pthread_join) before the test or fixture ends, or detach it (pthread_detach)"
_PYTEST = ("/_pytest/python.py", "/_pytest/fixtures.py")
"""They call tests and fixtures."""
_GRACE = 1.0
_POLL_SECONDS = 0.01


def register(config: pytest.Config, mode: str) -> None:
    """Add the hooks; ``mode`` is on or auto."""
    config.pluginmanager.register(_Recorder(), "ebpftrace-recorder")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Session(config, mode), "ebpftrace-session")


class _Recorder:
    """Notes when tests, fixtures and imports run in this process, and gives that to the reports of tests."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._began = 0

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, None]:
        began = time.time_ns()
        yield
        self._note(began, f"{collector.nodeid or 'the directory'} (collection)")

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, None]:
        self._began = time.time_ns()
        yield

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, Any, None]:
        if fixturedef.scope == "function":
            yield
            return
        place = _fixture_place(fixturedef, request.node)
        ends: list[int] = []
        # Finalizers run in the reverse order of their addition: this one after those of the fixture ...
        fixturedef.addfinalizer(lambda: self._note(ends.pop(), place) if ends else None)
        began = time.time_ns()
        yield
        self._note(began, place)
        # ... and this one before them.
        fixturedef.addfinalizer(lambda: ends.append(time.time_ns()))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, None]:
        outcome = yield
        if call.when != "teardown":
            return
        self._note(self._began, item.nodeid, is_test=True)
        terms = _terms(item)
        spans, self._spans = self._spans, []
        given = {"pid": os.getpid(), "spans": [list(span) for span in spans], "limit": terms.limit}
        setattr(outcome.get_result(), _ATTRIBUTE, {**given, "exclude": list(terms.exclude)})

    def _note(self, began: int, place: str, is_test: bool = False) -> None:
        self._spans.append(Span(began, time.time_ns(), place, is_test))


def _fixture_place(fixturedef: pytest.FixtureDef[Any], node: Any) -> str:
    name = fixturedef.argname
    if name.startswith("_xunit_"):  # pytest's own fixtures for setup_module and setup_class
        name = "_".join(name.split("_")[2:4])
    place = f"fixture {name} ({fixturedef.scope} scope)"
    return f"{node.nodeid}::{place}" if node.nodeid else place


def _terms(item: pytest.Item) -> Terms:
    """What the markers of a test allow: the nearest one that says something counts."""
    limit: Optional[int] = 0
    exclude: list[str] = []
    for marker in reversed(list(item.iter_markers("thread_leaks"))):
        if "limit" in marker.kwargs or marker.args:
            limit = marker.kwargs.get("limit", marker.args[0] if marker.args else 0)
        given = marker.kwargs.get("exclude", ())
        exclude += [given] if isinstance(given, str) else given
    return Terms(limit, tuple(exclude))


class _Session:
    """Has the session traced, and reports what its tests left; not in workers of pytest-xdist."""

    def __init__(self, config: pytest.Config, mode: str) -> None:
        self._config = config
        self._is_required = mode == "on"
        self._sudo = os.geteuid() != 0 and bool(lacking_capabilities())
        self._tracer = LeakTracer(follow_forks=True, sudo=self._sudo)
        self._is_traced = False
        self._off = ""
        """Why the session is not traced."""
        self._spans: dict[int, list[Span]] = defaultdict(list)
        self._terms: dict[str, Terms] = {}
        self._locations: dict[str, tuple[str, Optional[int], str]] = {}
        self._lines: list[str] = []
        """What the summary at the end says ..."""
        self._doubts: list[str] = []
        """... and why not everything could be judged."""
        self._report: Optional[Report] = None
        self._failed: dict[str, int] = {}
        """Threads that count, by what left them."""
        self._accepted = 0
        self._suppressions: list[tuple[Suppression, str]] = []
        self._baseline: Optional[Mapping[str, Amount]] = None
        self._exclude: Sequence[str] = ()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Begin before anything is collected, and before workers are started."""
        self._spans[os.getpid()] = []
        try:
            self._read_settings()
        except EbpftraceError as error:
            raise pytest.UsageError(str(error)) from None
        try:
            self._tracer.start()
            self._is_traced = True
        except EbpftraceError as error:
            self._off = self._why_not(error)
            if self._is_required:
                raise pytest.UsageError(f"thread leaks cannot be traced: {self._off}") from None

    def _why_not(self, error: EbpftraceError) -> str:
        if self._sudo and isinstance(error, TracerFailed):
            return (
                f"this is not root, and sudo -n cannot start the tracer ({error.what}): run pytest as root, "
                f"or let sudo start {escape(sys.executable)} without a password; nothing but the tracer runs "
                "as root then"
            )
        return str(error)

    def pytest_report_header(self) -> str:
        if self._is_traced:
            return f"thread leaks: traced{' (the tracer runs under sudo)' if self._sudo else ''}"
        return self._not_traced()

    def _not_traced(self) -> str:
        return f"thread leaks: not traced: {self._off}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._locations[report.nodeid] = report.location
        given = getattr(report, _ATTRIBUTE, None)
        if given is None:
            return
        self._terms[report.nodeid] = Terms(given["limit"], tuple(given["exclude"]))
        self._spans[given["pid"]] += [Span(*span) for span in given["spans"]]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Before reports are written; but first those end that pytest would end later."""
        if not self._is_traced:
            return
        self._end_others(session)
        try:
            self._report = self._tracer.stop()
        except EbpftraceError as error:
            self._doubts.append(f"the tracer failed: {error}")
        if exitstatus not in (
            pytest.ExitCode.OK,
            pytest.ExitCode.TESTS_FAILED,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            self._doubts.append("the session did not run to its end")
        elif self._report is not None:
            self._judge(self._report)
        if self._report is not None:
            self._save(self._report)
            self._doubts += _doubts(self._report)
        failed = bool(self._lines) or (self._is_required and bool(self._doubts))
        if failed and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        self._tracer.cancel()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self._lines and not self._doubts:
            if self._report is not None:
                terminalreporter.write_line(self._last_line())
            elif self._off and not terminalreporter.showheader:
                terminalreporter.write_line(self._not_traced())
            return
        terminalreporter.section("thread leaks")
        for line in self._lines:
            terminalreporter.write_line(line)
        for doubt in self._doubts:
            terminalreporter.write_line(f"NOT JUDGED: {doubt}")
        if self._report is not None:
            terminalreporter.write_line(self._last_line())

    def _end_others(self, session: pytest.Session) -> None:
        """Tear down the remaining fixtures and end pytest-xdist's workers: they are judged when they end."""
        manager = self._config.pluginmanager
        for name, arguments in (("runner", {"session": session}), ("dsession", {})):
            plugin = manager.getplugin(name)
            if plugin is not None and hasattr(plugin, "pytest_sessionfinish"):
                try:
                    plugin.pytest_sessionfinish(**arguments)
                except Exception as error:
                    self._doubts.append(f"{name} did not end well: {type(error).__name__}: {error}")

    def _judge(self, report: Report) -> None:
        acceptance = Acceptance(self._suppressions, self._baseline)
        marked = [acceptance.accept(_marked(one), number) for number, one in enumerate(report.processes)]
        self._report = replace(report, processes=tuple(marked))
        for place, several in blame(marked, self._spans).items():
            terms = self._terms.get(place, NO_TERMS)
            rules = _rules([*self._exclude, *terms.exclude])
            left = [
                one
                for one in several
                if one.finding.accepted is None and first_match(rules, one.finding) is None
            ]
            count, everything = _threads(left), _threads(several)
            if terms.limit is None or count <= terms.limit:
                self._accepted += everything
                continue
            self._accepted += everything - count
            self._failed[place] = count
            self._fail(place, left)

    def _fail(self, place: str, left: Sequence[Left]) -> None:
        """Add an error to the test, or one of its own for a fixture."""
        nodeid = place or _OUTSIDE
        path, _, name = nodeid.partition("::")
        report = pytest.TestReport(
            nodeid=nodeid,
            location=self._locations.get(place, (path, None, name or nodeid)),
            keywords={"thread_leaks": 1},
            outcome="failed",
            longrepr="\n\n".join("\n".join(_described(one)) for one in left),
            when="teardown",
        )
        self._config.hook.pytest_runtest_logreport(report=report)
        self._lines += [nodeid, *(f"    {_sentence(one)}" for one in left)]

    def _last_line(self) -> str:
        """What was seen in all; only where everything was judged it says that nothing else is there."""
        report = self._report
        if report is None:
            return "thread leaks: not judged"
        started = sum(one.calls.clone for one in report.processes)
        count = sum(self._failed.values())
        left = f"{plural(count, 'thread')} left unjoined" if count else "none left unjoined"
        if self._doubts:
            left = f"{left} as far as could be judged" if count else "not all could be judged"
        accepted = f", {self._accepted:,} accepted" if self._accepted else ""
        where = (
            f"{plural(started, 'thread')} started in {plural(len(report.processes), 'process', 'processes')}"
        )
        return f"thread leaks: {where}, {left}{accepted}"

    def _save(self, report: Report) -> None:
        name = self._config.getoption("--thread-leaks-report")
        if name:
            try:
                (self._config.invocation_params.dir / name).write_text(report.to_json(), encoding="utf-8")
            except OSError as error:
                self._doubts.append(f"the report cannot be written: {error}")

    def _read_settings(self) -> None:
        """Suppressions of the project, the baseline and exclusions.  Raises EbpftraceError."""
        config = self._config
        self._exclude = config.getini("thread_leaks_exclude")
        _rules(self._exclude)
        file = config.rootpath / SUPPRESSIONS
        if file.is_file():
            try:
                self._suppressions = [(rule, str(file)) for rule in parse(read_text(file))]
            except BadSuppression as error:
                raise EbpftraceError(f"{escape(str(file))}: {error}") from None
        name = str(config.getini("thread_leaks_baseline"))
        if name:
            try:
                self._baseline = parse_baseline(read_text(config.rootpath / name))
            except BadBaseline as error:
                remedy = "ebpftrace report --write-baseline makes one"
                raise EbpftraceError(f"{escape(name)} is no baseline: {error}", remedy) from None


def _marked(report: ProcessReport) -> ProcessReport:
    """What is unjoined as a leak, since the test is over: so it can be compared with what is accepted."""
    findings = []
    for finding in report.findings:
        one = replace(finding, accepted=None, stack=_without_pytest(finding.stack))
        if finding.verdict in UNJOINED:
            one = replace(one, verdict=Verdict.NEVER_JOINED, leak=True, advice=_ADVICE)
        findings.append(one)
    return replace(report, findings=tuple(findings))


def _without_pytest(stack: Stack) -> Stack:
    """Up to the call of the test or fixture: what pytest does above it is in every stack."""
    for number, frame in enumerate(stack.frames):
        if frame.file and frame.file.endswith(_PYTEST):
            return replace(stack, frames=stack.frames[:number])
    return stack


def _rules(patterns: Sequence[str]) -> tuple[Suppression, ...]:
    try:
        return parse("".join(f"thread:{pattern}\n" for pattern in patterns))
    except BadSuppression as error:
        raise EbpftraceError(f"thread_leaks exclude: {error}") from None


def _threads(left: Sequence[Left]) -> int:
    return sum(one.finding.count for one in left)


def _sentence(left: Left) -> str:
    """Such as ``1 thread not joined, 8192 KiB: made by start_worker, ran worker_main``."""
    finding = left.finding
    parts = []
    frame = frames.culprit(finding.stack)
    if frame is not None:
        parts.append(f"made by {frames.name(frame)}")
    if finding.start_routine is not None:
        parts.append(f"ran {frames.name(finding.start_routine)}")
    if left.in_child:
        parts.append(f"in {words.process(left.process)}")
    details = f": {', '.join(parts)}" if parts else ""
    if finding.verdict is Verdict.ABANDONED_STACK:
        what = f"{plural(finding.count, 'stack')} of exited threads not unmapped"
    else:
        what = f"{plural(finding.count, 'thread')} exited and not joined"
    return f"{what}, {size(finding.size)}{details}"


def _described(left: Left) -> Iterator[str]:
    yield _sentence(left)
    for line in words.lines(left.finding, left.process):
        yield f"  {line}"


def _doubts(report: Report) -> Iterator[str]:
    for one in report.processes:
        for doubt in words.doubts(one):
            yield f"{words.process(one)}: {doubt}"
    if report.followed is not None and report.followed.lost:
        yield f"{plural(report.followed.lost, 'process', 'processes')} could not be followed"


@dataclass(frozen=True)
class Unjoined:
    """A thread of this process that has exited, and is neither joined nor detached."""

    start_routine: str
    """The function that it ran, as far as its library exports it; else its address."""
    descriptor: int
    """Its ``pthread_t``."""
    stack_bytes: Optional[int]


class ThreadLeaks:
    """The fixture ``thread_leaks``: what glibc's own lists say, at once."""

    def __init__(self) -> None:
        self._before = {one.descriptor for one in _unjoined()}

    def now(self) -> list[Unjoined]:
        """Threads that have exited and are not joined now, but for those from before the test.

        Raises EbpftraceError where the C library does not tell.
        """
        return [one for one in _unjoined() if one.descriptor not in self._before]

    def assert_none(self, grace: float = _GRACE) -> None:
        """Fail where there are such threads, and still are after ``grace`` seconds."""
        until = time.monotonic() + grace
        left = self.now()
        while left and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
            left = self.now()
        if left:
            names = ", ".join(sorted({one.start_routine for one in left}))
            pytest.fail(f"{plural(len(left), 'thread')} exited and not joined: ran {names}", pytrace=False)


def _unjoined() -> list[Unjoined]:
    from ebpftrace.diagnosis import is_unjoined
    from ebpftrace.model import ReadState
    from ebpftrace.nptl import read_thread_lists
    from ebpftrace.procfs.maps import read_maps
    from ebpftrace.procfs.memory import Memory

    pid = os.getpid()
    vmas = read_maps(pid)
    with Memory(pid) as memory:
        lists = read_thread_lists(pid, vmas, memory)
    if lists.state is not ReadState.READ:
        raise EbpftraceError(f"glibc's thread lists cannot be read: {lists.why}")
    return [
        Unjoined(
            _function_at(thread.start_routine),
            thread.descriptor,
            thread.stack.size if thread.stack is not None else None,
        )
        for thread in lists.threads
        if is_unjoined(thread)
    ]


class _SymbolInfo(ctypes.Structure):
    """``Dl_info`` (dlfcn.h)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _function_at(address: int) -> str:
    found = _SymbolInfo()
    is_known = LIBC.dladdr(ctypes.c_void_p(address), ctypes.byref(found))
    if not is_known or not found.name or found.address != address:
        return f"0x{address:x}"
    return escape(found.name.decode("utf-8", "surrogateescape"))
