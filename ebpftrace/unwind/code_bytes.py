# SPDX-License-Identifier: Apache-2.0
"""The bytes of a process's code, and what the unwinder asks of them whatever the machine is.

Runs in the worker process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Generic, NamedTuple, Optional, TypeVar

from ebpftrace.unwind.copies import PAGE, CompiledCode, MadePage

ReadFile = Callable[[int, int, int], bytes]
"""(file, offset, count) -> at most count bytes."""

MAX_LACKING = 64
MAX_KEPT = 1 << 16
"""Addresses and pages of which something is kept."""
_NO_PAGE = MadePage()

Answer = TypeVar("Answer")
Question = TypeVar("Question", bound=Hashable)


@dataclass(frozen=True)
class Known(Generic[Answer]):
    """What was found out about code."""

    answer: Answer
    pages: Mapping[int, MadePage]
    """Those of code that was made, by their addresses, which it follows from; empty if they were lacking."""


class CodePlace(NamedTuple):
    """Executable memory [start, end) and the file bytes in it, if any."""

    start: int
    end: int
    file: Optional[int]
    offset: int


class CodeBytes(ABC):
    """Executable memory: ascending, disjoint ranges, and the pages of those that no file is mapped to."""

    def __init__(self, places: Sequence[CodePlace], read_file: ReadFile) -> None:
        self._places = places
        self._starts = [place.start for place in places]
        self._read_file = read_file
        self._pages: dict[tuple[int, int], bytes] = {}
        self._made: dict[int, MadePage] = {}
        self._used: dict[int, MadePage] = {}
        """Pages of ``_made`` that were read for the question that ``find_out`` answers."""
        self.lacking: set[int] = set()
        """Pages, by their addresses, that were asked for and that no file nor ``made`` has."""

    @abstractmethod
    def follows_call(self, address: int) -> bool:
        """A call ends at ``address``, or a signal handler returns there; True where nothing can be read."""

    def stripped(self, word: int) -> int:
        """A return address without its signature; any other word as it is."""
        return word

    @abstractmethod
    def begins_here(self, address: int) -> bool:
        """A stack may begin with this return address: no call ends there, and its code returns to nobody."""

    def made(self, pages: Mapping[int, MadePage]) -> None:
        """Take pages (by their addresses) that a JIT compiler made, as they are now."""
        self._made.update(pages)
        self._used = {}

    def find_out(
        self, known: dict[Question, Known[Answer]], question: Question, find: Callable[[], Answer]
    ) -> Answer:
        """What ``find`` answers; not asked again as long as the pages of code that it read are the same."""
        found = known.get(question)
        if found is None or any(self._made.get(page, _NO_PAGE) != was for page, was in found.pages.items()):
            others, self._used = self._used, {}
            found = Known(find(), self._used)
            self._used = others
            self._shrink(known)
            known[question] = found
        for page in found.pages:
            self._made_page(page)
        return found.answer

    def contains(self, address: int) -> bool:
        """The address lies in executable memory."""
        return self._place(address) is not None

    def is_made(self, address: int) -> bool:
        """No file is mapped there: a JIT compiler's code, which changes."""
        place = self._place(address)
        return place is not None and place.file is None

    def compiled(self, return_address: int) -> Optional[CompiledCode]:
        """What a JVM compiled that a call in it returns to; None for other code."""
        at = return_address - 1
        if not self.is_made(at):
            return None
        compiled = self._made_page(at - at % PAGE).compiled
        return next((one for one in compiled if one.start <= at < one.end), None)

    def file_of(self, address: int) -> Optional[int]:
        """The file that is mapped there; None if there is none."""
        place = self._place(address)
        return None if place is None else place.file

    def read(self, address: int, count: int) -> bytes:
        """At most ``count`` bytes; fewer where the mapping or what can be read of it ends."""
        place = self._place(address)
        if place is None:
            return b""
        count = min(count, place.end - address)
        content = b""
        while len(content) < count:
            at = address + len(content)
            page = self._page(place, at - at % PAGE)
            part = page[at % PAGE : at % PAGE + count - len(content)]
            content += part
            if not part:
                break
        return content

    def _place(self, address: int) -> Optional[CodePlace]:
        at = bisect_right(self._starts, address) - 1
        return self._places[at] if at >= 0 and address < self._places[at].end else None

    def _page(self, place: CodePlace, address: int) -> bytes:
        if place.file is None:
            return self._made_page(address).content
        offset = place.offset + address - place.start
        key = place.file, offset
        if key not in self._pages:
            self._shrink(self._pages)
            self._pages[key] = self._read_file(place.file, offset, PAGE)
        return self._pages[key]

    def _made_page(self, address: int) -> MadePage:
        page = self._used[address] = self._made.get(address, _NO_PAGE)
        if not page.content and len(self.lacking) < MAX_LACKING:
            self.lacking.add(address)
        return page

    @staticmethod
    def _shrink(kept: dict) -> None:  # type: ignore[type-arg]
        if len(kept) >= MAX_KEPT:
            kept.clear()
