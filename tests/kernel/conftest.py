# SPDX-License-Identifier: Apache-2.0
"""The kernel tests run as root, on a kernel where the tracer can load its programs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHOOSES_NUMBERS = Path(__file__).parents[1] / "targets" / "namesakes.c"
"""This program sets which number the machine's next task gets.  Its source serves as a lock."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "kernel" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@contextmanager
def _locked(how: int) -> Iterator[None]:
    with _CHOOSES_NUMBERS.open("rb") as file:
        fcntl.flock(file, how)
        yield


@pytest.fixture
def numbers_are_chosen() -> Iterator[None]:
    """Meanwhile no other test of this checkout runs that tells tasks apart by their numbers alone."""
    with _locked(fcntl.LOCK_EX):
        yield


@pytest.fixture
def numbers_are_unique() -> Iterator[None]:
    """No other test of this checkout has the numbers of exited tasks used again meanwhile."""
    with _locked(fcntl.LOCK_SH):
        yield
