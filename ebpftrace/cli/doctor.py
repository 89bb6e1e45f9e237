# SPDX-License-Identifier: Apache-2.0
"""``ebpftrace doctor``: what this machine has and lacks for tracing."""

from __future__ import annotations

import click

_EXAMPLES = """
\b
Examples:
  ebpftrace doctor                      what is missing, and the command that fixes it
  ebpftrace doctor && ebpftrace mmap-leaks -p 31108
  ebpftrace doctor --json | jq '.checks[] | select(.ok | not)'
"""


@click.command("doctor", epilog=_EXAMPLES)
@click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(ctx: click.Context, json_output: bool) -> None:
    """Say what this machine has and lacks for tracing, and how to fix it.

    Exits with status 0 if it can trace, 1 if not.  Nothing is changed.
    """
    from ebpftrace import api
    from ebpftrace.report.doctor import as_json, as_text, can_trace

    checks = api.check()
    click.echo(as_json(checks) if json_output else as_text(checks))
    ctx.exit(0 if can_trace(checks) else 1)
