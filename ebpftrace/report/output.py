# SPDX-License-Identifier: Apache-2.0
"""Where a report goes: a file, whole or not at all, or a stream.

A regular file is written beside its place and renamed into it (rename(2) replaces
atomically), so that a full disk or a kill never leaves half a report.  What cannot be
replaced (a FIFO, a device, one of our own descriptors) is written straight.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Optional, TextIO, Union

from ebpftrace.errors import CannotTrace
from ebpftrace.report.tables import NARROWEST, WIDEST, WIDTH
from ebpftrace.text import escape, printable

Pages = Union[str, Iterable[str]]
"""A text, or its parts in order where it is too large to be held as a whole."""
Content = Union[Pages, bytes]
"""What a file gets."""

_USUAL_COLUMNS = 80
_NEW_FILE_MODE = 0o666
_COPIED_AT_ONCE = 1 << 20
_OWN_DESCRIPTORS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR_PATH = re.compile(r"/dev/fd/(\d+)|/proc/self/fd/(\d+)")


def use_color(stream: TextIO, no_color: bool) -> bool:
    """Colour only on a terminal that can show it, and never against NO_COLOR (no-color.org)."""
    if no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def can_redraw(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def page_width(stream: TextIO, path: Optional[Path] = None) -> int:
    """Columns of a report for ``stream``, or for a file at ``path`` instead: a narrow terminal's own."""
    if path is not None or not stream.isatty():
        return WIDTH
    return max(NARROWEST, min(terminal_columns(stream), WIDEST))


def terminal_columns(stream: TextIO) -> int:
    """Columns of this terminal now; 80 where it does not know.

    rich would ask the first standard stream that is a terminal, which may be another one.
    """
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_COLUMNS
    except OSError:  # it is gone
        return _USUAL_COLUMNS


def check_writable(path: str) -> None:
    """Make sure, before a trace of minutes, that ``write`` can put a file at ``path``.

    Leaves nothing behind.  Raises CannotTrace with the reason where it cannot.
    """
    with _named_errors(path):
        descriptor = _descriptor(path)
        if descriptor is not None:
            os.write(descriptor, b"")
        elif _is_special(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            created, temporary = _create_beside(_place(path))
            os.close(created)
            temporary.unlink()


def write(path: str, text: Content) -> None:
    """Write ``text``, as UTF-8 where it is one, to ``path``; an existing file keeps its mode and owner.

    Raises CannotTrace where it cannot be written; a file that was there is then unchanged.
    """
    with Growing(path) as file:
        file.add(text)


class Growing:
    """A place for one text after the other; a context manager.

    A regular file has all of them so far at any time; what cannot be replaced gets each one once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._so_far: Optional[int] = None
        """Open on what is there by now, which others may have moved away or changed the name of."""

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Add no more."""
        if self._so_far is not None:
            os.close(self._so_far)
            self._so_far = None

    def add(self, text: Content) -> None:
        """Write one more text; as ``write``."""
        data: Iterable[bytes]
        if isinstance(text, bytes):
            data = (text,)
        else:
            data = (part.encode("utf-8", "backslashreplace") for part in _parts(text))
        with _named_errors(self._path):
            descriptor = _descriptor(self._path)
            if descriptor is not None:
                _write_each(descriptor, data)
            elif _is_special(self._path):
                opened = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    _write_each(opened, data)
                finally:
                    os.close(opened)
            else:
                before = self._so_far
                self._so_far = _replace(_place(self._path), chain(_content(before), data))
                if before is not None:
                    os.close(before)


def write_stream(stream: TextIO, text: Pages) -> None:
    """Write to an open stream; characters that its encoding lacks become escapes."""
    for part in _parts(text):
        stream.write(printable(stream.encoding, part))
    stream.flush()


class Stream:
    """Writes lines as they are made, to an open stream or to a new file; a context manager."""

    def __init__(self, stream: TextIO, path: Optional[str]) -> None:
        """Write to ``path``, or to ``stream`` where that is None.  Raises CannotTrace."""
        self._stream = stream
        self._path = path
        self._own: Optional[int] = None
        if path is not None and _descriptor(path) is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with _named_errors(path):
                self._own = os.open(path, flags, _NEW_FILE_MODE)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            os.close(self._own)

    def fileno(self) -> int:
        """The descriptor that is written to."""
        if self._path is None:
            return self._stream.fileno()
        return self._own if self._own is not None else _descriptor(self._path) or 1

    def write(self, text: str) -> None:
        """Write text now.  Raises BrokenPipeError where a pipe's reader has gone, else CannotTrace."""
        if self._path is None:
            write_stream(self._stream, text)
            return
        try:
            _write_all(self.fileno(), text.encode("utf-8", "backslashreplace"))
        except BrokenPipeError:
            raise
        except OSError:
            with _named_errors(self._path):
                raise


def _parts(text: Pages) -> Iterable[str]:
    return (text,) if isinstance(text, str) else text


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        missing = _missing_directory(path) if isinstance(error, FileNotFoundError) else ""
        reason = f"there is no directory {missing}" if missing else (error.strerror or str(error)).lower()
        remedy = "make it, or choose another file" if missing else "choose another file"
        raise CannotTrace(f"cannot write {escape(path)}: {reason}", remedy) from error


def _missing_directory(path: str) -> str:
    """The uppermost directory that is missing, fit to print; empty where none is."""
    parents = Path(os.path.realpath(path)).parents
    missing = [parent for parent in parents if not os.path.lexists(parent)]
    return escape(str(missing[-1])) if missing else ""


def _descriptor(path: str) -> Optional[int]:
    """The number of our own descriptor that ``path`` names: opening it anew would lose its offset."""
    match = _DESCRIPTOR_PATH.fullmatch(path)
    if match:
        return int(match[1] or match[2])
    return _OWN_DESCRIPTORS.get(path)


def _is_special(path: str) -> bool:
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _place(path: str) -> Path:
    """The file to replace.  A link is followed by the kernel, under its rules for links in /tmp
    (proc(5), protected_symlinks), and only where there is a file that we may write."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if not path:
            raise
        return Path(path)
    try:
        return Path(f"/proc/self/fd/{descriptor}").readlink()
    finally:
        os.close(descriptor)


def _create_beside(place: Path) -> tuple[int, Path]:
    temporary = place.parent / f".{place.name[:100]}.{secrets.token_hex(8)}"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, _NEW_FILE_MODE), temporary


def _replace(place: Path, data: Iterable[bytes]) -> int:
    """Put a new file in its place; returns a descriptor of it."""
    descriptor, temporary = _create_beside(place)
    try:
        _keep_mode_and_owner(place, descriptor)
        _write_each(descriptor, data)
        os.fsync(descriptor)
        temporary.replace(place)
    except BaseException:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor


def _content(descriptor: Optional[int]) -> Iterator[bytes]:
    position = 0
    while descriptor is not None and (part := os.pread(descriptor, _COPIED_AT_ONCE, position)):
        yield part
        position += len(part)


def _keep_mode_and_owner(place: Path, descriptor: int) -> None:
    try:
        before = place.stat()
    except FileNotFoundError:
        return
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _write_each(descriptor: int, data: Iterable[bytes]) -> None:
    for part in data:
        _write_all(descriptor, part)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
