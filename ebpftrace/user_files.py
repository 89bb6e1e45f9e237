# SPDX-License-Identifier: Apache-2.0
"""Files that a user names: saved reports, suppressions, baselines."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, Optional, Union

from ebpftrace.errors import EbpftraceError
from ebpftrace.text import escape

MAX_REPORT = 4 << 30
"""Bytes of a file of saved reports; of all others ``MAX_OTHER``."""
MAX_OTHER = 64 << 20


def read_text(
    path: Union[str, os.PathLike[str]], limit: int = MAX_OTHER, stdin: Optional[BinaryIO] = None
) -> str:
    """The text of a file of at most ``limit`` bytes; bytes that are no UTF-8 become surrogates.

    ``stdin`` is read where the path is ``-``; None: that is a file as any other.  Raises EbpftraceError.
    """
    try:
        with nullcontext(stdin) if stdin and str(path) == "-" else Path(path).open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise EbpftraceError(f"cannot read {shown(path)}: {why}") from error
    if len(data) > limit:
        raise EbpftraceError(f"{shown(path)} is larger than {limit >> 20:,} MiB")
    return data.decode("utf-8", "surrogateescape")


def shown(path: Union[str, os.PathLike[str]]) -> str:
    """A path as messages show it."""
    return escape(os.fspath(path))
