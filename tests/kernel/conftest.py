"""The kernel tests run as root, on a kernel where the tracer can load its programs."""

from __future__ import annotations

import os

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if "kernel" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="needs root"))
