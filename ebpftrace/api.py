# SPDX-License-Identifier: Apache-2.0
"""The Python API; docs/api.md shows it at work.  Import its names from ``ebpftrace``.

What traces (``find_leaks``, ``LeakTracer``, ``growth``, ``syscalls``) runs the command line as a process of
its own (``tracer_process`` says why); what only reads (``scan``, ``address_space``, ``check``) works in the
caller's.  Nothing changes the caller's signal handlers, limits, environment, garbage collector or mounts.

Every function raises ``EbpftraceError``: ``what`` went wrong and the ``remedy``, each one line.
Sizes are bytes; times of findings and threads are those of ``ebpftrace.model``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from ebpftrace.errors import EbpftraceError
from ebpftrace.tracer_process import TracerProcess

if TYPE_CHECKING:
    from ebpftrace.classify.host_scan import HostScan
    from ebpftrace.classify.maps_report import MapsReport
    from ebpftrace.model import Check, CommandEnd, Finding, Processes, Stack
    from ebpftrace.model import Report as ProcessReport

Pathlike = Union[str, "os.PathLike[str]"]

_EVERYTHING = 1_000_000_000
"""``--top``: nothing is left out of the report."""
_DURATION = 30.0
"""Seconds that a running process is traced for by default."""


@dataclass(frozen=True)
class Report:
    """What one trace found, in one process or several."""

    processes: tuple[ProcessReport, ...]
    """One for each process that was judged; those that were named first, then their children."""
    followed: Optional[Processes] = None
    """How many processes were followed; None where that was not asked for."""

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The leaks of all processes that neither a suppression nor the baseline accepts."""
        return tuple(finding for finding in self.findings if finding.fails)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of all processes, also what is no leak."""
        return tuple(finding for process in self.processes for finding in process.findings)

    @property
    def undecided(self) -> int:
        """Mappings and threads of which it can't be told whether they are leaked."""
        return sum(process.in_doubt for process in self.processes)

    @property
    def is_conclusive(self) -> bool:
        """Everything could be judged: then no leak among ``leaks`` means that none was there."""
        lost = self.followed is not None and self.followed.lost > 0
        return not (lost or self.undecided or any(one.losses.may_hide for one in self.processes))

    @property
    def command(self) -> Optional[CommandEnd]:
        """What became of the COMMAND that was traced; None where there was none."""
        return next((one.command for one in self.processes if one.command is not None), None)

    def to_text(self, *, width: int = 100, brief: bool = False) -> str:
        """As ``mmap-leaks`` prints it, without colours; ``width`` in columns, at least 60."""
        from ebpftrace.report import brief as short
        from ebpftrace.report import terminal
        from ebpftrace.report.view import View, chosen, last_line

        pages = []
        for one in chosen(self.processes):
            if brief:
                pages.append(short.render(one, View(), width=width))
            else:
                pages.append(terminal.render(one, View(), width=width))
        line = last_line(self.processes, self.followed) if self.followed is not None else ""
        return "\n".join([*pages, *([f"{line}\n"] if line else [])])

    def to_json(self) -> str:
        """As ``mmap-leaks --json`` prints it (schema ``ebpftrace.mmap-leaks/1``), nothing left out."""
        from ebpftrace.report import mmap_leaks_json
        from ebpftrace.report.view import View

        whole = View(top=_EVERYTHING)
        if self.followed is not None:
            return "".join(mmap_leaks_json.render_all(self.processes, self.followed, whole))
        return "".join(part for one in self.processes for part in mmap_leaks_json.render(one, whole))

    @classmethod
    def from_json(cls, path: Pathlike) -> Report:
        """Read what ``to_json`` or ``mmap-leaks --json`` wrote.

        Of the reports of ``--interval`` it has the last one of each process.  Raises EbpftraceError.
        """
        from ebpftrace.user_files import MAX_REPORT, read_text, shown

        return cls._parsed(read_text(path, MAX_REPORT), shown(path))

    @classmethod
    def _parsed(cls, text: str, name: str) -> Report:
        from ebpftrace.report import reading

        try:
            saved = reading.read(text)
        except reading.BadReport as error:
            raise EbpftraceError(f"{name} is not what mmap-leaks --json writes: {error}") from error
        reports = tuple(reading.last_reports(saved.reports))
        followed = saved.processes or next((one.processes for one in reports if one.processes), None)
        return cls(reports, followed)


def find_leaks(
    *,
    pid: Union[int, Sequence[int]] = (),
    command: Sequence[str] = (),
    duration: Optional[float] = None,
    follow_forks: Optional[bool] = None,
    threads_only: bool = False,
    suppressions: Optional[Pathlike] = None,
    baseline: Optional[Pathlike] = None,
    sudo: bool = False,
) -> Report:
    """Trace processes, or a command from its first instruction, and return what leaked.

    Args:
        pid: the process, or several; not the caller's own, which would only wait (``LeakTracer`` can).
        command: program and arguments to start in place of ``pid``; it has the caller's standard streams and
            goes on where ``duration`` ends before it.
        duration: seconds; None: 30 for ``pid``, for ``command`` until it ends.  With 0 nothing is traced:
            what has leaked so far, by glibc's thread lists.
        follow_forks: also trace child processes; None: those of ``command``.
        threads_only: trace only the creation and end of threads, which costs the system nothing.
        suppressions, baseline: files, as for the command line; ``.ebpftrace-suppressions`` of the working
            directory is used where no ``suppressions`` are given.
        sudo: run the tracer, and only it, with ``sudo -n``; not for ``command``, which it would run as root.

    Raises:
        EbpftraceError: nothing could be traced.
        TypeError: neither ``pid`` nor ``command``, or both.
    """
    pids = (pid,) if isinstance(pid, int) else tuple(pid)
    if bool(pids) == bool(command):
        raise TypeError("find_leaks needs either pid or command")
    if command and sudo:
        raise TypeError("sudo would run the command as root: give its pid")
    if os.getpid() in pids and duration != 0:
        raise EbpftraceError(
            "find_leaks would trace the process that waits for it", "use ebpftrace.LeakTracer"
        )
    options = _options(follow_forks, threads_only, suppressions, baseline)
    if command:
        return _of_command(command, duration, options)
    options += [word for one in pids for word in ("-p", str(one))]
    options += ["-d", str(_DURATION if duration is None else duration)]
    with TracerProcess(["mmap-leaks", "-q", *options], sudo=sudo) as tracer:
        return Report._parsed(tracer.output(), "the tracer's output")


def _of_command(command: Sequence[str], duration: Optional[float], options: Sequence[str]) -> Report:
    """Its standard streams are the caller's, so the report goes to a file."""
    ends = [] if duration is None else ["-d", str(duration)]
    with tempfile.TemporaryDirectory(prefix="ebpftrace-") as directory:
        file = Path(directory) / "report.json"
        arguments = ["mmap-leaks", "-q", *options, *ends, "-o", str(file), "--", *command]
        with TracerProcess(arguments, own_stdin=False) as tracer:
            status = tracer.wait()
        if not file.exists():
            raise EbpftraceError(f"the tracer exited with {status} and made no report")
        return Report.from_json(file)


class LeakTracer:
    """Traces a process while a block runs::

        with ebpftrace.LeakTracer(pid) as tracer:
            exercise(pid)
        print(tracer.report.to_text())

    The process may be the caller's own.  Tracing has begun when the block begins; the report is made at its
    end, and is not made where the block raises.
    """

    def __init__(
        self,
        pid: Optional[int] = None,
        *,
        follow_forks: bool = False,
        threads_only: bool = False,
        suppressions: Optional[Pathlike] = None,
        baseline: Optional[Pathlike] = None,
        sudo: bool = False,
    ) -> None:
        """``pid``: None is the caller's own process; the rest is as for ``find_leaks``."""
        self.pid = os.getpid() if pid is None else pid
        self._options = _options(follow_forks, threads_only, suppressions, baseline)
        self._sudo = sudo
        self._tracer: Optional[TracerProcess] = None
        self._report: Optional[Report] = None

    def start(self) -> None:
        """Begin; returns when all probes are live.  Raises EbpftraceError."""
        arguments = ["mmap-leaks", *self._options, "-p", str(self.pid), "--until-interrupt"]
        self._report = None
        tracer = TracerProcess(arguments, sudo=self._sudo)
        try:
            tracer.wait_until_attached()
        except BaseException:
            tracer.__exit__()
            raise
        self._tracer = tracer

    def stop(self) -> Report:
        """End the trace and return its report, which is ``report`` too.  Raises EbpftraceError."""
        if self._tracer is None:
            raise EbpftraceError("the tracer was not started", "call start, or use it in a with statement")
        tracer, self._tracer = self._tracer, None
        with tracer:
            tracer.stop()
            self._report = Report._parsed(tracer.output(), "the tracer's output")
        return self._report

    def cancel(self) -> None:
        """End the trace without a report."""
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.__exit__()

    @property
    def report(self) -> Report:
        """What was found.  Raises EbpftraceError while the trace goes on."""
        if self._report is None:
            raise EbpftraceError("there is no report yet", "the report is made at the end of the with block")
        return self._report

    def __enter__(self) -> LeakTracer:
        self.start()
        return self

    def __exit__(self, kind: Optional[type[BaseException]], *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.cancel()


@dataclass(frozen=True)
class GrowthCause:
    """Changes of the size of an address space by one call, from one place, by threads of one name."""

    call: str
    """``mmap``, ``mremap``, ``munmap`` or ``brk``."""
    size: int
    """Bytes, negative where it shrank."""
    mappings: int
    threads: tuple[str, ...]
    """Their names; empty if the threads are not known."""
    stack: Stack


@dataclass(frozen=True)
class Growth:
    """One interval of a process."""

    pid: int
    at: str
    """Its end; ISO 8601 with offset."""
    seconds: float
    virt: int
    """Bytes at its end, as ``rss``."""
    rss: int
    virt_change: int
    rss_change: int
    causes: Optional[tuple[GrowthCause, ...]]
    """Largest first; None where they were not looked for (the next interval has them too)."""
    unexplained: int
    """Bytes of ``virt_change`` that no cause explains."""


def growth(
    pid: int, *, interval: float = 1.0, duration: Optional[float] = None, sudo: bool = False
) -> Iterator[Growth]:
    """Say each ``interval`` seconds how a process grew, and by which calls.

    It goes on for ``duration`` seconds; None: until the process ends or the iterator is closed.
    Raises EbpftraceError.
    """
    ends = ["--until-interrupt"] if duration is None else ["-d", str(duration)]
    arguments = ["growth", "--json", "-q", "-p", str(pid), "-i", str(interval), *ends]
    with TracerProcess(arguments, sudo=sudo, pipe=True) as tracer:
        for line in tracer.lines():
            if line["kind"] == "interval":
                yield _growth(line)


def _growth(line: dict[str, Any]) -> Growth:
    from ebpftrace.report.reading import stack_of

    causes = line["causes"]
    return Growth(
        pid=line["pid"],
        at=line["at"],
        seconds=line["seconds"],
        virt=line["virt"],
        rss=line["rss"],
        virt_change=line["virt_change"],
        rss_change=line["rss_change"],
        causes=None
        if causes is None
        else tuple(
            GrowthCause(
                call=cause["call"],
                size=cause["bytes"],
                mappings=cause["mappings"],
                threads=tuple(dict.fromkeys(thread["name"] for thread in cause["threads"])),
                stack=stack_of(cause["stack"]),
            )
            for cause in causes
        ),
        unexplained=line["unexplained_bytes"],
    )


@dataclass(frozen=True)
class Syscall:
    """A system call that has returned, or exit and exit_group, which never do."""

    at: float
    """When it began, seconds since the epoch."""
    pid: int
    tid: int
    name: str
    arguments: str
    """As strace spells them."""
    returned: Optional[int]
    """None where it failed, or never returns."""
    error: Optional[str]
    """Such as ``ENOMEM``."""
    seconds: Optional[float]
    """How long it took; None where its beginning was not seen."""


def syscalls(
    pid: int,
    *,
    expression: str = "",
    min_bytes: int = 0,
    duration: Optional[float] = None,
    follow_forks: bool = True,
    sudo: bool = False,
) -> Iterator[Syscall]:
    """Yield the memory and process calls of a process as they return, in the order of time.

    ``expression`` chooses calls as ``-e trace=`` of the command line (``mmap,munmap``, ``%memory``);
    ``min_bytes`` leaves out those about fewer bytes.  It goes on for ``duration`` seconds; None: until the
    processes end or the iterator is closed.  Raises EbpftraceError; also where calls came faster than they
    could be read, when the lost ones would have come.
    """
    options = [*(["-e", f"trace={expression}"] if expression else []), "--min-bytes", str(min_bytes)]
    options += [] if duration is None else ["-d", str(duration)]
    options += [] if follow_forks else ["--no-follow-forks"]
    with TracerProcess(["trace", "--json", "-qq", "-p", str(pid), *options], sudo=sudo, pipe=True) as tracer:
        for line in tracer.lines():
            if line["kind"] == "lost":
                raise EbpftraceError(
                    f"{line['calls']} calls were lost", "choose fewer: expression, min_bytes"
                )
            if line["kind"] == "call":
                yield Syscall(
                    at=line["at"],
                    pid=line["pid"],
                    tid=line["tid"],
                    name=line["call"],
                    arguments=line["arguments"],
                    returned=line["returned"],
                    error=line["error"],
                    seconds=line["seconds"],
                )


def scan(seconds: Optional[float] = None) -> HostScan:
    """Rank the processes of this host by the signs that they leak; no tracing.

    ``seconds``: look twice, this far apart, and tell growth.  Raises EbpftraceError.
    """
    from ebpftrace.sessions import scan as job

    return job.run(seconds)


def address_space(pid: int) -> MapsReport:
    """Say what the address space of a process is made of now; no tracing.  Raises EbpftraceError."""
    from ebpftrace.sessions import maps as job

    found: list[MapsReport] = []
    job.run(pid, None, None, found.append)
    return found[0]


def check() -> list[Check]:
    """Say what this machine has and lacks for tracing, as ``ebpftrace doctor`` does.

    A program is compiled, loaded and attached for a moment, in a process of its own.
    """
    from ebpftrace.capture.checks.features import examine

    return examine()


def _options(
    follow_forks: Optional[bool],
    threads_only: bool,
    suppressions: Optional[Pathlike],
    baseline: Optional[Pathlike],
) -> list[str]:
    options = ["--json", "--top", str(_EVERYTHING)]
    if follow_forks is not None:
        options.append("--follow-forks" if follow_forks else "--no-follow-forks")
    if threads_only:
        options.append("--threads-only")
    for name, path in (("--suppressions", suppressions), ("--baseline", baseline)):
        if path is not None:
            options += [name, os.fspath(path)]
    return options
