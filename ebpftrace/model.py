# SPDX-License-Identifier: Apache-2.0
"""The data model shared by all packages.  Nothing here does I/O or imports bcc, drgn, rich or click.

Units: sizes and addresses in bytes; times in nanoseconds of ``CLOCK_MONOTONIC`` (as ``bpf_ktime_get_ns``
returns), None for what happened before the tracer attached.  Text that comes from a target (thread names,
paths) is decoded with ``surrogateescape`` and **not** escaped: only ``ebpftrace.report`` makes it safe to
print.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import NamedTuple, Optional


class Interval(NamedTuple):
    """A half-open address range [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class ThreadId(NamedTuple):
    """Identifies a thread although tids are reused.

    ``started_at`` is when the tracer saw the thread created, or for a thread older than the
    trace its start time in ``/proc/PID/stat`` (10 ms resolution).
    """

    tid: int
    started_at: int


@dataclass(frozen=True)
class Thread:
    """A task that runs, or ran, in the traced address space."""

    id: ThreadId
    name: str
    tgid: int
    exited_at: Optional[int] = None
    creator: Optional[ThreadId] = None
    creator_name: Optional[str] = None
    before_attach: bool = False
    inner_tid: Optional[int] = None
    """Its tid in its own PID namespace; None where that is the initial one, or it is not known."""
    creator_inner_tid: Optional[int] = None

    @property
    def alive(self) -> bool:
        """The tracer has not seen it exit."""
        return self.exited_at is None


class ThreadStart(NamedTuple):
    """A clone call that gave a stack to a thread, which therefore owns the stack.

    ``stack`` and ``stack_size`` are the arguments: for clone3 the lowest byte and the size, for clone a
    pointer near the top and 0.
    """

    thread: ThreadId
    name: str
    stack: int
    stack_size: int
    exited_at: Optional[int]
    creator: ThreadId
    creator_name: str
    site: int = 0
    """Site of the clone call, 0 where none was recorded."""
    tgid: int = 0
    """Thread group of the thread, 0 where it is not known."""
    creator_stack_pointer: int = 0
    """The creator's stack pointer; on the same stack, the stack was only lent (vfork).  0: not known."""
    inner_tid: Optional[int] = None
    """As in ``Thread``."""

    @property
    def stack_byte(self) -> int:
        """The highest byte of the stack, where the thread starts.

        The lowest byte, which clone3 is given, may belong to a guard page.  The pointer given to clone is the
        first byte above an empty stack (clone(2)).
        """
        return self.stack + self.stack_size - 1


class StackSighting(NamedTuple):
    """A thread was seen on a stack that no clone call had given to it: it had switched by itself."""

    thread: ThreadId
    address: int
    """The last stack pointer that was seen there."""
    at: int

    @property
    def stack_byte(self) -> int:
        """A byte of the stack; the stack pointer of an empty stack is the first byte above it."""
        return self.address - 1


SIZE_UNKNOWN = 1 << 31
"""A bit of ``Row.prot`` that no call uses: the size is unknown, the row has one page (shmat, io_setup)."""


class Row(NamedTuple):
    """One row of the ledger in the BPF maps: a mapping as its mmap or mremap call made it."""

    start: int
    length: int
    since: int
    """When the mapping got this range; determines which unmaps and moves affect it."""
    made_at: int
    """When the mmap call that made it returned.  Differs from ``since`` after mremap."""
    mapper: ThreadId
    prot: int
    flags: int
    site: int
    """Signature of the user stack that made it, 0 where none was taken."""


class FailedCall(NamedTuple):
    """A call on the address space that failed, with its arguments."""

    call: str
    """``mmap``, ``munmap`` or ``mremap``."""
    error: int
    """errno"""
    start: int
    length: int
    """For mremap the old size; rounded up to pages, otherwise as the program passed it."""
    new: Interval
    """For mremap the new address and size."""
    flags: int
    tid: int
    at: int


class Failures(NamedTuple):
    """Number of failures of a call with one errno."""

    call: str
    error: int
    times: int


class Mapping(NamedTuple):
    """An outstanding mapping: what one call mapped, minus what has been unmapped since."""

    pieces: tuple[Interval, ...]
    """The ranges that are left, ascending and disjoint; at least one."""
    made_at: Optional[int]
    """None for a mapping of the baseline."""
    mapper: Optional[ThreadId]
    """None for a mapping of the baseline."""
    prot: Optional[int]
    flags: Optional[int]
    """Flags of the mmap call; None for a mapping of the baseline."""
    site: int
    since: Optional[int] = None
    """When it got its present address: ``made_at``, or later after mremap; None if before attach."""
    made: Optional[Interval] = None
    """The range that the call mapped or moved to; None for a mapping of the baseline."""
    stack_users: tuple[ThreadId, ...] = ()
    """Threads that were given a part of it as their stack."""
    file: str = ""
    """The mapped file as /proc names it (a path, ``anon_inode:[io_uring]``); empty for anonymous memory."""

    @property
    def start(self) -> int:
        """Start of the first piece."""
        return self.pieces[0].start

    @property
    def end(self) -> int:
        """End of the last piece."""
        return self.pieces[-1].end

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        pieces = self.pieces
        if len(pieces) == 1:  # nearly always
            start, end = pieces[0]
            return end - start
        return sum(end - start for start, end in pieces)

    @property
    def before_attach(self) -> bool:
        """It belongs to the baseline."""
        return self.made_at is None


class OwnedBy(Enum):
    """Why a thread owns a mapping."""

    RUNS_ON_IT = "runs on it"
    SWITCHED_TO_IT = "stood on it"
    """It had switched to it by itself: its stack pointer was seen there."""
    MAPPED_IT = "mapped it"

    # By identity, as members are compared: Enum hashes their names, in Python, and of a hundred thousand
    # mappings each is asked several times.
    __hash__ = object.__hash__


class Outstanding(NamedTuple):
    """An outstanding mapping with its owner, which is None where it is not known (baseline)."""

    mapping: Mapping
    owner: Optional[Thread]
    owned_by: Optional[OwnedBy]
    mapper: Optional[Thread]
    run: Optional[ThreadStart] = None
    """The clone call that gave this stack to its owner, if it was in the window."""


class Vma(NamedTuple):
    """One line of ``/proc/PID/maps``, with sizes from ``smaps`` if that was read."""

    start: int
    end: int
    perms: str
    """Four letters as the kernel prints them, such as ``rw-p``."""
    offset: int
    device: str
    inode: int
    path: str
    """Path or pseudo-name (``[heap]``), empty for anonymous memory."""
    rss: Optional[int] = None
    swap: Optional[int] = None
    guard: bool = False
    """No access is allowed here, by permissions (``---p``) or smaps' VmFlags."""
    huge: int = 0
    """Bytes in huge TLB pages, in neither ``rss`` nor the process's RSS; 0 unless smaps was read."""
    page: int = 0
    """Bytes of a page as the kernel maps it, larger on hugetlbfs; 0 unless smaps was read."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    @property
    def is_anonymous(self) -> bool:
        """Private memory without a file, whatever it is named."""
        is_file = bool(self.inode or (self.path and not self.path.startswith("[anon:")))
        return not is_file and self.perms.endswith("p")


class LiveThread(NamedTuple):
    """A live task in the address space."""

    tid: int
    inner_tid: int
    """Its tid in its own PID namespace, as in glibc's thread lists."""
    name: str
    stack_pointer: Optional[int]
    """None if it was on a CPU at each reading, or the kernel did not show it."""


class Heap(NamedTuple):
    """One heap of an arena of glibc's malloc (malloc/arena.c, heap_info)."""

    start: int
    end: int
    first: bool
    """It is the first heap of its arena; others were added when that was full."""


class MallocFree(NamedTuple):
    """What the arenas of glibc's malloc keep free for later; bytes."""

    arenas: int
    size: int
    """In free chunks; those in fast bins and in the caches of threads are not counted."""
    resident: int
    """Whole pages of it that are in memory: what ``malloc_trim(0)`` can give back."""
    is_complete: bool
    """All lists were read to their end; else there is more."""


# --- stacks ------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """One frame, innermost first in a stack; an inlined function is a frame of its own."""

    function: Optional[str]
    """Demangled name, None where only module+offset is known."""
    file: Optional[str] = None
    line: Optional[int] = None
    module: Optional[str] = None
    """Path of the ELF file, ``[vdso]`` or the perf map; None outside all of them."""
    offset: Optional[int] = None
    """File address (as nm and addr2line count) of the pc inside ``module``."""
    inlined: bool = False
    function_offset: Optional[int] = None
    """Bytes from the start of the function's symbol to ``offset``; None where no symbol is known."""


class StackSource(Enum):
    """How a stack was obtained, as the JSON contract names it."""

    COPIED = "copied"
    SIGNATURE = "signature"
    FRAME_POINTER = "frame-pointer"
    NONE = "none"


@dataclass(frozen=True)
class Stack:
    """A user stack with names."""

    frames: tuple[Frame, ...] = ()
    complete: bool = False
    """The walk reached the outermost frame of the thread."""
    source: StackSource = StackSource.NONE
    note: str = ""
    """One line about its limits, such as "3 of 40 copies differ"; empty on a good stack."""

    def seen_for(self, copied: int, calls: int) -> Stack:
        """Return the stack as that of ``calls`` calls, with a note if only ``copied`` of them were copied."""
        if not self.frames or self.source is not StackSource.COPIED or copied >= calls:
            return self
        note = f"seen for {copied} of {calls} calls; the others have the same signature, made of all of it"
        return replace(self, source=StackSource.SIGNATURE, note=f"{self.note}; {note}" if self.note else note)


NO_STACK = Stack()


# --- glibc's own thread lists -------------------------------------------------------


_NEAR_TOP = 4


class ListedThread(NamedTuple):
    """A thread descriptor on one of glibc's lists of stacks in use (nptl ``struct pthread``)."""

    descriptor: int
    tid: int
    """Kernel tid; 0 once the kernel has cleared it at exit."""
    start_routine: int
    stack: Optional[Interval]
    """The mapping that contains the descriptor, i.e. the stack; None where /proc/PID/maps has none."""
    user_stack: bool
    """The application provided the stack (pthread_attr_setstack); glibc never unmaps it."""
    exited: bool
    """The thread has exited: there is no task with this tid."""
    detached: bool = False
    """It needs no join: glibc frees its stack by itself."""
    fields: tuple[int, ...] = ()
    """What its descriptor contained, apart from links: a later reading that finds the same confirms it."""

    @property
    def extent_known(self) -> bool:
        """``stack`` is only the stack, not a larger mapping of which the application provided a part.

        The descriptor is at the top of the stack.
        """
        if self.stack is None:
            return False
        return not self.user_stack or _NEAR_TOP * (self.stack.end - self.descriptor) <= self.stack.size


class ReadState(Enum):
    """The result of reading glibc's thread lists."""

    READ = "read"
    UNSTABLE = "unstable"
    """The lists changed during each reading, so what was read proves nothing."""
    ABSENT = "absent"
    """There is no glibc, or its lists cannot be found."""


NO_LIBC_BUT_GO = "none (Go)"
"""``ThreadLists.libc`` of a Go program without a C library."""


@dataclass(frozen=True)
class ThreadLists:
    """glibc's lists of stacks at one moment."""

    state: ReadState
    why: str = ""
    """One line: why the lists are absent or unstable."""
    threads: tuple[ListedThread, ...] = ()
    stack_cache_bytes: Optional[int] = None
    """Bytes of stacks in glibc's cache (``_dl_stack_cache_actsize``); None if it can't be read."""
    stack_cache_limit: Optional[int] = None
    """glibc.pthread.stack_cache_size; 40 MiB unless a tunable sets it."""
    stack_cache: tuple[Interval, ...] = ()
    """The cached stacks, if the list can be read."""
    libc: str = ""
    """Such as "glibc 2.36", "musl", "static glibc", ``NO_LIBC_BUT_GO``."""

    @property
    def has_mapped_stacks(self) -> bool:
        """Whether threads may run on stacks that are mappings of their own.

        Go's runtime takes the stacks of its threads from its heap, unless C code is linked in.
        """
        return self.libc != NO_LIBC_BUT_GO


# --- the search for handles and pointers ---------------------------------------


class Where(Enum):
    """What kind of memory a holder is, as the JSON contract names it."""

    GLOBAL = "global"
    """Data of a program or library (.data, .bss)."""
    STACK = "stack"
    """The used part of a live thread's stack."""
    TLS = "tls"
    """Thread-local storage or the descriptor of a live thread."""
    HEAP = "heap"
    """Memory of malloc: the brk heap and arenas."""
    MAPPING = "mapping"
    """Other private memory, such as a large block of malloc or the heap of a runtime."""
    SHARED = "shared"
    REGISTER = "register"
    """A register that a thread had when it last entered the kernel."""
    KERNEL = "kernel"
    """The kernel stores it, such as an alternate signal stack or a ring of io_uring."""


class Holder(NamedTuple):
    """A place in the process where a handle, or a pointer into a mapping, is still stored."""

    where: Where
    address: Optional[int] = None
    """Address of the word; None for a register and the kernel."""
    symbol: str = ""
    """Such as ``workers+0x10 in app_server`` for a global, ``rbx`` for a register; empty where unknown."""
    thread: Optional[int] = None
    """Tid of the thread that the stack, thread-local storage or register belongs to."""
    thread_name: str = ""
    frame: Optional[Frame] = None
    """The function in whose stack frame the word is; None unless that is certain."""


class Suspect(NamedTuple):
    """Memory that may be lost; the search finds the references to it."""

    pieces: tuple[Interval, ...]
    """The memory, ascending and disjoint; references stored inside it do not count."""
    handle: Optional[int] = None
    """The ``pthread_t`` of an exited thread: only this exact value is a reference to its stack.  None: any
    pointer into ``pieces`` or ``reservation`` is one."""
    reservation: Optional[Interval] = None
    """A larger reservation that the memory is a part of, if one is known."""
    silent: Optional[Interval] = None
    """The descriptor of an exited pthread: references stored here do not count, as its links to former
    neighbours on the C library's lists are not followed any more."""
    joined: bool = False
    """The thread was joined or detached: pointers to its descriptor are remains of the C library (links of
    lists, freed dtvs) and do not count."""


class Reach(NamedTuple):
    """The result of the search for one suspect."""

    lost: bool
    """None of the searches found a holder."""
    holders: tuple[Holder, ...] = ()
    """A few of the holders that were found, the most informative first."""


@dataclass(frozen=True)
class Search:
    """The results of all searches of one process."""

    reach: dict[Suspect, Reach] = field(default_factory=dict)
    """A suspect that is missing here was not searched for."""
    complete: bool = False
    """All memory that can contain a pointer was searched; only then ``lost`` is proof."""
    gaps: tuple[str, ...] = ()
    """What was not searched, a sentence each, such as ``"12.0 MiB are in swap and were not searched"``."""
    hidden: str = ""
    """Why pointers to mappings may be stored in a form that can't be recognised; empty if they are not.
    This does not concern handles."""
    unsearched_bytes: int = 0
    """Bytes that can contain a pointer and were not searched: in swap, unreadable or beyond the limit."""
    overlooked: float = 0.0
    """Probability, in the worst case, that the only reference to a lost suspect was missed, because it moved
    all the time through pages that do not change otherwise.  0 if no thread ran during a search.  For several
    suspects at once it is a power of this.
    """
    gone: frozenset[Suspect] = frozenset()
    """Suspects that were joined or unmapped during the search."""
    searches: int = 0
    bytes_searched: int = 0
    """Bytes that one search reads."""
    cpu_seconds: float = 0.0


NOT_SEARCHED = Search()


# --- findings ----------------------------------------------------------------


class Verdict(Enum):
    """The verdicts by their names in the JSON contract; CONTRIBUTING.md says how to add one."""

    NEVER_JOINED = "never-joined-thread"
    JOINED_LATER = "joined-later"
    NOT_JOINED_YET = "not-joined-yet"
    ABANDONED_STACK = "abandoned-stack"
    ORPHANED_MAPPING = "orphaned-mapping"
    HANDED_OVER = "handed-over"
    LOST_MAPPING = "lost-mapping"
    GROWING_THREADS = "growing-threads"
    STACK_CACHE = "stack-cache"
    MALLOC_ARENA = "malloc-arena"
    JUST_EXITED = "just-exited"

    @property
    def of_stacks(self) -> bool:
        """It concerns stacks of threads, not other mappings."""
        return self in (
            Verdict.NEVER_JOINED,
            Verdict.JOINED_LATER,
            Verdict.NOT_JOINED_YET,
            Verdict.ABANDONED_STACK,
            Verdict.GROWING_THREADS,
            Verdict.STACK_CACHE,
        )


class Certainty(Enum):
    """How certain a verdict is, as the JSON contract names it."""

    PROVED = "proved"
    """It can't become false: nobody can free the memory any more, or the process has ended."""
    LIKELY = "likely"
    POSSIBLE = "possible"


@dataclass(frozen=True)
class Reached:
    """The result of the search for the orphans of one finding."""

    checked: int
    """Number of orphans that were searched for."""
    lost: int
    kept: int
    complete: bool
    """All memory that can contain a pointer was searched."""
    holders: tuple[Holder, ...] = ()
    """A few holders, one of each kind of place."""


class Orphan(NamedTuple):
    """One orphan of a finding, as the report shows it."""

    outstanding: Outstanding
    rss: Optional[int]
    """Resident bytes, including huge TLB pages, which the RSS of a process does not count."""
    guard: Optional[int] = None
    """Bytes at its low end without access (the guard page), None where unknown."""
    swap: int = 0
    """Bytes of it that are in swap, 0 where unknown."""


class AcceptedBy(Enum):
    """The reason why a leak counts as known, as the JSON contract names it."""

    SUPPRESSION = "suppression"
    BASELINE = "baseline"


class Accepted(NamedTuple):
    """Why a finding is known to the user, so that a gate does not fail for it."""

    by: AcceptedBy
    why: str
    """The suppression that matches, or the number in the baseline."""


@dataclass(frozen=True)
class Site:
    """One place in the program that made orphans of a finding."""

    stack: Stack
    count: int
    """Number of these orphans."""
    size: int
    """Bytes of these orphans."""


class Sums(NamedTuple):
    """What some orphans of a finding add up to."""

    number: int = 0
    size: int = 0
    """Bytes."""
    rss: Optional[int] = None
    """Resident bytes; None if they are known for none."""
    swap: int = 0
    """Bytes in swap."""

    @classmethod
    def of(cls, orphans: Iterable[Orphan], more: Optional[Sums] = None) -> Sums:
        """The sums of these orphans, and ``more``."""
        number, size, rss, swap = more or cls()
        for orphan in orphans:
            number += 1
            size += orphan.outstanding.mapping.size
            if orphan.rss is not None:
                rss = (rss or 0) + orphan.rss
            swap += orphan.swap
        return cls(number, size, rss, swap)


class Unlisted(NamedTuple):
    """Orphans of a finding that a saved report has left out."""

    all: Sums = Sums()
    older: Sums = Sums()
    """Those of them that were mapped before attach."""


ALL_LISTED = Unlisted()


@dataclass(frozen=True)
class Finding:
    """Orphans of one site with one verdict, with the evidence for it."""

    verdict: Verdict
    leak: bool
    evidence: tuple[str, ...]
    advice: str
    before_attach: bool
    orphans: tuple[Orphan, ...]
    bytes_per_minute: Optional[float]
    stack: Stack = NO_STACK
    """The stack that made the mappings, or for threads' stacks created the threads.

    The first of ``sites``.
    """
    start_routine: Optional[Frame] = None
    period: Optional[float] = None
    """Seconds between orphans, or batches of orphans, if they come regularly."""
    batch: int = 1
    """Orphans that come together each time, if they come regularly."""
    certainty: Certainty = Certainty.LIKELY
    reach: Optional[Reached] = None
    """None if nothing was searched for."""
    undecided: bool = False
    """Whether this is a leak is not known."""
    sites: tuple[Site, ...] = ()
    """The places whose stacks are known, most orphans first; at most three."""
    more_sites: int = 0
    """Number of other places."""
    called: tuple[tuple[str, int], ...] = ()
    """The most frequent functions that a thread library was given to call, with their numbers of threads."""
    accepted: Optional[Accepted] = None
    """None: the user has not accepted it."""
    unlisted: Unlisted = ALL_LISTED
    """Orphans that are counted but not in ``orphans``: a saved report may have been shortened."""

    @property
    def fails(self) -> bool:
        """It is a leak that the user has not accepted."""
        return self.leak and self.accepted is None

    @property
    def is_suppressed(self) -> bool:
        """A suppression matches it."""
        return self.accepted is not None and self.accepted.by is AcceptedBy.SUPPRESSION

    @property
    def count(self) -> int:
        """Number of orphans."""
        return len(self.orphans) + self.unlisted.all.number

    @cached_property
    def size(self) -> int:
        """Bytes of all orphans."""
        return self.unlisted.all.size + sum(orphan.outstanding.mapping.size for orphan in self.orphans)

    @cached_property
    def rss(self) -> Optional[int]:
        """Resident bytes of the orphans for which they are known; None if they are for none."""
        known = [orphan.rss for orphan in self.orphans if orphan.rss is not None]
        if self.unlisted.all.rss is not None:
            known.append(self.unlisted.all.rss)
        return sum(known) if known else None

    @cached_property
    def swap(self) -> int:
        """Bytes of the orphans that are in swap."""
        return self.unlisted.all.swap + sum(orphan.swap for orphan in self.orphans)

    @cached_property
    def older(self) -> Sums:
        """The orphans that were mapped before attach."""
        before = (orphan for orphan in self.orphans if orphan.outstanding.mapping.before_attach)
        return Sums.of(before, self.unlisted.older)


# --- the report --------------------------------------------------------------


class EndedBy(Enum):
    """What ended the window."""

    DURATION = "duration"
    INTERRUPT = "interrupt"
    TARGET_EXIT = "target-exit"
    EXEC = "exec"
    INTERVAL = "interval"
    """The trace goes on: this is one of the reports of --interval."""

    @property
    def by_target(self) -> bool:
        """The address space itself has ended: the report describes its end."""
        return self in (EndedBy.TARGET_EXIT, EndedBy.EXEC)


@dataclass(frozen=True)
class Calls:
    """Successful and failed calls seen in the window."""

    mmap: int = 0
    munmap: int = 0
    mremap: int = 0
    brk: int = 0
    clone: int = 0
    """Creations of threads: tasks that share the memory and are no vfork children."""
    thread_exit: int = 0
    """Exits of threads."""
    fork: int = 0
    """Processes made by fork, or by vfork and posix_spawn, which share the memory until they execute."""
    failed: tuple[Failures, ...] = ()
    """Failed calls of mmap, munmap, mremap and brk, most first."""

    def failed_of(self, call: str) -> tuple[Failures, ...]:
        """The failures of one call, most first."""
        return tuple(failures for failures in self.failed if failures.call == call)


@dataclass(frozen=True)
class Losses:
    """Numbers of what could not be recorded; all 0 on a good run."""

    events: int = 0
    """Events for which the ring buffer was full, and probe runs that the kernel skipped."""
    mappings: int = 0
    """Mappings for which the ledger's table was full."""
    stacks: int = 0
    """Mappings and thread creations of the report without a stack although one was wanted."""
    threads: int = 0
    """Threads for which the table of threads was full."""

    @property
    def any(self) -> bool:
        """Something was lost."""
        return self.may_hide or self.stacks > 0

    @property
    def may_hide(self) -> bool:
        """A leak may have been missed; a lost stack hides none."""
        return bool(self.events or self.mappings or self.threads)


@dataclass(frozen=True)
class Memory:
    """Size of the address space at the begin and end of the window, bytes; None if it could not be read."""

    virt_start: Optional[int]
    virt_end: Optional[int]
    rss_start: Optional[int]
    rss_end: Optional[int]


@dataclass(frozen=True)
class TargetInfo:
    """The process that was traced."""

    pid: int
    comm: str
    exe: str
    threads: Optional[int] = None
    """Live threads at the report; None if the process had exited."""
    threads_start: Optional[int] = None
    """Live threads when the tracer attached."""
    parent: Optional[int] = None
    """For a followed process: the PID of its nearest ancestor with threads."""
    inner_pid: Optional[int] = None
    """Its PID in its own PID namespace; None where that is ours, or it is not known."""


@dataclass(frozen=True)
class ThreadTotal:
    """One line of the table of outstanding mappings by owner."""

    thread: Thread
    mappings: int
    size: int
    brk_growth: int = 0
    """Net bytes; negative if it moved the break back."""
    stack: Stack = NO_STACK
    """The site with most of these bytes."""

    @property
    def owned(self) -> int:
        """Bytes of mappings and brk growth together, at least 0."""
        return max(0, self.size + self.brk_growth)


@dataclass(frozen=True)
class Clock:
    """Converts monotonic nanoseconds to wall-clock time; read once, at attach."""

    monotonic_ns: int
    realtime_ns: int

    def wall_ns(self, monotonic_ns: int) -> int:
        """Nanoseconds since the epoch of that moment."""
        return self.realtime_ns + (monotonic_ns - self.monotonic_ns)


@dataclass(frozen=True)
class CommandEnd:
    """The state of a COMMAND that was started to be traced."""

    argv: tuple[str, ...]
    pid: int
    exit_status: Optional[int] = None
    """None if a signal ended it, it is still running, or its status is not available (SIGCHLD ignored)."""
    signal: Optional[int] = None
    """Number of the signal that ended it."""
    runs: bool = False
    """It is still running."""

    @property
    def status(self) -> int:
        """The status as shells count it: the exit status, or 128 plus the signal; 0 if it is not known."""
        return 128 + self.signal if self.signal is not None else self.exit_status or 0


@dataclass(frozen=True)
class UnjoinedBefore:
    """Exited threads on glibc's lists that had not been joined when a trace began."""

    target: TargetInfo
    threads: int
    size: int
    """Bytes of their stacks."""
    routines: tuple[tuple[Optional[Frame], int], ...]
    """Their start routines, each with its number of threads, most first."""


@dataclass(frozen=True)
class Processes:
    """Numbers of followed processes."""

    followed: int
    """Forks, and executions of another program."""
    judged: int
    """Processes that created threads, and so have a report."""
    lost: int
    """Processes that could not be followed because the tables were full."""


class LeftOut(NamedTuple):
    """What a saved report lacks because of --top, --show or --min-bytes."""

    findings: int = 0
    leaks: int = 0
    """Number of leaks among these findings."""
    size: int = 0
    threads: int = 0
    threads_size: int = 0
    """Bytes that these threads own."""


NOTHING_LEFT_OUT = LeftOut()


@dataclass(frozen=True)
class TracerCost:
    """The cost of tracing, which each run reports."""

    cpu_seconds: float
    """CPU time of the tracer itself between attach and report."""
    bpf_seconds: Optional[float] = None
    """Run time of our BPF programs in all processes of the host; None unless it was measured."""
    bpf_runs: Optional[int] = None
    """Number of their runs, likewise."""


@dataclass(frozen=True)
class Report:
    """The result of ``mmap-leaks``, which the reporters print."""

    target: TargetInfo
    seconds: float
    ended_by: EndedBy
    ended_at: int
    clock: Clock
    memory: Memory
    calls: Calls
    losses: Losses
    threads: tuple[ThreadTotal, ...]
    findings: tuple[Finding, ...]
    outstanding_mappings: int = 0
    outstanding_bytes: int = 0
    unexplained_bytes: int = 0
    """Bytes mapped now, but neither in the baseline nor by a traced call (drivers, lost events)."""
    unexplained: tuple[tuple[str, int], ...] = ()
    """The same by name in /proc (a path, or ``[anon]``), most first."""
    phantom_bytes: int = 0
    """Bytes mapped according to the ledger but not to /proc; left out of the report."""
    notes: tuple[str, ...] = field(default_factory=tuple)
    """Lines without which the report would be misread: what could not be proved, and why."""
    undecided: int = 0
    """Mappings of exited threads (or such threads, if no mapping is known) that could not be judged."""
    cost: Optional[TracerCost] = None
    command: Optional[CommandEnd] = None
    """The state of a COMMAND at this report."""
    searched: Search = NOT_SEARCHED
    executed: str = ""
    """The program that the target executed, if that ended the address space."""
    processes: Optional[Processes] = None
    """The followed processes, if this is the only report."""
    is_child: bool = False
    """The process is a descendant of one that the user named."""
    threads_only: bool = False
    """No system call was traced: only the stacks of threads are known."""
    left_out: LeftOut = NOTHING_LEFT_OUT
    """For a report that was read from a file."""

    @property
    def in_doubt(self) -> int:
        """Number of undecided mappings, without those that the user accepted."""
        accepted = (
            finding for finding in self.findings if finding.undecided and finding.accepted is not None
        )
        return max(0, self.undecided - sum(finding.count for finding in accepted))


@dataclass(frozen=True)
class Check:
    """The result of one check of this machine."""

    name: str
    ok: bool
    what: str
    """One line: what was found, or what is wrong."""
    remedy: str = ""
    """The command or step that fixes it; empty if ``ok`` or if there is none."""
    required: bool = True
    """Tracing needs it; otherwise it only improves reports."""
