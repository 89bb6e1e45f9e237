# SPDX-License-Identifier: Apache-2.0
"""Call chains that are known from the source, however the program was compiled; in the kernel's own copies.

One tracer for all: where compiling is slow (vmtest/), starting it is most of a test.
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import TARGETS, Json, Program, Tracer, leaks

COPIED = 4
"""Calls of a site that are copied, if none is copied to check them; more are known by their signature."""
FLAGS: dict[str, tuple[str, ...]] = {
    "no frame pointers": ("-fomit-frame-pointer",),
    "frame pointers": ("-fno-omit-frame-pointer",),
    "not optimized": ("-O0",),
    "stripped": ("-s",),
}
if platform.machine() == "aarch64":
    FLAGS["signed returns, BTI"] = ("-mbranch-protection=standard",)
    FLAGS["signed returns, stripped"] = ("-mbranch-protection=standard", "-s", "-fomit-frame-pointer")
# Compiling C++ takes long in a machine that is emulated.
CLASSES = {
    "C++, no frame pointers": ("-fomit-frame-pointer",),
    "C++, stripped": ("-fomit-frame-pointer", "-s"),
}
if platform.machine() == "aarch64":
    CLASSES = {name: (*flags, "-mbranch-protection=standard") for name, flags in CLASSES.items()}
BUILT = {**FLAGS, **CLASSES}


def count(name: str) -> int:
    """How many threads each site creates.

    The methods need more stack than a signature is made of.  The first call of a site may have a signature of
    its own: the dynamic linker leaves addresses on the stack.
    """
    return COPIED if name in CLASSES else 2 * COPIED + 1


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    """Of siblings and siblings_classes, built in each way."""
    place = tmp_path_factory.mktemp("chains")
    binaries = {name: place / f"siblings-{number}" for number, name in enumerate(BUILT)}
    for name, binary in binaries.items():
        compiler, source = ("c++", "siblings_classes.cpp") if name in CLASSES else ("cc", "siblings.c")
        command = [compiler, "-O2", "-g", "-pthread", *BUILT[name], "-o", str(binary), str(TARGETS / source)]
        subprocess.run(command, check=True)
    return dict(zip(BUILT, all_traced({binary: count(name) for name, binary in binaries.items()})))


def all_traced(counts: dict[Path, int]) -> list[Json]:
    with contextlib.ExitStack() as running:
        targets = [running.enter_context(Program(binary, number)) for binary, number in counts.items()]
        processes = [option for target in targets for option in ("-p", target.pid)]
        tracer = running.enter_context(
            Tracer("--until-interrupt", "--min-age", 0, "--stack-rate", 0, *processes)
        )
        for target in targets:
            target.run()
        return [json.loads(line) for line in tracer.interrupt().stdout.splitlines()]


def stacks(reports: dict[str, Json], name: str) -> Iterator[list[Json]]:
    """The frames of the program itself, innermost first, of what was found; each stack is complete."""
    for finding in leaks(reports[name]):
        assert finding["stack"]["complete"], finding["stack"]
        assert finding["stack"]["source"] == ("copied" if count(name) == COPIED else "signature")
        yield [one for one in finding["stack"]["frames"] if "siblings" in (one["module"] or "")]


@pytest.mark.parametrize("name", [name for name in FLAGS if "stripped" not in name])
def test_the_functions_are_those_that_called(reports: dict[str, Json], name: str) -> None:
    chains = sorted([frame["function"] for frame in frames] for frames in stacks(reports, name))
    assert chains == [["create", site, "main", "_start"] for site in ("left", "right")]


def test_methods_are_those_that_called(reports: dict[str, Json]) -> None:
    (name,) = (name for name in CLASSES if "stripped" not in name)
    chains = sorted([frame["function"] for frame in frames] for frames in stacks(reports, name))
    assert chains == [
        [
            "shop::create(pthread_attr_t const&)",
            f"shop::Numbered<{number}>::start()",
            "shop::start_each(shop::Starter* const*, int)",
            "main",
            "_start",
        ]
        for number in (1, 2)
    ]


@pytest.mark.parametrize("name", [name for name in BUILT if "stripped" in name])
def test_without_symbols_every_frame_is_there(reports: dict[str, Json], name: str) -> None:
    found = list(stacks(reports, name))
    different = [one for one, other in zip(*found) if one["offset"] != other["offset"]]
    if name in CLASSES:
        assert [len(frames) for frames in found] == [5, 5]
        assert len(different) == 1, "the call in either method; their caller calls both at one place"
    else:
        assert [len(frames) for frames in found] == [4, 4]
        assert len(different) == 2, "the call in left or right, and the call of it in main"


@pytest.mark.parametrize("name", list(BUILT))
def test_all_of_each_are_found(reports: dict[str, Json], name: str) -> None:
    assert [finding["count"] for finding in leaks(reports[name])] == [count(name)] * 2
