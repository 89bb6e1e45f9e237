# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace mmap-leaks``: trace a process and report the mappings whose owner has exited."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import click

from ebpftrace.cli import known, options, outputs, pages
from ebpftrace.cli.gate import STATUS_LEAK, Floor, Gate, GateCommand
from ebpftrace.defaults import COPIES_PER_SECOND, MAX_STACK_BYTES, STACK_BYTES
from ebpftrace.units import NS

if TYPE_CHECKING:
    from ebpftrace.capture.tracer import Tracer
    from ebpftrace.known.acceptance import Acceptance
    from ebpftrace.model import CommandEnd, Processes, Report, UnjoinedBefore
    from ebpftrace.report.live import LiveView
    from ebpftrace.report.output import Growing
    from ebpftrace.report.view import View
    from ebpftrace.sessions.leak_watch import LeakWatch

_DURATION = 30.0
"""Seconds that a running process is traced for."""

_MAX_CLEAN = 100
"""Limit of reports of followed processes that are kept for JSON although they have no findings."""

_LIVE_SECONDS = 1.0
"""Time between two drawings of the live view."""
_LIVE_SHARE = 0.02
"""Share of a core that the live view may use."""

_BAR_AFTER_SECONDS = 2.0
"""A search that takes longer shows a progress bar."""
_BAR_SECONDS = 0.1
"""Time between two drawings of the progress bar."""
_BAR_CELLS = 30
"""Width of the progress bar."""

_EXAMPLES = """
\b
Examples:
  ebpftrace mmap-leaks -p 31108                   trace for 30 seconds, then report
  ebpftrace mmap-leaks -p 31108 -d 300 -i 60      five minutes, a report each minute
  ebpftrace mmap-leaks -p 31108 -d 0              what has leaked so far, by glibc's thread lists; no tracing
  ebpftrace mmap-leaks -p 31108 --json -o r.json  for machines
  ebpftrace mmap-leaks --fail-on-leak -- ./server --once
                                                  start a command, trace it from its first instruction
"""


@click.command("mmap-leaks", epilog=_EXAMPLES, cls=GateCommand)
@options.pids
@options.by_name("-n", "--name")
@options.duration(f"How long to trace; default: {_DURATION:g}, COMMAND until it has ended.", zero=True)
@click.option("--until-interrupt", is_flag=True, help="Trace until Ctrl-C or SIGTERM instead.")
@options.follow_forks("Trace child processes too")
@click.option(
    "--threads-only",
    is_flag=True,
    help="Trace the creation and end of threads and no system call, which costs other programs nothing: "
    "finds leaks of thread stacks only.",
)
@click.option(
    "-i",
    "--interval",
    type=options.Seconds(min=0, min_open=True),
    metavar="TIME",
    help="Also make a report at this interval.",
)
@click.option(
    "--min-age",
    type=options.Seconds(min=0),
    default=1.0,
    show_default=True,
    metavar="TIME",
    help="Without a search of memory, do not judge owners that exited more recently: a join may follow.",
)
@pages.options
@click.option(
    "--leak-status",
    type=click.IntRange(1, 255),
    default=STATUS_LEAK,
    show_default=True,
    metavar="N",
    help="What --fail-on-leak exits with on a leak.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the report.")
@click.option("--no-color", is_flag=True, help="No colours (also NO_COLOR=1).")
@click.option(
    "--max-mappings",
    type=click.IntRange(min=1),
    metavar="N",
    help="Mappings that the kernel tables can hold; default: 262,144, or four times those of the processes.",
)
@click.option(
    "--stack-bytes",
    type=click.IntRange(min=0, max=MAX_STACK_BYTES),
    metavar="BYTES",
    default=STACK_BYTES,
    show_default=True,
    help="How much of a stack is copied, in whole pages; 0: no stacks.",
)
@click.option(
    "--stack-rate",
    type=click.IntRange(min=0),
    metavar="N",
    default=COPIES_PER_SECOND,
    show_default=True,
    help="How many known stacks are copied again each second, to check them.",
)
@click.option(
    "--search-limit",
    type=options.Size(),
    metavar="SIZE",
    help="Search at most this much memory of the target for handles and pointers, such as 4GiB.",
)
@click.option(
    "--no-search",
    is_flag=True,
    help="Do not search the memory of the target: then nothing is proved while it runs.",
)
@click.option(
    "--cost",
    is_flag=True,
    help="Also report how long the BPF programs ran; measuring makes each run a little longer.",
)
@options.debuginfod
@options.probes
@click.option("--dump-ledger", type=click.Path(path_type=Path), hidden=True)
@options.command_line
@click.pass_context
def mmap_leaks(
    context: click.Context,
    pids: tuple[int, ...],
    names: tuple[str, ...],
    cgroups: tuple[str, ...],
    duration: Optional[float],
    until_interrupt: bool,
    follow_forks: Optional[bool],
    threads_only: bool,
    interval: Optional[float],
    min_age: float,
    min_bytes: int,
    top: int,
    show: str,
    brief: bool,
    json_output: bool,
    folded: bool,
    flamegraph: Optional[Path],
    speedscope: Optional[Path],
    output: Optional[Path],
    suppressions: tuple[Path, ...],
    baseline: Optional[Path],
    write_baseline: Optional[Path],
    fail_on_leak: Optional[Floor],
    leak_status: int,
    quiet: bool,
    no_color: bool,
    max_mappings: Optional[int],
    stack_bytes: int,
    stack_rate: int,
    search_limit: Optional[int],
    no_search: bool,
    cost: bool,
    debuginfod: bool,
    probes: str,
    dump_ledger: Optional[Path],
    command: tuple[str, ...],
    junit: Optional[Path],
    sarif: Optional[Path],
    annotations: Optional[Path],
    pprof: Optional[Path],
    timeline: Optional[Path],
    repository: Optional[Path],
) -> None:
    """Report mappings that are still there although their owner thread has exited.

    The address space of a running process is traced for a while, or that of COMMAND from its first
    instruction.  The process is never stopped.

    The exit status is that of COMMAND, 128 and the signal where one ended it.  With -d, COMMAND goes on when
    the trace ends before it.

    With --fail-on-leak, the status of a leak comes before that of COMMAND; the one of what could not be
    judged is used where COMMAND ended with 0.
    """
    pids = options.find_processes(pids, names, cgroups, command)
    options.check_duration(context, until_interrupt)
    extra = outputs.Outputs(junit, sarif, annotations, pprof, timeline, repository)
    options.check_files(
        output=output,
        flamegraph=flamegraph,
        speedscope=speedscope,
        dump_ledger=dump_ledger,
        write_baseline=write_baseline,
        **extra.paths,
    )
    form = pages.form_of(brief=brief, json=json_output, folded=folded)
    if until_interrupt:
        duration = None
    elif duration is None and not command:
        duration = _DURATION
    is_traced = bool(command) or duration != 0
    if threads_only and not is_traced:
        raise click.UsageError("-d 0 traces nothing, not even threads: leave out --threads-only")
    if interval is not None and not is_traced:
        raise click.UsageError("-d 0 traces nothing, so there is no -i TIME: give one of them")
    if len(pids) > 1 and (flamegraph or speedscope):
        raise click.UsageError("--flamegraph and --speedscope show one process: give one -p")

    from ebpftrace.capture.checks.features import require_tracing
    from ebpftrace.capture.layout import Probes
    from ebpftrace.sessions.mmap_leaks import Settings, run

    settings = Settings(
        pids=pids,
        command=command,
        duration=duration,
        interval=interval,
        min_age=round(min_age * NS),
        max_mappings=max_mappings,
        stack_bytes=stack_bytes,
        copies_per_second=stack_rate,
        search=not no_search,
        search_limit=search_limit,
        follow_forks=follow_forks,
        threads_only=threads_only,
        measure_cost=cost,
        debuginfod=debuginfod,
        probes=Probes(probes),
    )
    view = pages.view_of(context, top, show, min_bytes)
    acceptance = known.load(suppressions, baseline)
    files = _Files(output, flamegraph, speedscope, dump_ledger, write_baseline, extra)
    files.check()
    if is_traced:
        require_tracing()
    gate = Gate(fail_on_leak, leak_status)
    with _Console(form, view, files, quiet, no_color, gate, acceptance, several=len(pids) > 1) as console:
        run(settings, console)
        console.write_files()
    if not quiet:
        known.print_unused(acceptance)
    if gate.fails_by_earlier and not quiet:
        click.echo("ebpftrace: an earlier report of this trace shows a leak", err=True)
    status = gate.status(console.command)
    if status:
        raise click.exceptions.Exit(status)


@dataclass(frozen=True)
class _Files:
    """The files to write; None for those that were not requested."""

    output: Optional[Path]
    flamegraph: Optional[Path]
    speedscope: Optional[Path]
    ledger: Optional[Path]
    baseline: Optional[Path]
    extra: outputs.Outputs

    def check(self) -> None:
        """Check before a trace of minutes that all files can be written.  Raises ``CannotTrace``."""
        named = (self.output, self.flamegraph, self.speedscope, self.ledger, self.baseline)
        for path in (*named, *self.extra.paths.values()):
            if path is not None:
                from ebpftrace.report.output import check_writable

                check_writable(str(path))


class _Console:
    """Shows the progress and the reports: the observer of ``sessions.mmap_leaks``, a context manager."""

    def __init__(
        self,
        form: str,
        view: View,
        files: _Files,
        quiet: bool,
        no_color: bool,
        gate: Gate,
        acceptance: Acceptance,
        *,
        several: bool,
    ) -> None:
        self.command: Optional[CommandEnd] = None
        """The end of COMMAND, once it is known."""
        self._gate = gate
        self._acceptance = acceptance
        self._last: list[Report] = []
        """The final report of each process, for the files about all of them."""
        self._rendered = pages.Pages(form, view, files.output, no_color, repeats_verdict=True)
        self._files = files
        self._quiet = quiet
        self._no_color = no_color
        self._several = several
        self._output: Optional[Growing] = None
        self._live: Optional[LiveView] = None
        self._next_drawing = 0.0
        self._search_began: Optional[float] = None
        self._next_bar = 0.0
        self._bar_shown = False
        self._held: list[Report] = []
        """Final reports of processes, until all have ended."""
        self._unread = 0
        """Number of these reports that have no findings."""

    def __enter__(self) -> _Console:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_live()
        if self._output is not None:
            self._output.close()

    def attached(self, watches: Sequence[LeakWatch]) -> None:
        """Say that the probes are live."""
        for watch in watches:
            watch.keeps_ledger = self._files.ledger is not None
        if not self._quiet:
            click.echo("attached", err=True)

    def unjoined_before(self, unjoined_before: UnjoinedBefore) -> None:
        """Print how many threads had exited unjoined before the trace."""
        from ebpftrace.report.headline import unjoined_before_line
        from ebpftrace.text import escape

        line = unjoined_before_line(unjoined_before)
        if line and not self._quiet:
            target = unjoined_before.target
            whose = f"{escape(target.comm)} (PID {target.pid}): " if self._several else ""
            click.echo(f"{whose}{line}", err=True)

    def searching(self, part: float) -> None:
        """Draw a progress bar on a terminal, from two seconds on."""
        now = time.monotonic()
        if part <= 0 or self._search_began is None:
            self._end_live()
            self._search_began = now
        from ebpftrace.report.output import can_redraw

        if self._quiet or not can_redraw(sys.stderr):
            return
        if part >= 1:
            if self._bar_shown:
                click.echo("\r\x1b[K", nl=False, err=True)
            self._bar_shown, self._search_began = False, None
        elif now - self._search_began >= _BAR_AFTER_SECONDS and now >= self._next_bar:
            self._next_bar = now + _BAR_SECONDS
            self._bar_shown = True
            done = round(part * _BAR_CELLS)
            bar = "#" * done + "." * (_BAR_CELLS - done)
            click.echo(f"\rsearching memory [{bar}] {part:4.0%}", nl=False, err=True)

    def command_ended(self, end: CommandEnd) -> None:
        """Print how COMMAND ended."""
        from ebpftrace.sessions.command import how_it_ended

        self._end_live()
        self.command = end
        ending = how_it_ended(end)
        if ending and not self._quiet:
            click.echo(f"ebpftrace: {ending}", err=True)

    def progress(self, watches: Sequence[LeakWatch], tracer: Tracer, seconds_left: Optional[float]) -> None:
        """Draw the live view, now and then."""
        from ebpftrace.report.output import can_redraw

        # This is checked before rich is imported, which takes 2 MiB.
        if self._quiet or not can_redraw(sys.stderr):
            return
        live = self._live = self._live or self._begin_live()
        began = time.monotonic()
        if began < self._next_drawing:
            return
        live.update([watch.live_state(tracer, seconds_left) for watch in watches if watch.begun])
        took = time.monotonic() - began
        self._next_drawing = began + max(_LIVE_SECONDS, took / _LIVE_SHARE)

    def reporting(self, areas: int) -> None:
        """Say that the trace has ended, before a report that takes long."""
        from ebpftrace.text import count

        self._end_live()
        if not self._quiet:
            click.echo(
                f"ebpftrace: the trace is over; the report of {count(areas)} VMAs takes some seconds, "
                "and a further Ctrl-C or SIGTERM ends ebpftrace without it",
                err=True,
            )

    def report(self, report: Report, watch: LeakWatch) -> None:
        """Write one report."""
        from ebpftrace.model import EndedBy
        from ebpftrace.report import graphs, ledger_dump, output
        from ebpftrace.report.view import is_worth_showing

        if report.ended_by is not EndedBy.INTERVAL:
            self._end_live()
        report = self._acceptance.accept(report, watch.serial)
        if report.ended_by is not EndedBy.INTERVAL and self._keeps_reports and self._is_kept(report):
            self._last.append(report)
        self._gate.add(watch.serial, report)
        if report.ended_by is EndedBy.INTERVAL or watch.space < 0:
            self._write(self._rendered.page(report))
        elif self._is_kept(report):
            self._held.append(report)
            self._unread += report.is_child and not is_worth_showing(report)
        if report.is_child:
            return
        if self._files.flamegraph is not None:
            output.write(str(self._files.flamegraph), graphs.flamegraph(report))
        if self._files.speedscope is not None:
            output.write(str(self._files.speedscope), graphs.speedscope(report))
        if self._files.ledger is not None:
            output.write(str(self._files.ledger), ledger_dump.render(report, watch.ledger_mappings))

    def write_files(self) -> None:
        """Write the files about all processes."""
        self._files.extra.write(self._last)
        known.write_baseline(self._files.baseline, self._last)

    @property
    def _keeps_reports(self) -> bool:
        return self._files.baseline is not None or self._files.extra.any

    def _is_kept(self, report: Report) -> bool:
        from ebpftrace.report.view import is_worth_showing

        return not report.is_child or self._unread < _MAX_CLEAN or is_worth_showing(report)

    def followed(self, processes: Processes) -> None:
        """Write the final reports of all processes."""
        self._gate.has_lost = processes.lost > 0
        reports = sorted(self._held, key=lambda report: report.is_child)
        self._write(self._rendered.document(reports, processes))

    def _write(self, pages: Iterable[str]) -> None:
        from ebpftrace.report import output

        if self._files.output is None:
            output.write_stream(sys.stdout, pages)
        else:
            self._output = self._output or output.Growing(str(self._files.output))
            self._output.add(pages)

    def _begin_live(self) -> LiveView:
        from ebpftrace.report.live import LiveView
        from ebpftrace.report.output import use_color

        live = LiveView(sys.stderr, color=use_color(sys.stderr, self._no_color))
        live.__enter__()
        return live

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None
