# SPDX-License-Identifier: Apache-2.0
"""What a thread library was given to call, read when the thread is created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import TARGETS, Program, Tracer
from stacks_helpers import compile_target

TEXT = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >"
NAMED = sorted(
    [
        [["shop::refresh_prices(int)", 4]],
        [["shop::refresh_prices(int)", 2], ["shop::send_mail(int)", 2]],
        [[f"shop::with_text({TEXT}, int, void (*)(int))", 4]],
        [["shop::Cart::pay(int) const", 4]],
        # Of what is too large to be read nothing is said.
        [],
    ]
)
LAMBDA: list[list[object]] = []
"""It is named by its type, which the frames show (``calls``)."""
INLINED_LAMBDA = [["main::{lambda()#1}", 4]]
"""No frame shows the type, but the thread's state does."""


@pytest.mark.parametrize(
    ("options", "of_lambda"),
    [(("-O0",), LAMBDA), (("-O2", "-g"), LAMBDA), (("-O2",), INLINED_LAMBDA)],
)
def test_functions_that_threads_were_started_with(
    tmp_path: Path, options: tuple[str, ...], of_lambda: list[list[object]]
) -> None:
    source = TARGETS / "called.cpp"
    binary = compile_target(tmp_path / "called", "c++", *options, str(source), "-pthread")
    with Program(binary) as target:
        with Tracer("-p", target.pid, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        target.end()
    assert result.status == 0, result.stderr
    found = [finding for finding in result.report["findings"] if finding["start_routine"]]
    reported = [sorted([one["function"], one["count"]] for one in finding["called"]) for finding in found]
    assert sorted(reported) == sorted([*NAMED, of_lambda]), json.dumps(found, indent=1)
    assert [finding["calls"] for finding in found if finding["calls"]] == [
        finding["calls"] for finding in found if finding["calls"] and "lambda" in finding["calls"]
    ]
