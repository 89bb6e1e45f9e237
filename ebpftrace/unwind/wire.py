# SPDX-License-Identifier: Apache-2.0
"""Messages between the engine and its worker: a JSON object, bytes, and at most one file descriptor.

JSON because the worker reads hostile files: what comes back must be harmless to parse.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from typing import Any, Optional

_HEAD = struct.Struct("<II")
MAX_MESSAGE = 64 << 20


class ClosedError(Exception):
    """The other side is gone, or what it sent is not a message."""


def send(sock: socket.socket, message: dict[str, Any], blob: bytes = b"", fd: Optional[int] = None) -> None:
    """Send one message.  Raises OSError (TimeoutError among them)."""
    text = json.dumps(message).encode()
    head = _HEAD.pack(len(text), len(blob))
    if fd is None:
        sock.sendall(head + text + blob)
    else:
        sent = socket.send_fds(sock, [head], [fd])
        sock.sendall(head[sent:] + text + blob)


def receive(
    sock: socket.socket, until: Optional[float] = None
) -> tuple[dict[str, Any], bytes, Optional[int]]:
    """Receive one message, whole before ``until`` (CLOCK_MONOTONIC, seconds).

    Raises ClosedError, and OSError (TimeoutError among them).
    """
    fds: list[int] = []
    head = b""
    try:
        while len(head) < _HEAD.size:
            _set_time(sock, until)
            part, more, _, _ = socket.recv_fds(sock, _HEAD.size - len(head), 1)
            fds += more
            if not part:
                raise ClosedError
            head += part
        text_size, blob_size = _HEAD.unpack(head)
        if text_size + blob_size > MAX_MESSAGE or len(fds) > 1:
            raise ClosedError
        message = json.loads(_exactly(sock, text_size, until))
        blob = _exactly(sock, blob_size, until)
        if not isinstance(message, dict):
            raise ClosedError
    except (ClosedError, OSError, ValueError, RecursionError) as error:
        _close(fds)
        if isinstance(error, (ClosedError, OSError)):
            raise
        raise ClosedError from None
    return message, blob, fds[0] if fds else None


def _exactly(sock: socket.socket, count: int, until: Optional[float]) -> bytes:
    data = bytearray()
    while len(data) < count:
        _set_time(sock, until)
        part = sock.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ClosedError
        data += part
    return bytes(data)


def _set_time(sock: socket.socket, until: Optional[float]) -> None:
    # For each part anew: a sender that is slow enough would never come to an end.
    if until is not None:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
