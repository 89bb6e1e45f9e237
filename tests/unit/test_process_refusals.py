# SPDX-License-Identifier: Apache-2.0
"""What is said where /proc refuses: the way out depends on who asks, and why it refused."""

from __future__ import annotations

import errno
import os

import pytest

from ebpftrace.procfs.access import explain


def printed(code: int) -> str:
    return str(explain(OSError(code, os.strerror(code)), 7, "memory map"))


def test_a_user_is_asked_to_become_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert printed(errno.EACCES) == "not permitted to read the memory map of process 7: run as root"


def test_root_is_not_asked_to_become_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    line = printed(errno.EACCES)
    assert "run as root" not in line
    assert "CAP_SYS_PTRACE" in line


@pytest.mark.parametrize(("code", "limit"), [(errno.EMFILE, "ulimit -n"), (errno.ENFILE, "fs.file-max")])
def test_too_many_open_files_names_the_limit(code: int, limit: str) -> None:
    line = printed(code)
    assert "too many open files" in line
    assert limit in line
