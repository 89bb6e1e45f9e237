# SPDX-License-Identifier: Apache-2.0
"""The conditions of a measurement, which are needed to repeat it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ebpftrace import __version__

_VERSIONS = (
    ("strace", "-V"),
    ("perf", "--version"),
    ("bpftrace", "--version"),
    ("redis-server", "--version"),
)


def conditions(rounds: int, seconds: float) -> dict[str, str]:
    """The machine, and how the table is measured: so many rounds of slices of so many seconds."""
    return {
        "kernel": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "?"),
        "CPUs": f"{os.cpu_count()}, {_cpu_model()}",
        "rounds": f"{rounds} of {seconds:g} s, each against the same process untraced just before and after",
        "shown": "median (lowest-highest) of the ratios; 1.00: as fast as untraced; ~: with noise",
        "versions": ", ".join([f"ebpftrace {__version__}", *map(_version, _VERSIONS)]),
    }


def moment() -> str:
    """When, and how busy the machine was just before."""
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, load averages before: {load}"


def elsewhere(recorded: Mapping[str, str], here: Mapping[str, str]) -> str:
    """What to say of a part that is measured here, where the rest was measured on another machine."""
    machine = ("CPUs", "kernel")
    is_another = any(recorded.get(name, here[name]) != here[name] for name in machine)
    return "; on another machine: " + ", ".join(here[name] for name in machine) if is_another else ""


def _version(command: Sequence[str]) -> str:
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return f"no {command[0]}"
    return printed.partition("\n")[0].partition(" sha=")[0]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "?"
