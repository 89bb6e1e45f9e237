# SPDX-License-Identifier: Apache-2.0
"""The tracer's side of the worker: unwinding and names, with its crashes and hangs contained.

A worker that crashes or takes too long is replaced, and the input that caused it is not used again: a file
gets no names, and code ranges are no longer unwound after ``MAX_STRIKES`` failures.

Limits are CPU time, so that a busy host does not change what is found; a worker that waits and does not work
(a file system that does not answer) has another, ``MAX_SECONDS``.
"""

from __future__ import annotations

import os
import platform
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Optional

from ebpftrace.installation import drgn_command, import_path
from ebpftrace.model import Frame
from ebpftrace.unwind import wire
from ebpftrace.unwind.copies import (
    IN_LINK_REGISTER,
    REGISTERS_SIZES,
    End,
    MadePage,
    Pc,
    StackCopy,
    WaitingBytes,
    Walk,
)
from ebpftrace.unwind.debugfiles import DebugFile, debug_files, supplements
from ebpftrace.unwind.debuginfod import Debuginfod
from ebpftrace.unwind.files import FileStore, StoredFile
from ebpftrace.unwind.modules import Layout

START_SECONDS = 20.0
WALK_SECONDS = 5.0
LOAD_SECONDS = 30.0
"""Limit for reading one file; a debug file of 1 GiB takes about ten."""
MAX_SECONDS_PER_CULPRIT = 60.0
"""Limit for all requests about one file, or about the code of one process, together."""
MAX_SECONDS = 120.0
"""Limit of wall-clock time for one request."""
_CHECK_SECONDS = 0.1
"""Wall-clock time between two readings of the CPU time that a worker has used, at least."""
MAX_STRIKES = 3
MAX_RESTARTS = 25
_MAX_LAYOUTS = 32
"""At most ``worker.MAX_UNWINDERS``, so that the worker still has every layout that it was sent."""
_FRESH_SECONDS = 1.0
"""Pages of JIT-compiled code that are older are read again."""
_NEWEST_SECONDS = 0.05
"""So are those that are older than this if a stack is cut by what the code says: it may have changed."""
_CUT_BY_CODE = (End.NO_CALL.value, End.NO_TABLE.value)
_MAX_PAGES = 4096
"""Limit of such pages for one layout."""
_MAX_ROUNDS = 32
"""Limit of restarts of a walk with more of that code."""
_MAX_WAITING_BYTES = 128 << 20
"""Limit of the copies of all processes that wait for the worker."""
_MAX_NAME = 4096
_MAX_FRAMES = 1 << 12
"""Limit of frames in a walk, or of names for one address; only a compromised worker returns more."""

_DIED = "reading its symbols crashed the unwinding worker or took it too long"
_UNREADABLE = "its symbols cannot be read"

_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from ebpftrace.unwind.worker import main; main(int(sys.argv[1]))"
)


class _DiedError(Exception):
    """The worker crashed, hung or sent an invalid answer; it has been replaced or given up."""


class Engine:
    """One worker for all targets.  Use as a context manager, or ``close`` it."""

    def __init__(self, *, debuginfod: bool = False) -> None:
        """With ``debuginfod``, ask its servers too.  Raises ``CannotTrace`` if that is not possible."""
        self._debuginfod = Debuginfod() if debuginfod else None
        self.files = FileStore()
        self.crashes = 0
        """Workers that died or had to be killed."""
        self.unavailable_reason = ""
        """Why stacks can't be unwound here, in one line; empty if they can, or if it is not known yet."""
        self._is_over = False
        self._spent = 0.0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._sock: Optional[socket.socket] = None
        self._greeted = False
        self._known_files: set[int] = set()
        self._named_files: set[int] = set()
        self._searched: set[int] = set()
        """Files whose debug files were searched for ``.debug_frame``."""
        self._layouts: OrderedDict[Layout, int] = OrderedDict()
        self._next_layout = 0
        self._made: dict[int, dict[int, MadePage]] = {}
        """Pages of code that the worker was sent, by layout; pages that can't be read are empty."""
        self._made_at: dict[int, float] = {}
        """When they were read."""
        self.waiting = WaitingBytes(_MAX_WAITING_BYTES)
        self._strikes: Counter[object] = Counter()
        self._seconds: Counter[object] = Counter()
        self._frames: dict[tuple[int, Pc], tuple[Frame, ...]] = {}
        self._unnamed: dict[int, str] = {}
        self._without_debug_info: set[int] = set()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker without waiting for it; requests start it if this was not called."""
        if self._process is not None or self._is_over:
            return
        ours, theirs = socket.socketpair()
        # The module site is not needed, since import_path() has the directories that it would add.
        command = [sys.executable, "-I", "-S", "-c", _BOOT, str(theirs.fileno()), *import_path()]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd="/", env={"LC_ALL": "C.UTF-8"},
            )  # fmt: skip
        except OSError as error:
            ours.close()
            self._give_up(f"the unwinding worker cannot start: {error.strerror}")
            return
        finally:
            theirs.close()
        self._sock = ours
        self._greeted = False

    @property
    def can_unwind(self) -> bool:
        """Whether copies can be unwound; else see ``unavailable_reason``.  Waits for the worker to start."""
        return self._ready() and not self.unavailable_reason

    def _ready(self) -> bool:
        """Whether there is a worker that has reported its abilities."""
        self.start()
        while self._sock is not None and not self._greeted:
            with suppress(_DiedError):
                self._greet(self._sock)
            self.start()
        return self._sock is not None

    def _give_up(self, unavailable_reason: str) -> None:
        self.unavailable_reason = self.unavailable_reason or unavailable_reason
        self._is_over = True

    def _greet(self, sock: socket.socket) -> None:
        answer = self._exchange(sock, None, b"", None, START_SECONDS)
        self._greeted = True
        if answer.get("without_drgn"):
            why = _text(answer["without_drgn"])
            self.unavailable_reason = f"drgn cannot be used ({why}): {drgn_command()}"
        if platform.machine() not in REGISTERS_SIZES:
            self.unavailable_reason = (
                f"by frame pointers alone: unwind tables are not read on {platform.machine()}"
            )

    def walk(
        self,
        layout: Layout,
        copy: StackCopy,
        made_page: Callable[[int], MadePage] = lambda _: MadePage(),
        debug_roots: Sequence[int] = (),
    ) -> Optional[Walk]:
        """Physical frames of a copy; None if it could not be unwound at all.

        ``made_page`` reads a page of code that is in no file, by its address; empty if it can't be read.
        ``debug_roots`` as for ``names``: debug files have the unwind tables of code that has no others.
        """
        if (
            not self.can_unwind
            or self._is_given_up(layout)
            or len(copy.registers) != REGISTERS_SIZES[platform.machine()]
        ):
            return None
        request: dict[str, Any] = {
            "do": "walk", "memory": len(copy.memory), "missing": copy.missing, "cut": copy.truncated,
        }  # fmt: skip
        try:
            wanted: Sequence[int] = ()
            for _ in range(_MAX_ROUNDS):
                number = request["layout"] = self._number(layout)
                pages = self._pages(number, wanted, made_page)
                request["made"] = list(pages)
                request["compiled"] = [page.compiled for page in pages.values()]
                contents = (page.content for page in pages.values())
                blob = b"".join((copy.registers, copy.memory, *contents))
                answer = self._ask(layout, request, blob, None, WALK_SECONDS)
                if "unknown" in answer:
                    self._layouts.pop(layout, None)
                    continue
                known = self._made.get(number, {})
                wanted = [page for page in _numbers(answer.get("wants")) if page not in known]
                tableless = _numbers(answer.get("tableless"))
                has_new_tables = self._search_tables(layout, tableless, debug_roots)
                if not wanted and not has_new_tables:
                    if answer.get("end") not in _CUT_BY_CODE or not self._is_aged(number):
                        break
                    self._made_at[number] = -_FRESH_SECONDS
            return _walk(answer)
        except _DiedError:
            return None

    def _search_tables(self, layout: Layout, tableless: Sequence[int], roots: Sequence[int]) -> bool:
        """Search debug files of code without unwind tables, once a file; True if a walk may find more now."""
        wanted = set(tableless) - self._searched
        # The worker may be compromised: only what it was given.
        files = wanted & {module.file for module in layout.modules} if wanted else wanted
        self._searched |= files
        taken = [self._take_tables(self.files[file], roots) for file in sorted(files)]
        return any(taken)

    def _take_tables(self, file: StoredFile, roots: Sequence[int]) -> bool:
        if self._is_given_up(file.id):
            return False
        with suppress(_DiedError):
            fetched = (debug for debug in [self._fetched(file)] if debug is not None)
            for candidate in chain(debug_files(file, roots), fetched):
                if self._offer("tables", file, candidate).get("found") is True:
                    for layout in list(self._layouts):
                        if any(module.file == file.id for module in layout.modules):
                            self._forget(layout)
                    return True
        return False

    def _is_aged(self, layout: int) -> bool:
        """Whether code without a file, to which a JIT compiler may write, was read a while ago."""
        return (
            bool(self._made.get(layout))
            and time.monotonic() - self._made_at.get(layout, 0.0) > _NEWEST_SECONDS
        )

    def _pages(
        self, layout: int, wanted: Sequence[int], made_page: Callable[[int], MadePage]
    ) -> dict[int, MadePage]:
        """The pages of code without a file that the worker lacks, or that have changed.

        The worker keeps them with the layout; a page that can't be read is requested only once.
        """
        known = self._made.setdefault(layout, {})
        now = time.monotonic()
        addresses = list(wanted)
        if known and now - self._made_at.get(layout, 0.0) >= _FRESH_SECONDS:
            addresses += known
            if len(known) > _MAX_PAGES:
                known.clear()
        if not known or len(addresses) > len(wanted):
            self._made_at[layout] = now
        new = {}
        for address in addresses:
            page = made_page(address)
            if page.content and known.get(address) != page:
                new[address] = page
            known[address] = page
        return new

    def _number(self, layout: Layout) -> int:
        number = self._layouts.get(layout)
        if number is not None:
            self._layouts.move_to_end(layout)
            return number
        modules = layout.modules
        for module in modules:
            self._hand_over(layout, self.files[module.file])
        number = self._next_layout
        self._next_layout += 1
        request = {
            "do": "layout", "layout": number, "modules": modules,
            "executable": [(r.start, r.end, r.file, r.offset) for r in layout.ranges],
        }  # fmt: skip
        self._ask(layout, request, b"", None, LOAD_SECONDS)
        self._layouts[layout] = number
        if len(self._layouts) > _MAX_LAYOUTS:
            self._forget(next(iter(self._layouts)))
        return number

    def _forget(self, layout: Layout) -> None:
        number = self._layouts.pop(layout)
        self._made.pop(number, None)
        self._made_at.pop(number, None)

    def names(
        self, file: int, pcs: Sequence[Pc], debug_roots: Sequence[int] = ()
    ) -> dict[Pc, tuple[Frame, ...]]:
        """Frames of link-time addresses in a file, innermost first.

        Every address gets at least one frame, perhaps with just module and offset.  ``debug_roots`` are
        descriptors of directories to search for separate debug info.
        """
        stored = self.files[file]
        wanted = [pc for pc in dict.fromkeys(pcs) if (file, pc) not in self._frames]
        if wanted:
            self._frames.update(
                ((file, pc), found) for pc, found in self._look_up(stored, wanted, debug_roots)
            )
        return {pc: self._frames[file, pc] for pc in pcs}

    def _look_up(
        self, file: StoredFile, pcs: Sequence[Pc], roots: Sequence[int]
    ) -> list[tuple[Pc, tuple[Frame, ...]]]:
        found: object = None
        if not self._is_given_up(file.id):
            with suppress(_DiedError):
                self._load_symbols(file, roots)
                request = {"do": "names", "file": file.id, "addresses": pcs}
                found = self._ask(file.id, request, b"", None, LOAD_SECONDS).get("names", ())
        if isinstance(found, list) and len(found) == len(pcs):
            return [(pc, _frames(file, pc, names)) for pc, names in zip(pcs, found)]
        if found is not None:
            self._unnamed[file.id] = _UNREADABLE
        else:
            self._unnamed[file.id] = self.unavailable_reason if self._is_over else _DIED
        return [(pc, (Frame(None, module=file.path, offset=pc.address),)) for pc in pcs]

    def why_unnamed(self, file: int) -> str:
        """Why some addresses in a file got no names; empty otherwise."""
        return self._unnamed.get(file, "")

    def _load_symbols(self, file: StoredFile, roots: Sequence[int]) -> None:
        if self._ready() and file.id in self._named_files:
            return
        self._hand_over(file.id, file)
        answer = self._ask(file.id, {"do": "symbols", "file": file.id}, b"", None, LOAD_SECONDS)
        self._named_files.add(file.id)
        if not answer.get("wants"):
            return
        for candidate in debug_files(file, roots):
            answer = self._offer("debug", file, candidate)
            supplement = answer.get("supplement")
            if isinstance(supplement, list) and [type(part) for part in supplement] == [str, str]:
                path, build_id = supplement
                for shared in supplements(candidate.path, path, build_id, roots):
                    answer = self._offer("debug", file, shared)
                    if not answer.get("wants", True):
                        break
            if not answer.get("wants", True):
                return
        fetched = self._fetched(file)
        if fetched is None or self._offer("debug", file, fetched).get("wants", True):
            self._without_debug_info.add(file.id)

    def _fetched(self, file: StoredFile) -> Optional[DebugFile]:
        if self._debuginfod is None or file.headers.build_id is None:
            return None
        return self._debuginfod.find(file.headers.build_id)

    def lacks_debug_info(self, file: int) -> bool:
        """Whether neither the file nor a separate one has debug info, if names in it were requested."""
        return file in self._without_debug_info

    @property
    def asks_debuginfod(self) -> bool:
        """Whether missing debug info is requested from debuginfod's servers."""
        return self._debuginfod is not None

    @property
    def fetching_note(self) -> str:
        """Why nothing more is requested from them, in one line; empty otherwise."""
        return "" if self._debuginfod is None else self._debuginfod.note

    def _offer(self, purpose: str, file: StoredFile, debug: DebugFile) -> dict[str, Any]:
        request = {"do": purpose, "file": file.id, "path": debug.path, "checked": debug.checked}
        try:
            return self._ask(file.id, request, b"", debug.fd, LOAD_SECONDS)
        finally:
            os.close(debug.fd)

    def _hand_over(self, culprit: object, file: StoredFile) -> None:
        if self._ready() and file.id not in self._known_files:
            self._ask(culprit, {"do": "file", "file": file.id, "path": file.path}, b"", file.fd, WALK_SECONDS)
            self._known_files.add(file.id)

    def _is_given_up(self, culprit: object) -> bool:
        return (
            not self._ready()
            or self._strikes[culprit] >= MAX_STRIKES
            or self._seconds[culprit] > MAX_SECONDS_PER_CULPRIT
        )

    def _ask(
        self, culprit: object, request: dict[str, Any], blob: bytes, fd: Optional[int], seconds: float
    ) -> dict[str, Any]:
        if not self._ready() or self._sock is None:
            raise _DiedError
        used = self._stopwatch()
        try:
            return self._exchange(self._sock, request, blob, fd, seconds)
        except _DiedError:
            self._strikes[culprit] += 1
            raise
        finally:
            self._seconds[culprit] += used()  # type: ignore[assignment]

    def _exchange(
        self,
        sock: socket.socket,
        request: Optional[dict[str, Any]],
        blob: bytes,
        fd: Optional[int],
        seconds: float,
    ) -> dict[str, Any]:
        try:
            until = time.monotonic() + MAX_SECONDS
            sock.settimeout(MAX_SECONDS)
            used = self._stopwatch()
            if request is not None:
                wire.send(sock, request, blob, fd)
            _wait(sock, seconds, used, until)
            answer, _, descriptor = wire.receive(sock, until)
            if descriptor is not None:
                # A worker never has one to give; taken in, they would use up ours.
                os.close(descriptor)
                raise wire.ClosedError
            return answer
        except (OSError, wire.ClosedError):
            self._stop()
            self.crashes += 1
            if self.crashes > MAX_RESTARTS:
                self._give_up(f"the unwinding worker died {self.crashes} times")
            raise _DiedError from None

    def _stopwatch(self) -> Callable[[], float]:
        """Starts now, and tells the seconds that the worker has been at work since."""
        wall, cpu = time.monotonic(), self.cpu_seconds
        # A host that is busy adds to the one, threads of the worker's add to the other.
        return lambda: max(0.0, min(time.monotonic() - wall, self.cpu_seconds - cpu))

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the workers have used."""
        return self._spent + self._running_seconds()

    def _running_seconds(self) -> float:
        if self._process is None:
            return 0.0
        # The CPU clock of another process, as clock_getcpuclockid(3) names it.
        with suppress(OSError):
            return time.clock_gettime((~self._process.pid << 3) | 2)
        return 0.0

    def _stop(self) -> None:
        self._spent += self._running_seconds()
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        self._process = self._sock = None
        self._known_files.clear()
        self._named_files.clear()
        self._searched.clear()
        self._layouts.clear()
        self._made.clear()

    def close(self) -> None:
        """End the worker and close the kept files."""
        self._stop()
        self._give_up("closed")
        self.files.close()


def _wait(sock: socket.socket, seconds: float, used: Callable[[], float], until: float) -> None:
    """Wait until there is something to receive.  Raises TimeoutError."""
    answers = select.poll()
    answers.register(sock, select.POLLIN)
    while not answers.poll(1000 * max(_CHECK_SECONDS, min(seconds - used(), until - time.monotonic()))):
        if used() >= seconds or time.monotonic() >= until:
            raise TimeoutError


def _numbers(answered: object) -> list[int]:
    """At most ``_MAX_PAGES`` numbers of a list in an answer."""
    return [one for one in answered[:_MAX_PAGES] if type(one) is int] if isinstance(answered, list) else []


def _walk(answer: dict[str, Any]) -> Optional[Walk]:
    try:
        pcs = tuple(Pc(_address(address), bool(exact)) for address, exact in answer["pcs"][:_MAX_FRAMES])
        slots = [slot if slot == IN_LINK_REGISTER else _maybe(slot) for slot in answer["slots"][: len(pcs)]]
        return Walk(
            pcs, End(answer["end"]), tuple(slots + [None] * (len(pcs) - len(slots))),
            _maybe(answer["guessed"]), _address(answer["lacking"]), _maybe(answer["stopped_at"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _address(value: Any) -> int:
    address = int(value)
    if not 0 <= address < 1 << 64:
        raise ValueError(value)
    return address


def _maybe(value: Any) -> Optional[int]:
    return None if value is None else _address(value)


def _frames(file: StoredFile, pc: Pc, names: object) -> tuple[Frame, ...]:
    frames = []
    for name in names[:_MAX_FRAMES] if isinstance(names, list) else ():
        if isinstance(name, list) and len(name) == 5:
            function, source, line, inlined, start = name
            into = pc.address - start if isinstance(start, int) and 0 <= start <= pc.address else None
            frames.append(
                Frame(
                    _text(function), _text(source), line if isinstance(line, int) else None, file.path,
                    pc.address, inlined is True, into,
                )
            )  # fmt: skip
    return tuple(frames) or (Frame(None, module=file.path, offset=pc.address),)


def _text(value: object) -> Optional[str]:
    return value[:_MAX_NAME] if isinstance(value, str) else None
