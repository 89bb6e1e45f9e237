# SPDX-License-Identifier: Apache-2.0
"""A cache in files, of compiled programs and of offsets in the kernel's types, which take long to make.

Anybody who can write these files can run code in the kernel.  So a directory or file that another user could
have written, or that is a symbolic link, is not used; the content has a checksum; and what can't be read is
made again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Optional, TypeVar

T = TypeVar("T")

_SYSTEM = Path("/var/cache")
_NAME = "ebpftrace"
_MAX_BYTES = 16 << 20
_MAX_FILES = 64
"""If there are more, the oldest half is deleted: kernels, versions and options come out of use."""
_KERNEL_NOTES = Path("/sys/kernel/notes")
"""Contains the build id, which is different for each kernel."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def cache_directory() -> Path:
    """The system's for root, else the user's ($XDG_CACHE_HOME, XDG Base Directory Specification)."""
    if os.geteuid() == 0:
        return _SYSTEM / _NAME
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if given.startswith("/") else Path("~/.cache").expanduser()) / _NAME


def kernel_identity() -> str:
    """A text that differs between kernels."""
    return f"{' '.join(os.uname()[2:])} {_digest([_content(_KERNEL_NOTES)])}"


def compiler_identity() -> Optional[str]:
    """A text that differs between installations of bcc; None where there is none."""
    spec = importlib.util.find_spec("bcc")
    if spec is None or not spec.origin:
        return None
    package = Path(spec.origin).parent
    with suppress(OSError):
        status = Path(spec.origin).stat()
        version = _digest([_content(package / "version.py")])
        return f"{spec.origin} {status.st_size} {status.st_mtime_ns} {version}"
    return None


def sources_identity(directory: Path) -> str:
    """A text that differs if any file in a directory or below does."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return _digest(part for path in files for part in (bytes(path.relative_to(directory)), _content(path)))


def cached_or_made(
    key: str, parse: Callable[[bytes], T], make: Callable[[], Optional[T]], pack: Callable[[T], bytes]
) -> Optional[T]:
    """The cached value of a key, as ``parse`` reads it; else the result of ``make``, which is stored unless
    None.

    ``parse`` raises ValueError, TypeError or AttributeError for content that it can't use.
    """
    cached = read_cached(key)
    if cached is not None:
        with suppress(ValueError, TypeError, AttributeError):
            return parse(cached)
    made = make()
    if made is not None:
        write_cached(key, pack(made))
    return made


def read_cached(key: str) -> Optional[bytes]:
    """The content stored under a key; None where there is none that can be trusted."""
    try:
        directory = os.open(cache_directory(), _DIRECTORY)
    except OSError:
        return None
    try:
        if not _is_ours(os.fstat(directory), _OTHERS_MAY_WRITE):
            return None
        file = os.open(
            _file_name(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
        with open(file, "rb") as opened:  # noqa: PTH123 - a descriptor
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not _is_ours(status, _OTHERS):
                return None
            raw = opened.read(_MAX_BYTES)
    except OSError:
        return None
    finally:
        os.close(directory)
    checksum, content = raw[:32], raw[32:]
    return content if checksum == _checksum(key, content) else None


def write_cached(key: str, content: bytes) -> None:
    """Store content under a key; failure is silent."""
    with suppress(OSError):
        place = cache_directory()
        place.mkdir(mode=0o700, parents=os.geteuid() != 0, exist_ok=True)
        directory = os.open(place, _DIRECTORY)
        try:
            if _is_ours(os.fstat(directory), _OTHERS_MAY_WRITE):
                _write(directory, _file_name(key), _checksum(key, content) + content)
                _forget_oldest(directory)
        finally:
            os.close(directory)


def _write(directory: int, name: str, raw: bytes) -> None:
    new = f"{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(new, flags, 0o600, dir_fd=directory), "wb") as opened:  # noqa: PTH123
            opened.write(raw)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(new, dir_fd=directory)
        raise


def _forget_oldest(directory: int) -> None:
    names = os.listdir(directory)
    if len(names) <= _MAX_FILES:
        return
    made = []
    for name in names:
        with suppress(OSError):
            made.append((os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns, name))
    for _, name in sorted(made)[: len(names) - _MAX_FILES // 2]:
        with suppress(OSError):
            os.unlink(name, dir_fd=directory)


def _is_ours(status: os.stat_result, others: int) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & others


def _file_name(key: str) -> str:
    return _digest([key.encode("utf-8", "surrogateescape")])


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(_file_name(key).encode() + content).digest()


def _digest(parts: Iterable[bytes]) -> str:
    """A hash of the parts and of where they end."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _content(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
