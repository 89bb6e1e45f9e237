# SPDX-License-Identifier: Apache-2.0
"""Work in a thread, also where no thread can be started any more when it begins."""

from __future__ import annotations

import threading

import pytest

from ebpftrace.capture.sources import Background


def no_start(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_work_that_begins_later_needs_no_new_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    later = Background[str]()
    monkeypatch.setattr(threading.Thread, "start", no_start)
    with pytest.raises(RuntimeError):
        Background(lambda: "at once")
    later.begin(lambda: threading.current_thread().name)
    assert later.wait() == "background"


def test_what_the_work_raises_is_raised_by_wait() -> None:
    def fail() -> None:
        raise KeyError("lost")

    later = Background[None]()
    later.begin(fail)
    for background in (Background(fail), later):
        with pytest.raises(KeyError, match="lost"):
            background.wait()
