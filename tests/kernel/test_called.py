# SPDX-License-Identifier: Apache-2.0
"""What a thread library was given to call, read when the thread is created."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import TARGETS, Program, Tracer
from stacks_helpers import compile_target

TEXT = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >"
TOLD = sorted(
    [
        [["shop::refresh_prices(int)", 4]],
        [["shop::refresh_prices(int)", 2], ["shop::send_mail(int)", 2]],
        [[f"shop::with_text({TEXT}, int, void (*)(int))", 4]],
        [["shop::Cart::pay(int) const", 4]],
        # Of what is too large to be read nothing is said, and a lambda is named by its type.
        [],
        [],
    ]
)


@pytest.mark.parametrize("options", [("-O0",), ("-O2", "-g")], ids=" ".join)
def test_functions_that_threads_were_started_with(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = TARGETS / "called.cpp"
    binary = compile_target(tmp_path / "called", "c++", *options, str(source), "-pthread")
    with Program(binary) as target:
        with Tracer("-p", target.pid, "--until-interrupt", "--min-age", 0) as tracer:
            target.run()
            result = tracer.interrupt()
        target.end()
    assert result.status == 0, result.stderr
    found = [finding for finding in result.report["findings"] if finding["start_routine"]]
    told = [sorted([one["function"], one["count"]] for one in finding["called"]) for finding in found]
    assert sorted(told) == TOLD, json.dumps(found, indent=1)
    assert [finding["calls"] for finding in found if finding["calls"]] == [
        finding["calls"] for finding in found if finding["calls"] and "lambda" in finding["calls"]
    ]
