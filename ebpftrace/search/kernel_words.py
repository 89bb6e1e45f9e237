# SPDX-License-Identifier: Apache-2.0
"""Words that the kernel stores for a process and returns later, so that they need not be in its memory.

epoll stores a word with each file (epoll_ctl(2)), a timer stores one for its signal (timer_create(2)); /proc
shows both (proc(5), fdinfo and timers).  The words in io_uring requests that are in flight are not visible.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

from ebpftrace.procfs.access import read_small

_EPOLL = "anon_inode:[eventpoll]"
_MAX_FILES = 1 << 16
_MAX_WORDS = 1 << 17


def kernel_words(pid: int) -> list[tuple[str, int]]:
    """Pairs of ``timer`` or ``epoll`` and a word that is stored for it; what can't be read is left out."""
    words = []
    for word in _each(pid):
        words.append(word)
        if len(words) == _MAX_WORDS:
            break
    return words


def _each(pid: int) -> Iterator[tuple[str, int]]:
    with suppress(OSError):
        for line in read_small(f"/proc/{pid}/timers").splitlines():
            if line.startswith(b"signal:"):
                with suppress(ValueError):
                    yield "timer", int(line.rpartition(b"/")[2], 16)
    for descriptor in _polls(pid):
        with suppress(OSError):
            for line in read_small(f"/proc/{pid}/fdinfo/{descriptor}").splitlines():
                _, found, rest = line.partition(b" data:")
                if found:
                    with suppress(ValueError, IndexError):
                        yield "epoll", int(rest.split()[0], 16)


def _polls(pid: int) -> Iterator[str]:
    """The epoll descriptors of a process."""
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_FILES:
                return
            with suppress(OSError):
                if os.readlink(entry.path) == _EPOLL:  # noqa: PTH115 - of tens of thousands
                    yield entry.name
