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
    shared.top("Most findings to show; if given, also most mappings of each in JSON."),
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
    """Options for the contents, format and files of a report, for accepted leaks, and for the exit status."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def view_of(context: click.Context, top: int, show: str, min_bytes: int) -> View:
    """What the options ask to see.

    ``--top`` shortens the lists of mappings in JSON only if it is given: by default all are there, as ever.
    """
    from ebpftrace.report.view import View

    most = top if shared.is_given(context, "top") else None
    return View(top=top, show_all=show == "all", min_bytes=min_bytes, most_mappings=most)


def form_of(*, brief: bool, json: bool, folded: bool) -> str:
    """The name of the chosen format, by default ``text``.  Raises ``click.UsageError``."""
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
        """``form`` is of ``form_of``; ``repeats_verdict`` adds it at the end of a long page on a terminal."""
        self._form = form
        self._view = view
        self._output = output
        self._no_color = no_color
        self._repeats_verdict = repeats_verdict
        self._number = 0

    def page(self, report: Report) -> Iterable[str]:
        """Render one report."""
        if self._form == "json":
            from ebpftrace.report import mmap_leaks_json

            return mmap_leaks_json.render(report, self._view)
        if self._form == "folded":
            from ebpftrace.report import graphs

            return (graphs.folded(report),)
        from ebpftrace.report import brief, terminal
        from ebpftrace.report.output import page_width, use_color

        # A terminal may have become narrower since the page before.
        width = page_width(sys.stdout, self._output)
        self._number += 1
        isolated = "\n" if self._number > 1 else ""
        if self._form == "brief":
            return (isolated, brief.render(report, self._view, width=width))
        on_stdout = self._output is None
        color = on_stdout and use_color(sys.stdout, self._no_color)
        again = self._repeats_verdict and on_stdout and sys.stdout.isatty()
        return (isolated, terminal.render(report, self._view, width=width, color=color, verdict_again=again))

    def document(self, reports: Sequence[Report], processes: Processes) -> Iterator[str]:
        """Render the final reports of all processes; those that the user named come first."""
        from ebpftrace.report import mmap_leaks_json
        from ebpftrace.report.view import chosen, last_line

        if self._form == "json" and any(report.is_child for report in reports):
            yield from mmap_leaks_json.render_all(reports, processes, self._view)
            return
        shown = reports if self._form in ("json", "folded") else chosen(reports)
        for report in shown:
            yield from self.page(replace(report, processes=processes))
        line = last_line(reports, processes)
        if line and self._form in ("text", "brief"):
            yield f"\n{line}\n"
