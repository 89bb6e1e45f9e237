"""The search of one process: passes over its memory, until what was not found is absent for sure.

The process runs on.  What moves while a pass reads may be overlooked by it, so one pass proves nothing,
unless no thread ran meanwhile.  A handle that is always somewhere, but moves between places all the time, is
overlooked by one pass with a chance below one half, and by each further one anew.  So passes are made at
irregular intervals until that is out of the question.  They need not read everything: what has not changed
between two passes over all memory (a sum of each page tells) is not where things move; all that has, what
has come since, stacks and registers are read again and again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Books, Holder, Interval, Reach, Search, Suspect, Where
from ebpftrace.process.malloc import find_heaps
from ebpftrace.process.maps import read_maps
from ebpftrace.process.memory import Memory
from ebpftrace.process.procfs import ProcessGone, require_address_space
from ebpftrace.search.areas import areas_of, dead_stacks, live_stacks, unused_parts
from ebpftrace.search.holders import Places, most_telling
from ebpftrace.search.kernelheld import kernel_words
from ebpftrace.search.matching import Matcher
from ebpftrace.search.presence import PAGE, Presence
from ebpftrace.search.reading import Batch, Reader, Sums
from ebpftrace.search.runs import Addresses, Runs, difference, intersection, merged, no_runs, runs_of, union
from ebpftrace.search.threads import Moment, Threads
from ebpftrace.text import size as size_text
from ebpftrace.vmas import Vmas

LOOKS = 32
"""Passes in which a handle that moves has to be overlooked before it is called lost: 2 ** -32 at worst."""
_CPU_PER_BYTE = 0.9 / (1 << 30)
_LEAST_CPU = 0.6
"""CPU seconds that the search of a small process may take: it need not be satisfied with changed pages."""
_PAUSE = (0.002, 0.012)
"""Seconds between two passes, from, to: the timer of the kernel interrupts a running thread every 1 to 10 ms,
and its registers are then known anew."""
_HOLDERS = 3
_EVERYWHERE = Interval(0, 1 << 63)
REGISTERS_GAP = "registers were not searched"


class OutOfBudgetError(Exception):
    """The limit of bytes or of CPU time is reached."""


class Searching:
    """One search.  ``run`` makes it."""

    def __init__(
        self,
        pid: int,
        suspects: Sequence[Suspect],
        books: Books,
        groups: Sequence[int],
        limit: Optional[int],
        deadline_cpu: Optional[float],
        progress: Callable[[float], None],
    ) -> None:
        self._pid = pid
        self._suspects = list(dict.fromkeys(suspects))
        self._books = books
        self._limit = limit
        self._deadline = deadline_cpu
        self._progress = progress
        self._began = time.process_time()
        self._vmas = Vmas()
        self._groups = groups
        count = len(self._suspects)
        self._kept: NDArray[np.bool_] = np.zeros(count, np.bool_)
        self._followed: NDArray[np.bool_] = np.zeros(count, np.bool_)
        """Kept ones that were searched for what they keep; in later passes they are as other memory."""
        self._found: list[list[Holder]] = [[] for _ in range(count)]
        self._changing = no_runs()
        self._known = no_runs()
        self._sums = Sums()
        self._read_bytes = 0
        self._planned_bytes = 1
        self._pass_bytes = 0
        self._looks = 0
        self._swapped = self._unknown = 0
        self._cut_short = ""

    def run(self) -> Search:
        """Search.  Raises ``ProcessGone`` or ``CannotTrace``."""
        with ExitStack() as held:
            self._memory = held.enter_context(Memory(self._pid))
            self._presence = Presence(self._pid)
            held.callback(self._presence.close)
            self._threads = Threads(self._pid, self._groups)
            held.callback(self._threads.close)
            self._reader = Reader(self._memory, self._still_present)
            try:
                self._passes()
            except OutOfBudgetError as reached:
                self._cut_short = str(reached)
            self._require_same_process()
            return self._result()

    # --- passes -------------------------------------------------------------------------------

    def _passes(self) -> None:
        before = time.process_time()
        if self._full_pass() or self._kept.all():
            return
        self._sums.done()
        self._pause()
        quiet = self._full_pass()
        cost = (time.process_time() - before) / 2
        while not quiet and not self._kept.all() and self._looks < LOOKS:
            self._pause()
            if self._can_pay(cost):
                quiet = self._full_pass()
            else:
                self._hot_pass()

    def _can_pay(self, full: float) -> bool:
        """Whether full passes may go on, until enough were made."""
        budget = max(_LEAST_CPU, _CPU_PER_BYTE * self._pass_bytes)
        return time.process_time() - self._began + full * (LOOKS - self._looks) <= budget

    def _pause(self) -> None:
        time.sleep(random.uniform(*_PAUSE))

    def _full_pass(self) -> bool:
        """Search everything; whether no thread has run meanwhile."""
        moment = self._moment = self._threads.look()
        vmas = read_maps(self._pid)
        self._vmas = vmas
        stacks = live_stacks(self._books, vmas)
        self._areas = areas_of(vmas, stacks)
        self._stacks = stacks
        # All but the page of [vsyscall], which lies in the kernel's half.
        self._highest = max((end for end in vmas.ends if not end >> 63), default=1) - 1
        is_first = self._looks == 0
        present = self._presence.look(self._areas, runs_of([_EVERYWHERE]))
        self._swapped, self._unknown = present.swapped.size, present.unknown
        if is_first:
            self._planned_bytes = 2 * present.pages.size + 1
        self._look_at_kernel()
        self._pass(moment, present.pages, full=True, note=is_first)
        self._known = present.pages
        after = self._moment = self._threads.look()
        self._look_at_registers(after)
        return moment.no_thread_ran_until(after)

    def _hot_pass(self) -> None:
        """Search what changes, what is new, and the stacks."""
        moment = self._threads.look()
        present = self._presence.look(self._areas, runs_of([_EVERYWHERE])).pages
        new = difference(present, self._known)
        hot = union(union(self._changing, new), runs_of(self._stacks))
        self._changing = union(self._changing, new)
        self._known = union(self._known, present)
        self._pass(moment, intersection(present, hot), full=False, note=False)

    def _pass(self, moment: Moment, pages: Runs, full: bool, note: bool) -> None:
        self._looks += 1
        self._look_at_registers(moment)
        matcher = self._matcher()
        if matcher is None:
            return
        dead = self._dead(moment)
        kept = self._witness(np.flatnonzero(self._kept).tolist(), dead)
        no_witness = difference(union(dead, self._pieces_of_lost()), kept)
        todo = difference(pages, _whole_pages(no_witness))
        if full:
            self._pass_bytes = todo.size
        first = intersection(todo, _covering_pages(self._areas.telling))
        backwards = self._looks % 2 == 0
        for part in (first, difference(todo, first)):
            self._read(part, matcher, lambda at: ~no_witness.holds(at), full, note, backwards)
        self._follow(pages, dead, full, note)

    def _follow(self, pages: Runs, dead: Runs, full: bool, note: bool) -> None:
        """Search what was found to be kept for what it keeps, until nothing more is found."""
        done = self._followed.copy()
        while True:
            newly = np.flatnonzero(self._kept & ~done)
            matcher = self._matcher()
            if not len(newly) or matcher is None:
                break
            done[newly] = True
            witness = self._witness(newly.tolist(), dead)
            todo = intersection(pages, _covering_pages(witness))
            self._read(todo, matcher, witness.holds, full, note, False)
        self._followed = self._kept.copy()

    def _witness(self, kept: Sequence[int], dead: Runs) -> Runs:
        """What of kept suspects counts: mappings, and of an exited thread what a join reads."""
        mappings: list[Interval] = []
        descriptors: list[tuple[int, int]] = []
        for index in kept:
            suspect = self._suspects[index]
            if suspect.handle is None:
                mappings += suspect.pieces
            else:
                descriptors += [(max(piece.start, suspect.handle), piece.end) for piece in suspect.pieces]
        return union(difference(runs_of(mappings), dead), runs_of(descriptors))

    def _read(
        self,
        runs: Runs,
        matcher: Matcher,
        counts: Callable[[Addresses], NDArray[np.bool_]],
        full: bool,
        note: bool,
        backwards: bool,
    ) -> None:
        changed: list[Addresses] = []
        for batch in self._reader.batches(runs, backwards):
            self._spend(batch.size)
            if note:
                self._sums.add(batch)
            elif full:
                changed.append(self._sums.changed(batch))
            hits = matcher.find(batch.halves, partial(_counts, batch, counts))
            if hits is not None:
                addresses, _ = batch.addresses(hits.positions)
                for suspect, address in zip(hits.suspects.tolist(), addresses.tolist()):
                    self._keep(suspect, Holder(Where.MAPPING, address))
        if changed:
            pages = np.unique(np.concatenate(changed))
            if len(pages):
                self._changing = union(self._changing, merged(pages, pages + np.uint64(PAGE)))

    def _spend(self, size: int) -> None:
        self._read_bytes += size
        self._progress(min(0.99, self._read_bytes / self._planned_bytes))
        if self._deadline is not None and time.process_time() - self._began > self._deadline:
            raise OutOfBudgetError("the time for it ran out before everything was searched")
        if self._limit is not None and self._looks == 1 and self._read_bytes > self._limit:
            raise OutOfBudgetError(f"more than {size_text(self._limit)} were not searched")

    # --- what counts ----------------------------------------------------------------------------

    def _matcher(self) -> Optional[Matcher]:
        wanted = np.flatnonzero(~self._kept).tolist()
        return Matcher(self._suspects, wanted, self._highest) if wanted else None

    def _pieces_of_lost(self) -> Runs:
        indices = np.flatnonzero(~self._kept).tolist()
        return runs_of(piece for index in indices for piece in self._suspects[index].pieces)

    def _dead(self, moment: Moment) -> Runs:
        dead = dead_stacks(self._books, moment.in_use)
        return union(dead, unused_parts(self._stacks, moment.unused_below))

    def _look_at_registers(self, moment: Moment) -> None:
        matcher = self._matcher()
        if matcher is not None and moment.words.size:
            columns = moment.words.shape[1]
            for suspect, positions in matcher.find_words(moment.words.ravel(), _HOLDERS).items():
                for position in positions:
                    self._keep(suspect, moment.holder(*divmod(position, columns)))

    def _look_at_kernel(self) -> None:
        matcher = self._matcher()
        if matcher is not None:
            words = kernel_words(self._pid)
            values = np.array([value for _, value in words], np.uint64)
            for suspect, positions in matcher.find_words(values, _HOLDERS).items():
                for position in positions:
                    self._keep(suspect, Holder(Where.KERNEL, None, words[position][0]))

    def _keep(self, suspect: int, holder: Holder) -> None:
        self._kept[suspect] = True
        if len(self._found[suspect]) < _HOLDERS:
            self._found[suspect].append(holder)

    def _still_present(self, runs: Runs) -> Runs:
        self._require_same_process()
        return self._presence.look(self._areas, runs).pages

    def _require_same_process(self) -> None:
        """Raise ``ProcessGone`` where the process has exited or runs another program."""
        start = self._vmas.starts[0] if len(self._vmas) else 0
        if not self._memory.read_partial(start, 1):
            try:
                require_address_space(self._pid, self._pid)
            except OSError:
                raise ProcessGone(self._pid) from None

    def _named(self) -> dict[Holder, Holder]:
        heaps = find_heaps(self._vmas, self._memory) if "glibc" in self._books.libc else []
        places = Places(self._pid, self._vmas, self._books, heaps, self._moment.places)
        try:
            return places.named(holder for found in self._found for holder in found)
        finally:
            places.close()

    def _result(self) -> Search:
        gaps = []
        if self._threads.no_registers:
            gaps.append(f"{REGISTERS_GAP}: {self._threads.no_registers}")
        for size, what in (
            (self._swapped, "are in swap and were not searched"),
            (self._reader.unreadable, "could not be read"),
            (self._unknown, "of address space were too much to be looked at"),
        ):
            if size:
                gaps.append(f"{size_text(size)} {what}")
        if self._cut_short:
            gaps.append(self._cut_short)
        named = self._named()
        reach = {
            suspect: Reach(not kept, most_telling(named[holder] for holder in found))
            for suspect, kept, found in zip(self._suspects, self._kept.tolist(), self._found)
        }
        return Search(
            reach=reach,
            complete=not gaps,
            gaps=tuple(gaps),
            unsearched_bytes=self._swapped + self._reader.unreadable,
            searches=self._looks,
            bytes_searched=self._pass_bytes,
            cpu_seconds=time.process_time() - self._began,
        )


def _counts(
    batch: Batch, counts: Callable[[Addresses], NDArray[np.bool_]], positions: NDArray[np.int64]
) -> NDArray[np.bool_]:
    addresses, whole = batch.addresses(positions)
    return whole & counts(addresses)


def _whole_pages(runs: Runs) -> Runs:
    """The pages that lie in a run as a whole."""
    page = np.uint64(PAGE)
    starts, ends = (runs.starts + page - np.uint64(1)) // page * page, runs.ends // page * page
    full = starts < ends
    return merged(starts[full], ends[full])


def _covering_pages(runs: Runs) -> Runs:
    """All pages that a run touches."""
    page = np.uint64(PAGE)
    return merged(runs.starts // page * page, (runs.ends + page - np.uint64(1)) // page * page)
