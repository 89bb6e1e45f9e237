"""Messages between the engine and its worker: a JSON object, bytes, and at most one file descriptor.

JSON because the worker reads hostile files: what comes back must be harmless to parse.
"""

from __future__ import annotations

import json
import os
import socket
import struct
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


def receive(sock: socket.socket) -> tuple[dict[str, Any], bytes, Optional[int]]:
    """Receive one message.  Raises ClosedError, and OSError (TimeoutError among them)."""
    fds: list[int] = []
    head = b""
    while len(head) < _HEAD.size:
        part, more, _, _ = socket.recv_fds(sock, _HEAD.size - len(head), 1)
        fds += more
        if not part:
            _close(fds)
            raise ClosedError
        head += part
    text_size, blob_size = _HEAD.unpack(head)
    try:
        if text_size + blob_size > MAX_MESSAGE or len(fds) > 1:
            raise ClosedError
        message = json.loads(_exactly(sock, text_size))
        blob = _exactly(sock, blob_size)
        if not isinstance(message, dict):
            raise ClosedError
    except (ClosedError, OSError, ValueError, RecursionError) as error:
        _close(fds)
        if isinstance(error, (ClosedError, OSError)):
            raise
        raise ClosedError from None
    return message, blob, fds[0] if fds else None


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = sock.recv(min(count - len(data), 1 << 20))
        if not part:
            raise ClosedError
        data += part
    return bytes(data)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
