# SPDX-License-Identifier: Apache-2.0
"""What the BPF programs keep per CPU fits on machines with pages of any size.

An element of a per-CPU map has at most 32 KiB (PCPU_MIN_UNIT_SIZE, include/linux/percpu.h); a ring buffer is
a power of two and whole pages (kernel/bpf/ringbuf.c).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from ebpftrace.capture import layout
from ebpftrace.capture.calls import layout as trace_layout
from ebpftrace.defaults import MAX_STACK_BYTES

BPF = Path(__file__).resolve().parents[2] / "bpf"
LIMIT = 32 << 10
PAGES = (4 << 10, 16 << 10, 64 << 10)
PER_CPU = r"^BPF_PERCPU_ARRAY\(\w+, (struct \w+|u64),"
HEADERS = {"ledger.c": "shared.h", "faults.c": "shared.h", "trace.c": "trace_shared.h"}


def machine(page: int) -> layout.Machine:
    return layout.Machine(page, page * 512, 256, 220, 435, 98, task_signal=8, signal_flags=8)


def constants(source: str, page: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    if source != "trace.c":
        sizes = layout.Sizes(100, 100, 100, 100, MAX_STACK_BYTES, 100)
        return layout.definitions(machine(page), sizes, True)
    btf = SimpleNamespace(member_offset=lambda *_: 8)
    monkeypatch.setattr(trace_layout, "Btf", SimpleNamespace(of_running_kernel=lambda: btf))
    return trace_layout.definitions(machine(page), trace_layout.Filters(frozenset(), stacks=True), True)


def elements(source: str) -> set[str]:
    """The types of the elements of the per-CPU maps of a program."""
    return set(re.findall(PER_CPU, (BPF / source).read_text(), re.MULTILINE))


@pytest.mark.parametrize("target", ["x86_64", "aarch64"])
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("source", list(HEADERS))
def test_records_of_each_cpu_fit(
    source: str, page: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(elements(source)) > 1
    lines = ["#include <uapi/linux/ptrace.h>", "#include <linux/types.h>", f'#include "{HEADERS[source]}"']
    lines += [f'_Static_assert(sizeof({one}) <= {LIMIT}, "{one}");' for one in sorted(elements(source))]
    clang = shutil.which("clang")
    assert clang is not None, "run scripts/setup.sh test"
    defined = [f"-D{name}={value}" for name, value in constants(source, page, monkeypatch).items()]
    command = [clang, f"--target={target}-linux-gnu", "-fsyntax-only", "-nostdinc", "-x", "c"]
    command += [*defined, f"-I{BPF}", f"-I{BPF / 'include'}", "-"]
    checked = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("source", list(HEADERS))
def test_ring_buffers_are_as_large_on_every_machine(
    source: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_4_kib = constants(source, PAGES[0], monkeypatch)
    for name, pages in constants(source, page, monkeypatch).items():
        if name.endswith("_PAGES") and name != "SMALL_PAGES":
            assert pages & (pages - 1) == 0
            assert pages * page == of_4_kib[name] * PAGES[0]
