# SPDX-License-Identifier: Apache-2.0
"""What the kernel side tells of a path becomes what /proc/PID/maps would print."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.capture.kernel_events import image_path
from ebpftrace.capture.layout import NAME_SLOT

NAMES = st.binary(min_size=1, max_size=NAME_SLOT - 1).filter(
    lambda name: b"\0" not in name and b"/" not in name
)


@given(st.lists(st.one_of(st.just(b""), NAMES), max_size=5), st.binary(max_size=NAME_SLOT))
def test_names_are_joined_from_the_root_on(names: list[bytes], rest: bytes) -> None:
    """What a slot held before stays behind the zero byte; a mount point takes an empty slot."""
    slots = b"".join((name + b"\0" + rest).ljust(NAME_SLOT, b"x")[:NAME_SLOT] for name in reversed(names))
    expected = b"/" + b"/".join(filter(None, names))
    assert image_path(slots).encode("utf-8", "surrogateescape") == expected.replace(b"\n", b"\\012")
