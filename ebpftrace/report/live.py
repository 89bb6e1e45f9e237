# SPDX-License-Identifier: Apache-2.0
"""The live view of a running trace: one panel on a terminal, nothing on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ebpftrace.report.live_state import LiveState
from ebpftrace.report.output import can_redraw, terminal_columns
from ebpftrace.text import change, count, duration, escape, plural, shorten, size

_NAME_WIDTH = 40


class LiveView:
    """A panel on ``stream`` (standard error) that ``update`` redraws; it leaves no trace at exit.

    It does nothing unless ``stream`` is a terminal that can move its cursor.  It draws only in ``update``,
    and starts no thread.
    """

    def __init__(self, stream: TextIO, *, color: bool) -> None:
        self._stream = stream
        self._live: Optional[Live] = None
        if can_redraw(stream):
            console = Console(
                file=stream,
                no_color=not color,
                markup=False,
                emoji=False,
                highlight=False,
                legacy_windows=False,
            )
            self._live = Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> LiveView:
        self._draw(lambda live: live.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._draw(lambda live: live.stop())
        self._live = None

    def update(self, states: Sequence[LiveState]) -> None:
        """Show these figures, one panel for each process."""
        self._draw(lambda live: self._show(live, Group(*map(panel, states))))

    def _show(self, live: Live, panels: Group) -> None:
        live.console.width = terminal_columns(self._stream)  # which may have changed
        live.update(panels, refresh=True)

    def _draw(self, step: Callable[[Live], None]) -> None:
        if self._live is None:
            return
        try:
            step(self._live)
        except OSError:
            # The terminal is gone (a closed ssh session): that must not end the trace.
            self._live = None


def panel(state: LiveState) -> Table:
    """The panel: a line of labels and figures for each subject."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    name = shorten(escape(state.comm), _NAME_WIDTH)
    if state.remaining is None:
        left = f"{duration(state.elapsed)} so far, Ctrl-C ends it"
    else:
        left = f"{duration(round(max(state.remaining, 0)))} left, Ctrl-C ends it now"
    grid.add_row("tracing", Text(f"{name} (PID {state.pid}), {left}"))
    memory = state.memory
    grid.add_row(
        "memory",
        Text(
            f"VIRT {size(memory.virt_end)} ({change(memory.virt_start, memory.virt_end) or '?'}), "
            f"RSS {size(memory.rss_end)} ({change(memory.rss_start, memory.rss_end) or '?'})"
        ),
    )
    if state.threads_only:
        created = plural(state.threads_created, "thread")
        grid.add_row("threads", Text(f"{created} created, {count(state.threads_exited)} exited"))
    else:
        grid.add_row(
            "mappings",
            Text(
                f"{count(state.outstanding)} outstanding ({size(state.outstanding_bytes)}); "
                f"{count(state.mmap)} mmap, {count(state.munmap)} munmap calls"
            ),
        )
        orphaned = f"{plural(state.orphaned, 'mapping')} ({size(state.orphaned_bytes)}) of exited threads"
        grid.add_row("orphaned", Text(orphaned, style="bold red" if state.orphaned else ""))
    if state.lost:
        grid.add_row("LOST", Text(f"{count(state.lost)} events and mappings", style="bold yellow"))
    else:
        grid.add_row("lost", Text("nothing"))
    return grid
