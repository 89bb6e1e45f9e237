# SPDX-License-Identifier: Apache-2.0
"""Each leak at its own site, also where two sites differ in little and leak at full speed."""

from __future__ import annotations

import pytest
from harness import Target, leaks, no_losses, traced


@pytest.mark.parametrize("count", [10, 400, 10_000])
def test_siblings_are_not_swapped(count: int) -> None:
    with Target("siblings", count) as target, traced(target, "--min-age", 0) as tracer:
        target.run()
        report = tracer.interrupt().report
    assert no_losses(report), report["losses"]
    found = {}
    for finding in leaks(report):
        functions = [frame["function"] for frame in finding["stack"]["frames"]]
        assert functions[functions.index("create") + 2] == "main"
        site = functions[functions.index("create") + 1]
        assert site not in found, "one site, one finding"
        found[site] = sorted(mapping["owner_tid"] for mapping in finding["mappings"])
    for site in ("left", "right"):
        # No set: of 20,000 tids some come twice, where others start threads too and there are 32,768.
        truth = sorted(fact["tid"] for fact in target.facts(site))
        assert len(truth) == count
        assert found[site] == truth
