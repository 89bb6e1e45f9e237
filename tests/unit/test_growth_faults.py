# SPDX-License-Identifier: Apache-2.0
"""Where the kernel refuses perf events, ``growth`` runs without them, unless they were asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import cast

import pytest

from ebpftrace.capture import faults
from ebpftrace.capture.loader import Loading
from ebpftrace.errors import CannotTrace
from ebpftrace.sessions.growth import Settings, sample_faults


class Refused:
    def __init__(self, *_: object) -> None:
        raise CannotTrace("page faults can't be counted: no", "--no-rss leaves it out")


def test_a_note_says_that_page_faults_cannot_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "FaultSampler", Refused)
    loading = cast(Loading, None)
    with ExitStack() as held:
        sampler, note = sample_faults(Settings(1, None, fault_period=32), loading, [1], held)
        assert sampler is None
        assert "which code fills memory is not known: page faults can't be counted: no" in note
        with pytest.raises(CannotTrace):
            sample_faults(Settings(1, None, fault_period=32, needs_faults=True), loading, [1], held)
