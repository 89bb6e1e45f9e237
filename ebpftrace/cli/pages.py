# SPDX-License-Identifier: Apache-2.0
"""What mmap-leaks prints of reports, of a trace or saved ones: the options for it, and the pages."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import click

from ebpftrace.cli import gate, known, outputs
from ebpftrace.cli import options as shared

if TYPE_CHECKING:
    from ebpftrace.model import Processes, Report
    from ebpftrace.report.view import View

_OPTIONS = (
    shared.min_bytes("Leave out findings with fewer bytes."),
    shared.top("Most findings to show."),
    click.option(
        "--show",
        type=click.Choice(["all", "leaks"]),
        default="all",
        show_default=True,
        help="What to report.",
    ),
    click.option("--brief", is_flag=True, help="Report in at most 20 lines for each process."),
    click.option("--json", "json_output", is_flag=True, help="Report as JSON, one object for each report."),
    click.option("--folded", is_flag=True, help="Report as folded stacks, weighted by leaked bytes."),
    shared.file(
        "--flamegraph",
        metavar="FILE.html",
        purpose="Also write a flame graph of leaked bytes, one self-contained page.",
    ),
    shared.file(
        "--speedscope",
        metavar="FILE.json",
        purpose="Also write the leaked bytes as a profile for speedscope.",
    ),
    outputs.files,
    shared.output(shared.WHOLE),
    known.suppressions,
    known.baselines,
    gate.fail_on_leak,
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is shown, in which form and files, what is accepted, and when the exit status tells of a leak."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def form_of(*, brief: bool, json: bool, folded: bool) -> str:
    """``text``, or the one that was asked for.  Raises click.UsageError."""
    forms = [name for name, given in (("brief", brief), ("json", json), ("folded", folded)) if given]
    if len(forms) > 1:
        raise click.UsageError(f"--{forms[0]} and --{forms[1]} exclude each other: give one of them")
    return forms[0] if forms else "text"


class Pages:
    """Renders reports, one page after the other."""

    def __init__(
        self,
        form: str,
        view: View,
        output: Optional[Path],
        no_color: bool,
        *,
        repeats_verdict: bool = False,
    ) -> None:
        """``form`` as of ``form_of``; ``repeats_verdict``: at the end of a long page on a terminal."""
        self._form = form
        self._view = view
        self._output = output
        self._no_color = no_color
        self._repeats_verdict = repeats_verdict
        self._number = 0

    def page(self, report: Report) -> Iterable[str]:
        """One report."""
        if self._form == "json":
            from ebpftrace.report import mmap_leaks_json

            return mmap_leaks_json.render(report, self._view)
        if self._form == "folded":
            from ebpftrace.report import folded

            return (folded.render(report),)
        from ebpftrace.report import brief, terminal
        from ebpftrace.report.output import page_width, use_color

        # A terminal may have become narrower since the page before.
        width = page_width(sys.stdout, self._output)
        self._number += 1
        apart = "\n" if self._number > 1 else ""
        if self._form == "brief":
            return (apart, brief.render(report, self._view, width=width))
        on_stdout = self._output is None
        color = on_stdout and use_color(sys.stdout, self._no_color)
        again = self._repeats_verdict and on_stdout and sys.stdout.isatty()
        return (apart, terminal.render(report, self._view, width=width, color=color, verdict_again=again))

    def document(self, reports: Sequence[Report], processes: Processes) -> Iterator[str]:
        """The reports of all processes at their ends, those first that the user named."""
        from ebpftrace.report import mmap_leaks_json
        from ebpftrace.report.family import chosen, last_line

        if self._form == "json" and any(report.is_child for report in reports):
            yield from mmap_leaks_json.render_all(reports, processes, self._view)
            return
        shown = reports if self._form in ("json", "folded") else chosen(reports)
        for report in shown:
            yield from self.page(replace(report, processes=processes))
        line = last_line(reports, processes)
        if line and self._form in ("text", "brief"):
            yield f"\n{line}\n"
