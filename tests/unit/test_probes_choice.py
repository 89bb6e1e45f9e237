# SPDX-License-Identifier: Apache-2.0
"""The preemption model of a kernel, from what it shows: uname's version, debugfs, command line, config."""

from __future__ import annotations

from typing import Optional

import pytest

from ebpftrace.capture.probes import preemption

DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian 6.12.118-1 (2026-09-01)"


@pytest.mark.parametrize(
    ("version", "switch", "command_line", "config", "model"),
    [
        ("#1 SMP Debian 5.10.0-46 (2026-08-01)", "", "", "", "none"),
        ("#1 SMP PREEMPT Debian", "", "quiet", "CONFIG_PREEMPT=y\n", "full"),
        ("#1 SMP PREEMPT Debian", "", "", "CONFIG_PREEMPT_LAZY=y\n", "lazy"),
        ("#1 SMP PREEMPT_RT Debian", "(none) full", "preempt=none", "", "rt"),
        (DYNAMIC, "none (voluntary) full \n", "preempt=full", "CONFIG_PREEMPT=y\n", "voluntary"),
        (DYNAMIC, "none voluntary full (lazy)\n", "", "", "lazy"),
        (DYNAMIC, "", "quiet preempt=full preempt=none", "CONFIG_PREEMPT_VOLUNTARY=y\n", "none"),
        (
            DYNAMIC,
            "",
            "nopreempt=full",
            "CONFIG_PREEMPT_DYNAMIC=y\nCONFIG_PREEMPT_VOLUNTARY=y\n",
            "voluntary",
        ),
        (DYNAMIC, "", "", "# CONFIG_PREEMPT_NONE is not set\nCONFIG_PREEMPT=y\n", "full"),
        (DYNAMIC, "", "", "", None),
    ],
)
def test_preemption(version: str, switch: str, command_line: str, config: str, model: Optional[str]) -> None:
    assert preemption(version, switch, command_line, config) == model
