# SPDX-License-Identifier: Apache-2.0
"""Every job that shows stacks says once, beside them, which code has no names, and why."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import PATIENCE, ROOT, Lines, Target


@pytest.mark.parametrize(
    "job",
    [("mmap-leaks", "--json", "--until-interrupt"), ("growth", "--json"), ("trace", "-k")],
    ids=" ".join,
)
def test_code_without_names_is_reported(tmp_path: Path, job: tuple[str, ...]) -> None:
    code = tmp_path / "code"
    with Target("nameless", code) as target:
        command = [sys.executable, "-m", "ebpftrace", *job, "-p", str(target.pid)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            printed, warned = Lines(process.stdout), Lines(process.stderr)
            try:
                assert warned.until(lambda line: line == "attached"), warned.seen
                target.run()
                process.send_signal(signal.SIGINT)
                printed.until(None)
                warned.until(None)
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()
    reported = "\n".join(printed.seen + warned.seen)
    assert reported.count(f"no function names in {code}: no ELF file that can be read") == 1
