# SPDX-License-Identifier: Apache-2.0
"""The search of one process: passes over its memory, until a handle that was not found must be absent.

The process keeps running.  If none of its threads ran during a pass, that pass is exact and one is enough.
Otherwise a handle that moves may be overlooked: if it is always stored somewhere but moves all the time, one
pass over all memory overlooks it with a chance below one half, and so does each further pass, independently.
So passes are made at irregular intervals until that can be ruled out, or until they have taken enough CPU
time; then ``overlooked`` is the chance that remains, at worst.  Between full passes, others read only the
memory that things move through: pages that are new or have changed (by their checksums), stacks and
registers. These find whatever moves through pages in which anything else changes too, as nearly everything
does, but they prove nothing about other pages.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from ebpftrace.model import Holder, Interval, Reach, ReadState, Search, Suspect, ThreadLists, Where
from ebpftrace.search.areas import Areas, areas_of, dead_stacks, live_stacks, unused_parts
from ebpftrace.search.frames import with_frames
from ebpftrace.search.hidden import disguised_pointers
from ebpftrace.search.holders import most_informative
from ebpftrace.search.matching import Matcher
from ebpftrace.search.reading import Batch, Reader, Sums
from ebpftrace.search.runs import Addresses, Runs, difference, intersection, merged, no_runs, runs_of, union
from ebpftrace.search.source import Source
from ebpftrace.search.suspected import Suspected
from ebpftrace.search.threads import THREAD_POINTERS, Moment
from ebpftrace.text import size as size_text
from ebpftrace.units import PAGE
from ebpftrace.unwind.copies import FramesOf
from ebpftrace.vmas import Vmas

MAX_PASSES = 32
"""Passes of either kind that must not find a suspect before it is called lost."""
_MIN_PASSES = 12
"""As ``MAX_PASSES``, if they take more CPU time than they should."""
ENOUGH = 12
"""Full passes after which the remaining doubt is not reported: they overlook one moving handle in 4,000."""
_CPU_PER_BYTE = 0.9 / (1 << 30)
"""CPU seconds that the passes may take for each byte of memory."""
_MIN_CPU = 0.9
"""CPU seconds that the passes may take in any case."""
_MIN_HOT = 4 << 20
"""Bytes of changing pages that one pass may read in any case."""
_HOT_SHARE = 100
"""One pass may also read one part in this many of all memory."""
_PASSES_FOR_NEW = 4
"""One in this many passes over changing pages also finds new pages, which takes 20 ms for each GiB."""
_PAUSE = (0.002, 0.012)
"""Shortest and longest pause between two passes, in seconds.

The kernel's timer interrupts a running thread every 1 to 10 ms, after which its registers are known again.
"""
_LISTS_CPU = 0.02
"""CPU seconds; glibc's lists are read again at each pass if that takes no longer than this."""
_MANY_LISTED = 4096
"""With at least this many threads it takes longer, so the caller's reading is used at first."""
_HOLDERS = 3
_MANY_SUSPECTS = 1000
_EVERYWHERE = runs_of([(0, 1 << 63)])
_NOWHERE = np.uint64((1 << 64) - 1)
REGISTERS_GAP = "registers were not searched"

Counts = Callable[[Addresses], NDArray[np.bool_]]
"""Returns at which of the given addresses a word counts."""


Read = Callable[[Runs, Counts], None]


class OutOfBudgetError(Exception):
    """The limit of bytes or of CPU time has been reached."""


class _Survey(NamedTuple):
    """The mappings and thread lists of the process at the start of a full pass."""

    vmas: Vmas
    thread_lists: ThreadLists
    areas: Areas
    stacks: Sequence[Interval]
    """Stacks of live threads."""


class Searching:
    """One search, made by ``run``."""

    def __init__(
        self,
        source: Source,
        suspects: Sequence[Suspect],
        thread_lists: ThreadLists,
        limit: Optional[int],
        deadline_cpu: Optional[float],
        progress: Callable[[float], None],
        began: float,
        frames_of: Optional[FramesOf] = None,
    ) -> None:
        """``began`` is ``time.process_time()`` at the start of the search."""
        self._frames_of = frames_of
        self._source = source
        self._limit = limit
        self._deadline = deadline_cpu
        self._progress = progress
        self._began = began
        self._suspected = Suspected(suspects)
        count = len(self._suspected)
        self._kept: NDArray[np.bool_] = np.zeros(count, np.bool_)
        self._followed: NDArray[np.bool_] = np.zeros(count, np.bool_)
        """Kept suspects that were searched for references to others; later passes treat them as other
        memory."""
        self._lives: dict[int, Holder] = {}
        """Suspects with a live thread at their address: the one that had exited was joined."""
        self._found: dict[int, list[Holder]] = {}
        """Holders of the kept suspects; of a hundred thousand suspects most are lost."""
        self._most_holders = _HOLDERS if count <= _MANY_SUSPECTS else 1
        self._thread_lists = thread_lists
        self._lists_cpu = 0.0 if len(thread_lists.threads) < _MANY_LISTED else math.inf
        self._lists_read_last = False
        """After the last pass: who was lost then and is still on the lists can't be joined any more."""
        self._matcher: Optional[Matcher] = None
        self._matched: NDArray[np.bool_] = np.zeros(count, np.bool_)
        self._changing = no_runs()
        """Pages that have changed since they were first read, or are new since then."""
        self._known = no_runs()
        self._sums = Sums()
        self._reader = Reader(source.read_into, self._still_present)
        self._passes_made = self._full_passes_made = 0
        self._overlooked = 1.0
        self._read_bytes = 0
        self._planned_bytes = 1
        self._pass_bytes = 0
        self._swapped = self._unknown = 0
        self._cut_short = ""

    def run(self) -> Search:
        """Search.  Raises ``ProcessGone`` or ``CannotTrace``."""
        try:
            self._passes()
            self._make_sure_of_dead_stacks()
        except OutOfBudgetError as reached:
            self._cut_short = str(reached)
        self._source.require_alive(self._survey.vmas)
        for suspect, holder in self._lives.items():
            if not self._kept[suspect]:  # the memory may have been read before that thread was created
                self._keep(suspect, holder)
        return self._result()

    # --- passes -------------------------------------------------------------------------------

    def _passes(self) -> None:
        before = time.process_time()
        quiet = self._full_pass()
        if self._is_done(quiet):
            return
        self._sums.done()
        self._pause()
        begin = time.process_time()
        quiet = self._full_pass()
        cost = time.process_time() - begin
        other_cost = 0.1 * cost
        while not self._is_done(quiet):
            self._pause()
            begin = time.process_time()
            left = max(_MIN_CPU, _CPU_PER_BYTE * self._pass_bytes) - (begin - before)
            if cost + other_cost * max(0, _MIN_PASSES - self._passes_made) <= left:
                quiet = self._full_pass()
                cost = time.process_time() - begin
            elif other_cost <= left or self._passes_made < _MIN_PASSES:
                self._hot_pass()
                other_cost = time.process_time() - begin
            else:
                break

    def _is_done(self, quiet: bool) -> bool:
        """Whether all suspects are found or the others absent; ``quiet`` if no thread ran in a full pass."""
        self._overlooked = 0.0 if quiet else 0.5**self._full_passes_made
        return quiet or self._passes_made >= MAX_PASSES or bool(self._kept.all())

    def _pause(self) -> None:
        time.sleep(random.uniform(*_PAUSE))

    def _full_pass(self) -> bool:
        """Search all memory; returns whether no thread ran meanwhile."""
        moment = self._moment = self._source.moment()
        self._survey = self._take_survey()
        present = self._source.present(self._survey.areas, _EVERYWHERE)
        self._swapped, self._unknown = present.swapped.size, present.unknown
        if not self._passes_made:
            self._planned_bytes = 2 * present.pages.size + 1
        self._search_kernel()
        self._pass(moment, present.pages, partial(self._read_all, note=not self._passes_made))
        self._full_passes_made += 1
        self._known = present.pages
        after = self._moment = self._source.moment()
        self._search_registers(after)
        return moment.no_thread_ran_until(after)

    def _hot_pass(self) -> None:
        """Search changing pages, new pages, and the stacks."""
        moment = self._source.moment()
        if self._passes_made % _PASSES_FOR_NEW == 0:
            present = self._source.present(self._survey.areas, _EVERYWHERE).pages
            new = difference(present, self._known)
            self._changing = union(self._changing, new)
            self._known = union(self._known, new)
        hot = _covering_pages(union(self._some(self._changing), runs_of(self._survey.stacks)))
        present = self._source.present(self._survey.areas, hot).pages
        self._pass(moment, present, self._read)

    def _some(self, runs: Runs) -> Runs:
        """All of these runs, or a random part of them if they are too large for one pass."""
        limit = max(_MIN_HOT, self._pass_bytes // _HOT_SHARE)
        if runs.size <= limit:
            return runs
        sizes = np.cumsum(runs.ends - runs.starts)
        begin = random.randrange(int(sizes[-1]))
        first = int(np.searchsorted(sizes, begin, "right"))
        last = int(np.searchsorted(sizes, begin + limit, "right"))
        start = int(runs.ends[first]) - (int(sizes[first]) - begin)
        chosen = Runs(runs.starts[first : last + 1], runs.ends[first : last + 1])
        start = start // PAGE * PAGE
        return intersection(
            chosen, runs_of([(start, start + limit if last == first else int(chosen.ends[-1]))])
        )

    def _take_survey(self) -> _Survey:
        vmas = self._source.vmas()
        if self._lists_cpu <= _LISTS_CPU:
            self._read_lists(vmas)
        stacks = live_stacks(self._thread_lists, vmas)
        return _Survey(vmas, self._thread_lists, areas_of(vmas, stacks), stacks)

    def _read_lists(self, vmas: Vmas) -> None:
        """Read glibc's lists again, because the stack of an exited thread may serve another one by now."""
        before = time.process_time()
        self._thread_lists = self._source.thread_lists(vmas, self._thread_lists)
        self._lists_cpu = time.process_time() - before

    def _pass(self, moment: Moment, pages: Runs, read: Read) -> None:
        is_full = self._passes_made < 2
        backwards = self._passes_made % 2 == 1
        self._passes_made += 1
        self._lists_read_last = False
        self._search_registers(moment)
        dead = self._dead(moment)
        no_witness = difference(
            union(dead, self._suspected.pieces_of(~self._kept)), self._witness(self._kept, dead)
        )
        todo = difference(pages, _whole_pages(no_witness))
        if is_full:
            self._pass_bytes = todo.size
        first = intersection(todo, _covering_pages(self._survey.areas.informative))
        parts = [first, difference(todo, first)]
        for part in reversed(parts) if backwards else parts:
            read(part, lambda at: ~no_witness.contains(at))
        self._follow(pages, dead, read)

    def _follow(self, pages: Runs, dead: Runs, read: Read) -> None:
        """Search the newly found suspects for references to others, until no more are found."""
        while (newly := self._kept & ~self._followed).any():
            self._followed |= newly
            witness = self._witness(newly, dead)
            read(intersection(pages, _covering_pages(witness)), witness.contains)

    def _witness(self, kept: NDArray[np.bool_], dead: Runs) -> Runs:
        """The memory of kept suspects in which references count."""
        return union(
            difference(self._suspected.mappings_of(kept), dead), self._suspected.descriptors_of(kept)
        )

    def _read_all(self, runs: Runs, counts: Counts, note: bool) -> None:
        """Search pages in a full pass; the first adds their checksums, the others find the changed pages.

        Pages that have not changed since the first pass are not searched again, except stacks, because the
        part of a stack that counts changes.
        """
        stacks = _covering_pages(runs_of(self._survey.stacks))
        changing: list[Addresses] = []
        for batch in self._batches(runs):
            if note:
                self._sums.add(batch)
                self._match(batch, counts)
                continue
            changed = self._sums.changed(batch)
            pages = batch.page_addresses()
            changing.append(pages[changed])
            hot = changed | stacks.contains(pages)
            if hot.all():
                self._match(batch, counts)
            elif hot.any():
                self._match(batch.only(hot), counts)
        pages = np.concatenate(changing) if changing else np.empty(0, np.uint64)
        if len(pages):
            self._changing = union(self._changing, merged(pages, pages + np.uint64(PAGE)))

    def _read(self, runs: Runs, counts: Counts) -> None:
        """Search pages."""
        for batch in self._batches(runs):
            self._match(batch, counts)

    def _batches(self, runs: Runs) -> Iterator[Batch]:
        for batch in self._reader.batches(runs, backwards=self._passes_made % 2 == 0):
            self._spend(batch.size)
            yield batch
            if self._wanted() is None:
                return

    def _match(self, batch: Batch, counts: Counts) -> None:
        matcher = self._wanted()
        hits = matcher.find(batch.halves, partial(_counts, batch, counts)) if matcher is not None else None
        if hits is not None:
            addresses, _ = batch.addresses(hits.positions)
            for suspect, address in zip(hits.suspects.tolist(), addresses.tolist()):
                # A descriptor begins with its own address, and a suspect does not keep itself.
                pieces = self._suspected.suspects[suspect].pieces
                if not any(piece.start <= address < piece.end for piece in pieces):
                    self._keep(suspect, Holder(Where.MAPPING, address))

    def _spend(self, size: int) -> None:
        """Account for a batch before it is searched.  Raises ``OutOfBudgetError``."""
        if self._deadline is not None and time.process_time() - self._began > self._deadline:
            raise OutOfBudgetError("the time for it ran out before everything was searched")
        if self._limit is not None and self._passes_made == 1 and self._read_bytes >= self._limit:
            raise OutOfBudgetError(f"only {size_text(self._read_bytes)} were searched, as asked for")
        self._read_bytes += size
        self._progress(min(0.99, self._read_bytes / self._planned_bytes))

    # --- what counts ----------------------------------------------------------------------------

    def _wanted(self) -> Optional[Matcher]:
        """The matcher for suspects that are not known to be kept; None if all are.

        It is built again only when half of its suspects are kept, so it also finds some that are.
        """
        kept = self._kept[self._matched]
        if self._matcher is None or 2 * int(kept.sum()) > len(kept):
            self._matched = ~self._kept
            self._matcher = None
            if self._matched.any():
                # The page of [vsyscall] is left out: it is in the kernel's half.
                highest = max((end for end in self._survey.vmas.ends if not end >> 63), default=1) - 1
                self._matcher = Matcher(self._suspected, self._matched, highest)
        return self._matcher

    def _make_sure_of_dead_stacks(self) -> None:
        """Search stacks that were left out as dead but may be in use by now.

        This is needed if the lists are too long to be read again at each pass.
        """
        if self._kept.all() or self._lists_cpu <= _LISTS_CPU:
            return
        before = dead_stacks(self._thread_lists, self._moment.in_use)
        # Stacks that were mapped after the survey are not among those that were left out.
        self._read_lists(self._survey.vmas)
        self._lists_read_last = True
        if difference(before, dead_stacks(self._thread_lists, self._moment.in_use)).pieces:
            self._full_pass()

    def _dead(self, moment: Moment) -> Runs:
        dead = dead_stacks(self._survey.thread_lists, moment.in_use)
        return union(dead, unused_parts(self._survey.stacks, moment.unused_below))

    def _search_registers(self, moment: Moment) -> None:
        columns = moment.words.shape[1]
        for suspect, positions in self._find_words(moment.words.ravel()):
            for position in positions:
                holder = moment.holder(*divmod(position, columns))
                if holder.symbol in THREAD_POINTERS and self._suspected.has_handle[suspect]:
                    self._lives[suspect] = holder
                else:
                    self._keep(suspect, holder)

    def _search_kernel(self) -> None:
        words = self._source.kernel_words()
        for suspect, positions in self._find_words(np.array([value for _, value in words], np.uint64)):
            for position in positions:
                self._keep(suspect, Holder(Where.KERNEL, None, words[position][0]))

    def _find_words(self, words: Addresses) -> list[tuple[int, list[int]]]:
        matcher = self._wanted()
        if matcher is None or not len(words):
            return []
        return list(matcher.find_words(words, self._most_holders).items())

    def _keep(self, suspect: int, holder: Holder) -> None:
        self._kept[suspect] = True
        found = self._found.setdefault(suspect, [])
        if len(found) < self._most_holders and holder not in found:
            found.append(holder)

    def _still_present(self, runs: Runs) -> Runs:
        self._source.require_alive(self._survey.vmas)
        return self._source.present(self._survey.areas, runs).pages

    # --- the result -----------------------------------------------------------------------------

    def _gone(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The suspects that were not found but are none any more, because they were joined or unmapped.

        Returns these, and those among them of which certainly nothing is left.  If a live thread was seen at
        the address, the lists show whether it has exited as well.
        """
        lost = ~self._kept
        gone = np.zeros(len(lost), np.bool_)
        freed = gone.copy()
        lives = np.zeros_like(lost)
        lives[list(self._lives)] = True
        asked = (lost | lives) & self._suspected.has_handle
        if asked.any():
            if not self._lists_read_last:
                self._read_lists(self._source.vmas())
            exited = [thread.descriptor for thread in self._thread_lists.threads if thread.exited]
            listed = np.isin(self._suspected.handles, np.array(exited, np.uint64))
            if self._thread_lists.state is ReadState.READ:
                freed |= asked & ~listed
            gone |= freed | (asked & lost & ~listed)
        if (lost & ~self._suspected.has_handle).any():
            vmas = self._source.vmas()
            mapped = merged(np.array(vmas.starts, np.uint64), np.array(vmas.ends, np.uint64))
            at = np.maximum(np.searchsorted(mapped.starts, self._suspected.starts, "right") - 1, 0)
            whole = mapped.contains(self._suspected.starts) & (self._suspected.ends <= mapped.ends[at])
            cut = np.zeros_like(gone)
            cut[self._suspected.owners[~whole]] = True
            gone |= cut & lost
            left = intersection(self._suspected.pieces_of(gone & ~self._suspected.has_handle), mapped)
            rest = np.searchsorted(left.ends, self._suspected.starts, "right")
            has_rest = np.append(left.starts, _NOWHERE)[rest] < self._suspected.ends
            freed |= gone & ~self._suspected.has_handle
            freed[self._suspected.owners[has_rest]] = False
        return gone, freed

    def _result(self) -> Search:
        gaps = []
        if self._source.no_registers:
            gaps.append(f"{REGISTERS_GAP}: {self._source.no_registers}")
        for size, what in (
            (self._swapped, "are in swap and were not searched"),
            (self._reader.unreadable, "could not be read"),
            (self._unknown, "of address space were too much to be examined"),
        ):
            if size:
                gaps.append(f"{size_text(size)} {what}")
        left = self._pass_bytes - self._read_bytes if self._cut_short and self._passes_made == 1 else 0
        if self._cut_short:
            gaps.append(self._cut_short)
        elif self._overlooked > 0.5**ENOUGH and not self._kept.all():
            gaps.append(
                f"the process works all the time: what moves may have been overlooked, with a chance of "
                f"{self._overlooked:.1%} at worst"
            )
        found = dict.fromkeys(holder for holders in self._found.values() for holder in holders)
        named = self._source.named(found, self._survey.vmas, self._survey.thread_lists, self._moment)
        if self._frames_of is not None:
            named = self._with_frames(named, self._frames_of)
        # If the first pass was cut short, suspects that were not found are not reported as lost.
        dropped, freed = (~self._kept, None) if left > 0 else self._gone()
        lost = Reach(True)
        reach = {
            suspect: Reach(False, most_informative(named[holder] for holder in self._found[at]))
            if kept
            else lost
            for at, (suspect, kept, drop) in enumerate(
                zip(self._suspected.suspects, self._kept.tolist(), dropped.tolist())
            )
            if not drop
        }
        return Search(
            reach=reach,
            complete=not gaps,
            gaps=tuple(gaps),
            unsearched_bytes=self._swapped + self._reader.unreadable + max(0, left),
            hidden=disguised_pointers(self._survey.vmas),
            gone=frozenset(
                () if freed is None else (self._suspected.suspects[at] for at in np.flatnonzero(freed))
            ),
            overlooked=0.0 if self._kept.all() else self._overlooked,
            searches=self._passes_made,
            bytes_searched=self._pass_bytes,
            cpu_seconds=time.process_time() - self._began,
        )

    def _with_frames(self, named: dict[Holder, Holder], frames_of: FramesOf) -> dict[Holder, Holder]:
        """Add frames to the holders that are on stacks."""
        referred: dict[Holder, list[Suspect]] = {}
        for suspect, holders in self._found.items():
            for holder in holders:
                referred.setdefault(named[holder], []).append(self._suspected.suspects[suspect])
        framed = with_frames(self._source, self._survey.areas, referred, frames_of)
        return {holder: framed.get(place, place) for holder, place in named.items()}


def _counts(batch: Batch, counts: Counts, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
    addresses, whole = batch.addresses(positions)
    return whole & counts(addresses)


def _whole_pages(runs: Runs) -> Runs:
    """The pages that are completely in a run."""
    page = np.uint64(PAGE)
    starts, ends = (runs.starts + page - np.uint64(1)) // page * page, runs.ends // page * page
    full = starts < ends
    return merged(starts[full], ends[full])


def _covering_pages(runs: Runs) -> Runs:
    """All pages that a run touches."""
    page = np.uint64(PAGE)
    return merged(runs.starts // page * page, (runs.ends + page - np.uint64(1)) // page * page)
