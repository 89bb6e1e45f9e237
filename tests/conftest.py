"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings


def pytest_configure() -> None:
    """No example fails for being slow: that tells of the machine's load, not of the code."""
    settings.register_profile("any_machine", deadline=None, print_blob=True)
    settings.load_profile("any_machine")
