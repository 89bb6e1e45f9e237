# SPDX-License-Identifier: Apache-2.0
"""Our numbers of system calls are those of the headers of this machine."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from ebpftrace import syscall_numbers
from ebpftrace.strace.selection import CALLS


@pytest.mark.skipif(shutil.which("cc") is None, reason="cc is not installed")
def test_numbers_are_those_of_the_headers() -> None:
    result = subprocess.run(
        ["cc", "-E", "-dM", "-include", "asm/unistd.h", "-x", "c", "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
    )
    of_headers = dict(re.findall(r"^#define __NR_(\w+) (\d+)$", result.stdout, re.MULTILINE))
    assert {name: str(number) for name, number in syscall_numbers.numbers().items()} == {
        name: of_headers[name] for name in syscall_numbers.numbers()
    }


@pytest.mark.parametrize("machine", syscall_numbers.NUMBERS)
def test_every_machine_has_all_calls_but_old_ones(machine: str) -> None:
    """arm64 never had them."""
    wanted = {*CALLS, "bpf", "futex", "kcmp"}
    assert wanted - set(syscall_numbers.NUMBERS[machine]) == (
        set() if machine == "x86_64" else {"fork", "vfork"}
    )


def test_a_machine_that_is_not_known_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert syscall_numbers.numbers() == {}
