# SPDX-License-Identifier: Apache-2.0
"""Units that many modules calculate with."""

from __future__ import annotations

import os

NS = 1_000_000_000
"""Nanoseconds of a second."""

PAGE = os.sysconf("SC_PAGE_SIZE")
"""Bytes of a page of this host."""

SMALLEST_PAGE = 4096
"""Bytes of the smallest page, which divides every other: where the host of a file or record is not known."""
