#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the man pages, one for the program and one for each command, from click's definitions.

usage: man.py [DIRECTORY, default docs/man]

Sections that click does not have (exit status, overhead, files) are below.  The format is man(7).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ebpftrace import __version__
from ebpftrace.cli import COMMANDS, main

_ROOT = Path(__file__).resolve().parents[1]
_PRIVILEGES = (
    "Needs root, or CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, and Linux 5.8 or later; "
    "ebpftrace doctor says what is missing."
)
_MEASURED = "docs/performance.md has what was measured, and says how to measure it on your machine."
_LEDGER = (
    "The mappings are kept in tables in the kernel; mmap and munmap that cancel each other send nothing to "
    "the tracer. Stacks are copied some times for each call site, then only some each second. A loop that "
    "does nothing but mmap and munmap is the worst case. While any program traces system calls, every "
    f"system call on the host costs a little more, in all processes. {_MEASURED}"
)
_NO_TRACING = "Nothing is traced. Reads {what} in /proc{memory}; the process is not stopped."
_OVERHEAD = {
    "mmap-leaks": f"{_LEDGER} With -d 0 nothing is traced at all.",
    "growth": (
        f"{_LEDGER} At the end of an interval the tables are read, up to four times if the process "
        "changes its size meanwhile; that takes longer with more mappings, whatever the number of calls "
        "was. Where it would take more than a twentieth of a core it is left out at some intervals: they "
        "have no causes then, and the next one includes theirs."
    ),
    "trace": (
        "Each call that is printed is copied to the tracer, which formats it on whatever CPU is free. The "
        "filters (-e, --min-bytes, -z, -Z) work in the kernel before anything is copied; -c counts in the "
        "kernel and copies nothing. The target is never stopped, as strace(1) stops it twice for each call. "
        "Calls that come faster than they can be read are counted as lost, not waited for. "
        f"{_MEASURED}"
    ),
    "maps": _NO_TRACING.format(
        what="smaps and task", memory=", and, where permitted, some memory of the process"
    )
    + " While smaps is read, calls of the process that change its mappings may wait, as for pmap(1).",
    "scan": _NO_TRACING.format(what="a few files of every process", memory="")
    + " Processes that look suspicious are read as by ebpftrace maps.",
    "report": "Nothing is traced: only the files are read.",
    "diff": "Nothing is traced: only the files are read.",
    "doctor": "Loads and attaches one small program for a moment.",
}
_STATUS = {
    "mmap-leaks": (
        (
            "0",
            "The report was made, whether it shows a leak or not, and COMMAND, if any, ended with 0; "
            "else its status, or 128 and the signal.",
        ),
        ("3", "--fail-on-leak was given, and there is a leak, however COMMAND ended; see --leak-status."),
        ("4", "--fail-on-leak was given, and something could not be judged."),
    ),
    "report": (
        ("0", "The report was made, whether it shows a leak or not."),
        ("3", "--fail-on-leak was given, and there is a leak."),
        ("4", "--fail-on-leak was given, and something could not be judged, or the file leaves leaks out."),
    ),
    "diff": (
        ("0", "Nothing is new, and nothing grew."),
        ("3", "A leak is new or grew."),
        ("4", "That is not so, but not everything could be judged."),
    ),
    "growth": (("0", "The process was watched, whether it grew or not."),),
    "trace": (("0", "The trace was made, and COMMAND, if any, ended with 0; else its status."),),
    "maps": (("0", "The report was made."),),
    "scan": (("0", "The report was made."),),
    "doctor": (("0", "This machine can trace."), ("1", "It cannot.")),
}
_COMMON_STATUS = (
    ("1", "It could not be done; one line on standard error says why and how to fix it."),
    ("2", "Wrong usage."),
    ("130", "Interrupted before there was anything to report."),
    ("141", "The reader of standard output has gone."),
)
_ALSO = {
    "mmap-leaks": ("mmap(2)", "pthread_join(3)", "pthread_detach(3)", "proc(5)"),
    "report": ("pthread_join(3)",),
    "diff": ("pthread_join(3)",),
    "growth": ("pidstat(1)", "mmap(2)", "brk(2)"),
    "trace": ("strace(1)", "mmap(2)", "clone(2)"),
    "maps": ("pmap(1)", "proc(5)"),
    "scan": ("top(1)", "proc(5)"),
    "doctor": ("capabilities(7)", "bpf(2)"),
}


def write(directory: Path) -> None:
    """Write all pages into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ebpftrace.1").write_text(_overview(), encoding="ascii")
    for name in COMMANDS:
        (directory / f"ebpftrace-{name}.1").write_text(_page(name), encoding="ascii")


def _overview() -> str:
    lines = [*_head("ebpftrace", main), ".SH SYNOPSIS", ".B ebpftrace", r"\fICOMMAND\fP [\fIOPTIONS\fP]"]
    lines += [*_description(main), ".SH COMMANDS"]
    for name in COMMANDS:
        lines += [".TP", rf".BR ebpftrace\-{_escape(name)} (1)", _escape(_summary(_command(name)))]
    lines += [*_examples(main.help or ""), ".SH ENVIRONMENT"]
    lines += [".TP", r"\fBEBPFTRACE_DEBUG=1\fP", "Show where in the program an error comes from."]
    lines += [".TP", r"\fBNO_COLOR=1\fP", "No colours."]
    lines += _see_also([f"ebpftrace-{name}(1)" for name in COMMANDS])
    return _text(lines)


def _page(name: str) -> str:
    command = _command(name)
    lines = _head(f"ebpftrace-{name}", command)
    synopsis = command.collect_usage_pieces(_context(name, command))
    lines += [".SH SYNOPSIS", rf"\fBebpftrace {_escape(name)}\fP {_escape(' '.join(synopsis))}"]
    lines += [*_description(command), ".SH OPTIONS"]
    for parameter in command.params:
        record = parameter.get_help_record(_context(name, command))
        if record is not None and isinstance(parameter, click.Option):
            lines += [".TP", rf"\fB{_escape(record[0])}\fP", _escape(record[1])]
    lines += _examples(command.epilog or "")
    lines.append(".SH EXIT STATUS")
    own = dict(_STATUS[name])
    for status, meaning in sorted({**dict(_COMMON_STATUS), **own}.items(), key=lambda item: int(item[0])):
        lines += [".TP", rf"\fB{status}\fP", _escape(meaning)]
    lines += [".SH OVERHEAD", _escape(_OVERHEAD[name])]
    if name in ("mmap-leaks", "growth", "trace"):
        lines += [".SH PRIVILEGES", _escape(_PRIVILEGES)]
    others = [f"ebpftrace-{other}(1)" for other in COMMANDS if other != name]
    lines += _see_also(["ebpftrace(1)", *others, *_ALSO[name]])
    return _text(lines)


def _command(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


def _context(name: str, command: click.Command) -> click.Context:
    parent = click.Context(main, info_name="ebpftrace", **main.context_settings)
    return click.Context(command, info_name=name, parent=parent)


def _head(title: str, command: click.Command) -> list[str]:
    return [
        r".\" Written by scripts/man.py: edit the help in ebpftrace/cli, or that script, and run make man.",
        f'.TH {title.upper()} 1 "" "ebpftrace {__version__}" "User Commands"',
        ".SH NAME",
        rf"{_escape(title)} \- {_escape(_summary(command)[0].lower() + _summary(command)[1:].rstrip('.'))}",
    ]


def _summary(command: click.Command) -> str:
    first = (command.help or "").split("\n\n")[0]
    return " ".join(first.split())


def _description(command: click.Command) -> list[str]:
    lines = [".SH DESCRIPTION"]
    for paragraph in (command.help or "").split("\n\n"):
        if not paragraph.lstrip().startswith("\b"):
            lines += [".PP", _escape(" ".join(paragraph.split()))]
    return lines


def _examples(text: str) -> list[str]:
    """The block that click prints as it is, without its title."""
    _, found, block = text.partition("Examples:\n")
    if not found:
        return []
    shown = [line.strip() for line in block.splitlines() if line.strip()]
    return [".SH EXAMPLES", ".nf", *map(_escape, shown), ".fi"]


def _see_also(pages: list[str]) -> list[str]:
    references = []
    for page in pages:
        name, _, section = page.partition("(")
        references.append(rf"\fB{_escape(name)}\fP({section}")
    return [".SH SEE ALSO", ",\n".join(references)]


def _escape(text: str) -> str:
    """Text of ours for roff: a minus that is typed, nothing that begins a request."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT / "docs" / "man")
