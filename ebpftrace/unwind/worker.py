# SPDX-License-Identifier: Apache-2.0
"""The process that reads targets' ELF files with drgn, on behalf of ``engine``.

ELF and DWARF readers are written in C for honest files.  A hostile file that crashes, hangs or fills
the memory of one takes this process down, not the tracer: it has no privileges, a memory limit, and
holds nothing but the files it was handed and the copies it is asked about.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Optional

from ebpftrace import libc
from ebpftrace.elf import NotElfError, read_headers, reader
from ebpftrace.libc import LIBC
from ebpftrace.unwind import wire
from ebpftrace.unwind.copies import PAGE, CompiledCode, MadePage
from ebpftrace.unwind.symtab import SymbolTables
from ebpftrace.unwind.unwind_image import debug_frame_of, unwind_image

if TYPE_CHECKING:
    from ebpftrace.unwind.symbols import Symbolizer
    from ebpftrace.unwind.walk import Unwinder

MEMORY_LIMIT = 6 << 30
"""Address space of the worker, bytes: debug info is mapped, and the largest programs have 3 GiB of it."""
MAX_UNWINDERS = 32
_NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CAPABILITY_VERSION_3 = 0x20080522


def main(sock_fd: int) -> None:
    """Serve requests on a socket until the other side closes it."""
    sock = socket.socket(fileno=sock_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    _confine()
    wire.send(sock, {"without_drgn": worker.without_drgn})
    while True:
        try:
            request, blob, fd = wire.receive(sock)
        except wire.ClosedError:
            return
        wire.send(sock, worker.handle(request, blob, fd))


def _confine() -> None:
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Without root's rights to begin with there are none to drop.
    with suppress(PermissionError):
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _drop_capabilities()
    LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # The change of user cleared the death signal (prctl(2)).
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _drop_capabilities() -> None:
    """Give up those that a caller other than root was given: no change of user takes them (capset(2))."""
    ourselves = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    none_of_any_set = bytes(24)
    if LIBC.capset(ourselves, none_of_any_set):
        raise libc.error()


def _symbolizer() -> Symbolizer | SymbolTables:
    """What finds names.  A drgn older than 0.1 unwinds as well, but tells no inlined functions nor lines."""
    import drgn

    if drgn.__version__.startswith("0.0."):
        return SymbolTables()
    from ebpftrace.unwind.symbols import Symbolizer

    return Symbolizer()


class Worker:
    """The requests of ``engine``, one method each; what drgn raises becomes an ``error`` in the answer."""

    def __init__(self) -> None:
        self.without_drgn = ""
        """Why drgn cannot be used here; empty if it can."""
        self._symbolizer: Symbolizer | SymbolTables
        try:
            # The one place that needs drgn: it has no build for some platforms.
            from ebpftrace.unwind.architecture import architecture_of
            from ebpftrace.unwind.code_bytes import CodePlace
            from ebpftrace.unwind.walk import LoadedImage, Unwinder

            self._architecture = architecture_of(os.uname().machine)
            self._loaded_image, self._unwinder, self._place = LoadedImage, Unwinder, CodePlace
            self._symbolizer = _symbolizer()
        except Exception as error:  # missing, too old, for another C library: all the same to the user
            self.without_drgn = f"{type(error).__name__}: {error}"[:300]
            self._symbolizer = SymbolTables()
        self._files: dict[int, tuple[str, int]] = {}
        self._images: dict[int, Optional[bytes]] = {}
        self._separate: dict[int, bytes] = {}
        """``.debug_frame`` of separate debug files, by the file that they belong to."""
        self._unwinders: OrderedDict[int, Unwinder] = OrderedDict()

    def handle(self, request: dict[str, Any], blob: bytes, fd: Optional[int]) -> dict[str, Any]:
        """The answer to one request."""
        operation: Callable[..., dict[str, Any]] = getattr(self, f"do_{request['do']}")
        try:
            return operation(request, blob, fd)
        except Exception as error:  # drgn raises many types on bad data
            return {"error": f"{type(error).__name__}: {error}"[:300]}

    def do_file(self, request: dict[str, Any], _: bytes, fd: Optional[int]) -> dict[str, Any]:
        """Take a file for later use."""
        if fd is None:
            return {"error": "no descriptor came"}
        self._files[request["file"]] = (request["path"], fd)
        return {}

    def do_layout(self, request: dict[str, Any], _: bytes, __: Optional[int]) -> dict[str, Any]:
        """Prepare unwinding with one set of loaded files; frames of one that cannot be used are guessed."""
        images = []
        for file, bias in request["modules"]:
            read = reader(self._files[file][1])
            try:
                headers = read_headers(read)
                if file not in self._images:
                    self._images[file] = unwind_image(read, headers, self._separate.get(file, b""))
            except (NotElfError, OSError):
                self._images[file] = None
            image = self._images[file]
            if image is not None:
                name = f"{file}@{bias:x}"
                images.append(
                    self._loaded_image(
                        name, image, bias + headers.start, bias + headers.end, bias + headers.entry
                    )
                )
        places = [self._place(*fields) for fields in request["executable"]]
        code = self._architecture.code(places, self._read_file)
        self._unwinders[request["layout"]] = self._unwinder(images, code, self._architecture)
        if len(self._unwinders) > MAX_UNWINDERS:
            self._unwinders.popitem(last=False)
        return {}

    def _read_file(self, file: int, offset: int, count: int) -> bytes:
        return os.pread(self._files[file][1], count, offset)

    def do_walk(self, request: dict[str, Any], blob: bytes, _: Optional[int]) -> dict[str, Any]:
        """Unwind a copy: registers, stack memory, and pages of code that no file has."""
        if request["layout"] not in self._unwinders:
            return {"unknown": True}
        self._unwinders.move_to_end(request["layout"])
        registers_size = self._architecture.registers_size
        memory_end = registers_size + request["memory"]
        made = {
            address: MadePage(
                blob[memory_end + number * PAGE : memory_end + (number + 1) * PAGE],
                tuple(CompiledCode(*fields) for fields in compiled),
            )
            for number, (address, compiled) in enumerate(zip(request["made"], request["compiled"]))
        }
        unwinder = self._unwinders[request["layout"]]
        walk = unwinder.walk(
            blob[:registers_size], blob[registers_size:memory_end], request["missing"], request["cut"], made
        )
        return {
            "pcs": walk.pcs, "end": walk.end.value, "slots": walk.slots, "guessed": walk.guessed,
            "lacking": walk.lacking, "stopped_at": walk.stopped_at, "wants": unwinder.lacking,
            "tableless": sorted(unwinder.tableless),
        }  # fmt: skip

    def do_tables(self, request: dict[str, Any], _: bytes, fd: Optional[int]) -> dict[str, Any]:
        """Offer a debug file for its ``.debug_frame``; answers whether layouts use it from now on."""
        if fd is None:
            return {"error": "no descriptor came"}
        try:
            file = request["file"]
            headers = read_headers(reader(fd))
            own = read_headers(reader(self._files[file][1]))
            if not request["checked"] and (own.build_id is None or headers.build_id != own.build_id):
                return {"found": False}
            self._separate[file] = debug_frame_of(reader(fd), headers)
            if self._separate[file]:
                self._images.pop(file, None)
            return {"found": bool(self._separate[file])}
        finally:
            os.close(fd)

    def do_symbols(self, request: dict[str, Any], _: bytes, __: Optional[int]) -> dict[str, Any]:
        """Load a file for names; answers whether separate debug info is wanted."""
        path, fd = self._files[request["file"]]
        headers = read_headers(reader(fd))
        sections = [(s.address, s.address + s.size) for s in headers.sections if s.address]
        has_all_symbols = headers.section(".symtab") is not None
        self._symbolizer.add_file(
            request["file"], path, os.dup(fd), headers.start, headers.end, sections, has_all_symbols
        )
        return {"wants": self._symbolizer.wants_debug_file(request["file"])}

    def do_debug(self, request: dict[str, Any], _: bytes, fd: Optional[int]) -> dict[str, Any]:
        """Offer separate debug info; answers whether more is wanted, and which supplement of it."""
        if fd is None:
            return {"error": "no descriptor came"}
        self._symbolizer.add_debug_file(request["file"], request["path"], fd, request["checked"])
        return {
            "wants": self._symbolizer.wants_debug_file(request["file"]),
            "supplement": self._symbolizer.wanted_supplement(request["file"]),
        }

    def do_names(self, request: dict[str, Any], _: bytes, __: Optional[int]) -> dict[str, Any]:
        """Functions at file addresses."""
        names = [self._symbolizer.names(request["file"], at, exact) for at, exact in request["addresses"]]
        return {"names": names}
