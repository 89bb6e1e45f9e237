# SPDX-License-Identifier: Apache-2.0
"""The words of the house as data classes: what the rooms hand to each other.

Nothing here does I/O or knows bcc, drgn, rich or click.

Units, everywhere: sizes and addresses in bytes; times in nanoseconds of
``CLOCK_MONOTONIC`` (what ``bpf_ktime_get_ns`` returns), or None where something
happened before the tracer attached and nobody saw when.  Text that comes from a
target (thread names, paths) is decoded with ``surrogateescape`` and **not** yet
escaped: only ``ebpftrace.report`` makes it fit for a screen.
"""

from __future__ import annotations

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
    """A thread, safe against reuse of its tid.

    ``born`` is when the tracer saw the thread created; for a thread older than the
    trace it is the start time that ``/proc/PID/stat`` gives (10 ms resolution).
    """

    tid: int
    born: int


@dataclass(frozen=True)
class Thread:
    """One task that runs, or ran, in the traced address space."""

    id: ThreadId
    name: str
    tgid: int
    exited_at: Optional[int] = None
    creator: Optional[ThreadId] = None
    creator_name: Optional[str] = None
    before_attach: bool = False

    @property
    def alive(self) -> bool:
        """It has not exited, as far as the tracer saw."""
        return self.exited_at is None


class Run(NamedTuple):
    """A thread runs on a stack: the clone call that put it there; so it owns the stack.

    ``stack`` is the address the clone call was given.  For clone3 it is the lowest byte and
    ``stack_size`` is what the call said; for clone it is a pointer near the top and the size is 0.
    """

    thread: ThreadId
    name: str
    stack: int
    stack_size: int
    exited_at: Optional[int]
    creator: ThreadId
    creator_name: str
    site: int = 0
    """Site of the clone call (who created the thread), 0 where none was recorded."""
    tgid: int = 0
    """Thread group of the thread, 0 where it is not known."""
    creator_stack_pointer: int = 0
    """Where the creator stood: if on the same stack, that was only lent (vfork).  0: not known."""

    @property
    def stack_byte(self) -> int:
        """The byte of the stack that the thread begins on, its highest.

        clone3 names the lowest one, which may be a guard's, and the size; clone a pointer near the top, which
        for an empty stack is the first byte above it (clone(2)).
        """
        return self.stack + self.stack_size - 1


class Stand(NamedTuple):
    """A thread stood on a stack that no clone call had put it on: it had switched by itself."""

    thread: ThreadId
    address: int
    """Its stack pointer, the last that was seen there."""
    at: int

    @property
    def stack_byte(self) -> int:
        """A byte of the stack: of an empty one, the stack pointer is the first byte above it."""
        return self.address - 1


SIZE_UNKNOWN = 1 << 31
"""In ``prot``, where no call uses this bit: only the first page is told of the mapping (shmat, io_setup)."""


class Row(NamedTuple):
    """One row of the kernel's ledger: a mapping as its mmap or mremap call made it."""

    start: int
    length: int
    since: int
    """When this range became this mapping: orders it against holes and moves."""
    made_at: int
    """When the mmap call that made it returned: its age.  Differs from ``since`` after mremap."""
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
    """Of mremap the old size; in whole pages, otherwise whatever the program passed."""
    new: Interval
    """Of mremap: where to, and how large."""
    flags: int
    tid: int
    at: int


class Failures(NamedTuple):
    """How often a call failed for one reason."""

    call: str
    error: int
    times: int


class Mapping(NamedTuple):
    """An outstanding mapping: what one call made, minus what has been unmapped since."""

    pieces: tuple[Interval, ...]
    """What is left of it, ascending, disjoint, never empty."""
    made_at: Optional[int]
    """None for a mapping of the baseline."""
    mapper: Optional[ThreadId]
    """None for a mapping of the baseline."""
    prot: Optional[int]
    flags: Optional[int]
    """Flags of the mmap call; None for a mapping of the baseline."""
    site: int
    since: Optional[int] = None
    """When it came to lie where it is: ``made_at``, or later after mremap; None if before attach."""
    made: Optional[Interval] = None
    """What the call made or moved, of which ``pieces`` are left; None for a mapping of the baseline."""
    runners: tuple[ThreadId, ...] = ()
    """Threads that were put on a part of it that is gone by now."""
    file: str = ""
    """What it maps, as /proc names it (a path, ``anon_inode:[io_uring]``); empty for memory of no file."""

    @property
    def start(self) -> int:
        """Lowest address that is left."""
        return self.pieces[0].start

    @property
    def end(self) -> int:
        """End of the last piece."""
        return self.pieces[-1].end

    @property
    def size(self) -> int:
        """Bytes that are left."""
        pieces = self.pieces
        if len(pieces) == 1:  # nearly always
            start, end = pieces[0]
            return end - start
        return sum(end - start for start, end in pieces)

    @property
    def before_attach(self) -> bool:
        """It is of the baseline."""
        return self.made_at is None


class OwnedBy(Enum):
    """Why a thread owns a mapping."""

    RUNS_ON_IT = "runs on it"
    STOOD_ON_IT = "stood on it"
    """It had switched to it by itself: no clone call says so, its stack pointer does."""
    MAPPED_IT = "mapped it"


class Outstanding(NamedTuple):
    """An outstanding mapping with its owner; ``owner`` None where nobody knows one (baseline)."""

    mapping: Mapping
    owner: Optional[Thread]
    owned_by: Optional[OwnedBy]
    mapper: Optional[Thread]
    run: Optional[Run] = None
    """The clone call that put the owner on this stack, where there was one in the window."""


class Vma(NamedTuple):
    """One line of ``/proc/PID/maps`` (with the figures of ``smaps`` where they were read)."""

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
    """smaps VmFlags or permissions say that nothing here can be touched (---p)."""
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
    """A task that runs in the address space."""

    tid: int
    inner_tid: int
    """As its own PID namespace numbers it: what glibc's books note."""
    name: str
    stack_pointer: Optional[int]
    """None where it was running at each look, or the kernel did not tell."""


class Heap(NamedTuple):
    """One heap of an arena of glibc's malloc (malloc/arena.c, heap_info)."""

    start: int
    end: int
    first: bool
    """It is the one the arena began with; others were added when that was full."""


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
    """Bytes from the beginning of the function's symbol to ``offset``; None where no symbol is known."""


class StackSource(Enum):
    """Where a stack comes from, as the JSON contract names it."""

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
        """The same as that of so many calls, of which only some were copied: it says so."""
        if not self.frames or self.source is not StackSource.COPIED or copied >= calls:
            return self
        note = f"seen for {copied} of {calls} calls; the others have the same signature, made of all of it"
        return replace(self, source=StackSource.SIGNATURE, note=f"{self.note}; {note}" if self.note else note)


NO_STACK = Stack()


# --- glibc's own books -------------------------------------------------------


_NEAR_TOP = 4


@dataclass(frozen=True)
class BookedThread:
    """A thread descriptor on one of glibc's lists of stacks in use (nptl ``struct pthread``)."""

    descriptor: int
    tid: int
    """Kernel tid; 0 once the kernel has cleared it at exit."""
    start_routine: int
    stack: Optional[Interval]
    """The mapping that holds the descriptor, i.e. the stack; None where /proc/PID/maps has none."""
    user_stack: bool
    """The application gave the stack (pthread_attr_setstack); glibc never unmaps it."""
    exited: bool
    """No task with this tid lives: the thread has exited."""
    detached: bool = False
    """It needs no join: glibc frees its stack by itself.  Who waits in pthread_join glibc does not note."""

    @property
    def extent_known(self) -> bool:
        """``stack`` is the stack, and not all the memory in which the application gave it one.

        A descriptor lies at the top of its stack.
        """
        if self.stack is None:
            return False
        return not self.user_stack or _NEAR_TOP * (self.stack.end - self.descriptor) <= self.stack.size


class BooksState(Enum):
    """What came of reading glibc's books."""

    READ = "read"
    UNSTABLE = "unstable"
    """The lists changed under every reading; what was read is not proof."""
    ABSENT = "absent"
    """No glibc, or one whose lists cannot be found."""


@dataclass(frozen=True)
class Books:
    """What glibc itself says of its stacks at one moment."""

    state: BooksState
    why: str = ""
    """One line: why the books are absent or unstable."""
    threads: tuple[BookedThread, ...] = ()
    stack_cache_bytes: Optional[int] = None
    """Bytes of stacks in glibc's cache (``_dl_stack_cache_actsize``), where it can be read."""
    stack_cache_limit: Optional[int] = None
    """glibc.pthread.stack_cache_size; 40 MiB where no tunable says otherwise."""
    stack_cache: tuple[Interval, ...] = ()
    """The cached stacks, where the list can be read."""
    libc: str = ""
    """Such as "glibc 2.36", "musl", "static glibc"."""


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
    """The kernel itself holds it, such as an alternate signal stack or a ring of io_uring."""


class Holder(NamedTuple):
    """A place in the process where a handle, or a pointer into a mapping, is still stored."""

    where: Where
    address: Optional[int] = None
    """Where the word lies; None for a register and the kernel."""
    symbol: str = ""
    """Such as ``workers+0x10 in app_server`` for a global, ``rbx`` for a register; empty where unknown."""
    thread: Optional[int] = None
    """Tid of the thread whose stack, thread-local storage or register it is."""
    thread_name: str = ""
    frame: Optional[Frame] = None
    """The function whose frame of that stack holds the word; None where that is not known for certain."""


class Suspect(NamedTuple):
    """Memory that may be lost: the search asks what still refers to it."""

    pieces: tuple[Interval, ...]
    """The memory itself, ascending and disjoint; what is stored there keeps nothing, itself included."""
    handle: Optional[int] = None
    """The ``pthread_t`` of an exited thread: only this exact value keeps its stack.  None: any pointer into
    ``pieces`` or ``reservation`` does."""
    reservation: Optional[Interval] = None
    """A larger reservation that the memory is a part of, where one is known."""
    silent: Optional[Interval] = None
    """Where the descriptor of an exited pthread is: what is stored here keeps nothing, since nobody follows
    its links to former neighbours on the C library's lists any more."""
    joined: bool = False
    """The thread was joined or detached: what points to its descriptor is left from the C library (links of
    lists, freed dtvs) and keeps nothing."""


class Reach(NamedTuple):
    """What the search says of one suspect."""

    lost: bool
    """No holder was found by any of the searches."""
    holders: tuple[Holder, ...] = ()
    """At most a few of those that were found, the most telling first."""


@dataclass(frozen=True)
class Search:
    """What the searches of one process found, all in all."""

    reach: dict[Suspect, Reach] = field(default_factory=dict)
    """A suspect that is missing here was not searched for."""
    complete: bool = False
    """Everything that can hold a pointer was searched; only then is ``lost`` proof."""
    gaps: tuple[str, ...] = ()
    """What was not searched, a sentence each, such as ``"12.0 MiB are in swap and were not searched"``."""
    hidden: str = ""
    """Why pointers to mappings may be stored in a form that can't be recognised; empty where none is known.
    It does not concern handles."""
    unsearched_bytes: int = 0
    """Bytes that can hold a pointer and were not searched: in swap, unreadable or beyond the limit."""
    overlooked: float = 0.0
    """Chance that a suspect called lost was overlooked, at worst: if what keeps it moves all the time,
    through pages that do not change otherwise.  0 where no thread ran during a search.  That several were
    all overlooked has the chance of a power of this.
    """
    gone: frozenset[Suspect] = frozenset()
    """Joined, or unmapped, while the search went on: they are not there any more."""
    searches: int = 0
    bytes_searched: int = 0
    """Bytes that one search reads."""
    cpu_seconds: float = 0.0


NOT_SEARCHED = Search()


# --- findings ----------------------------------------------------------------


class Verdict(Enum):
    """What a finding is, by the names of the JSON contract; CONTRIBUTING.md says how to add one."""

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
        """It speaks of the stacks of threads, not of other mappings."""
        return self in (
            Verdict.NEVER_JOINED,
            Verdict.JOINED_LATER,
            Verdict.NOT_JOINED_YET,
            Verdict.ABANDONED_STACK,
            Verdict.GROWING_THREADS,
            Verdict.STACK_CACHE,
        )


class Certainty(Enum):
    """How sure a verdict is, as the JSON contract names it."""

    PROVED = "proved"
    """It can't become false: nobody can free the memory any more, or the process has ended."""
    LIKELY = "likely"
    POSSIBLE = "possible"


@dataclass(frozen=True)
class Reached:
    """What the search says of the orphans of one finding, all in all."""

    checked: int
    """How many of them were searched for."""
    lost: int
    kept: int
    complete: bool
    """Everything that can hold a pointer was searched."""
    holders: tuple[Holder, ...] = ()
    """At most a few, each kind of place once."""


class Orphan(NamedTuple):
    """One orphan of a finding, as the report shows it."""

    outstanding: Outstanding
    rss: Optional[int]
    """Bytes in memory; unlike in the RSS of its process, huge TLB pages count too."""
    guard: Optional[int] = None
    """Bytes at its low end that nothing can touch (the guard page), None where unknown."""


class AcceptedBy(Enum):
    """What says that a leak is known, as the JSON contract names it."""

    SUPPRESSION = "suppression"
    BASELINE = "baseline"


class Accepted(NamedTuple):
    """A finding is known to the user, and is no reason to fail."""

    by: AcceptedBy
    why: str
    """The suppression that matches, or how many the baseline has."""


@dataclass(frozen=True)
class Site:
    """One place in the program that orphans of a finding come from."""

    stack: Stack
    count: int
    """How many of them."""
    size: int
    """Their bytes."""


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
    """Who made the mappings; for a thread's stack, who created the thread.  The first of ``sites``."""
    start_routine: Optional[Frame] = None
    period: Optional[float] = None
    """Seconds between one orphan, or batch of orphans, and the next where they come regularly."""
    batch: int = 1
    """Orphans that come together each time, where they come regularly."""
    certainty: Certainty = Certainty.LIKELY
    reach: Optional[Reached] = None
    """None where nothing was searched for."""
    undecided: bool = False
    """Whether this is a leak can't be told."""
    sites: tuple[Site, ...] = ()
    """The places whose stacks are known, most orphans first: at most three."""
    more_sites: int = 0
    """How many other places there are."""
    called: tuple[tuple[str, int], ...] = ()
    """Functions that a thread library was given to call, the commonest, and how many creations tell it."""
    accepted: Optional[Accepted] = None
    """None: nobody said that it is known."""

    @property
    def fails(self) -> bool:
        """It is a leak that nobody said is known."""
        return self.leak and self.accepted is None

    @property
    def is_suppressed(self) -> bool:
        """A suppression matches it."""
        return self.accepted is not None and self.accepted.by is AcceptedBy.SUPPRESSION

    @property
    def count(self) -> int:
        """Orphans in it."""
        return len(self.orphans)

    @cached_property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(orphan.outstanding.mapping.size for orphan in self.orphans)

    @cached_property
    def rss(self) -> Optional[int]:
        """Resident bytes of those whose are known; None where none is."""
        known = [orphan.rss for orphan in self.orphans if orphan.rss is not None]
        return sum(known) if known else None


# --- the report --------------------------------------------------------------


class EndedBy(Enum):
    """What ended the window."""

    DURATION = "duration"
    INTERRUPT = "interrupt"
    TARGET_EXIT = "target-exit"
    EXEC = "exec"
    INTERVAL = "interval"
    """Not the end: one of the reports of --interval."""

    @property
    def by_target(self) -> bool:
        """The address space itself has ended: a report tells what was so then."""
        return self in (EndedBy.TARGET_EXIT, EndedBy.EXEC)


@dataclass(frozen=True)
class Calls:
    """Successful and failed calls seen in the window."""

    mmap: int = 0
    munmap: int = 0
    mremap: int = 0
    brk: int = 0
    clone: int = 0
    """Tasks that share the memory and live a life of their own: threads."""
    thread_exit: int = 0
    """Ends of such."""
    fork: int = 0
    """Processes made by fork, or by vfork and posix_spawn, which share the memory until they execute."""
    failed: tuple[Failures, ...] = ()
    """Of mmap, munmap, mremap and brk, most first."""

    def failed_of(self, call: str) -> tuple[Failures, ...]:
        """Those of one call, most first."""
        return tuple(one for one in self.failed if one.call == call)


@dataclass(frozen=True)
class Losses:
    """What could not be recorded; all 0 on a good run."""

    events: int = 0
    """Events the ring buffer had no room for, and probe runs the kernel skipped."""
    mappings: int = 0
    """Mappings the ledger's table had no room for."""
    stacks: int = 0
    """Mappings and thread creations of the report that have no stack although one was wanted."""
    threads: int = 0
    """Thread births the thread table had no room for."""

    @property
    def any(self) -> bool:
        """Something was lost."""
        return self.may_hide or self.stacks > 0

    @property
    def may_hide(self) -> bool:
        """What was lost may have been a leak; without its stack a mapping is known all the same."""
        return bool(self.events or self.mappings or self.threads)


@dataclass(frozen=True)
class Memory:
    """Size of the address space at both ends of the window, bytes; None where it could not be read."""

    virt_start: Optional[int]
    virt_end: Optional[int]
    rss_start: Optional[int]
    rss_end: Optional[int]


@dataclass(frozen=True)
class TargetInfo:
    """Which process was traced."""

    pid: int
    comm: str
    exe: str
    threads: Optional[int] = None
    """Live ones at the report; None where it was gone by then."""
    threads_start: Optional[int] = None
    """When the tracer came."""


@dataclass(frozen=True)
class ThreadTotal:
    """One line of the table of outstanding mappings by owner."""

    thread: Thread
    mappings: int
    size: int
    brk_growth: int = 0
    stack: Stack = NO_STACK
    """The site with most of these bytes."""


@dataclass(frozen=True)
class Clock:
    """Turns monotonic nanoseconds into wall-clock time; read once, at attach."""

    monotonic_ns: int
    realtime_ns: int

    def wall_ns(self, monotonic_ns: int) -> int:
        """Nanoseconds since the epoch of that moment."""
        return self.realtime_ns + (monotonic_ns - self.monotonic_ns)


@dataclass(frozen=True)
class CommandEnd:
    """What became of a COMMAND that was started to be traced."""

    argv: tuple[str, ...]
    pid: int
    exit_status: Optional[int] = None
    """None where a signal ended it, it still runs, or its status went to somebody else."""
    signal: Optional[int] = None
    """Number of the signal that ended it."""
    runs: bool = False
    """It has not ended yet."""

    @property
    def status(self) -> int:
        """What a shell would say of it: its exit status, or 128 and the signal; 0 where nothing is known."""
        return 128 + self.signal if self.signal is not None else self.exit_status or 0


@dataclass(frozen=True)
class Standing:
    """Exited threads that nobody had joined when a trace began, by glibc's thread lists."""

    target: TargetInfo
    threads: int
    size: int
    """Bytes of their stacks."""
    routines: tuple[tuple[Optional[Frame], int], ...]
    """What they ran, and how many of them, most first."""


@dataclass(frozen=True)
class Processes:
    """What came of the processes that were followed."""

    followed: int
    """All that were forked, and all that executed another program; each time counts."""
    judged: int
    """Those of them that created threads, and so have a report."""
    lost: int
    """Those that there was no room for."""


class LeftOut(NamedTuple):
    """What a saved report does not have although its trace found it: --top, --show, --min-bytes."""

    findings: int = 0
    leaks: int = 0
    """Of these findings."""
    size: int = 0
    threads: int = 0
    threads_size: int = 0
    """Bytes that these threads own."""


NOTHING_LEFT_OUT = LeftOut()


@dataclass(frozen=True)
class TracerCost:
    """What tracing cost, told to the user after each run."""

    cpu_seconds: float
    """CPU time of the tracer itself between attach and report."""
    bpf_seconds: Optional[float] = None
    """Run time of our BPF programs in all processes of the host; None where nobody asked for it."""
    bpf_runs: Optional[int] = None
    """How often they ran, likewise."""


@dataclass(frozen=True)
class Report:
    """All that ``mmap-leaks`` found; reporters turn it into text and know nothing of capture."""

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
    """Mapped now, neither in the baseline nor by a call the tracer saw (drivers, lost events)."""
    unexplained: tuple[tuple[str, int], ...] = ()
    """Of those, bytes by what /proc names, most first: a path, or ``[anon]``."""
    phantom_bytes: int = 0
    """The ledger had it mapped, /proc does not: left out of the report."""
    notes: tuple[str, ...] = field(default_factory=tuple)
    """Lines the user must know to read the report: what could not be proved, and why."""
    undecided: int = 0
    """Mappings of exited threads, or such threads where no mapping is known, that could not be judged."""
    cost: Optional[TracerCost] = None
    command: Optional[CommandEnd] = None
    """Of a target that was started to be traced: what had become of it at this report."""
    searched: Search = NOT_SEARCHED
    executed: str = ""
    """What the target executed then, where that ended it."""
    processes: Optional[Processes] = None
    """How many were followed, where this is the only report."""
    is_child: bool = False
    """The process was not named by the user: it came from one that was."""
    threads_only: bool = False
    """No system call was traced: of all mappings only the stacks of threads are known."""
    left_out: LeftOut = NOTHING_LEFT_OUT
    """Of a report that was read from a file."""

    @property
    def in_doubt(self) -> int:
        """Mappings of which it can't be told whether they are leaked, without those that are accepted."""
        accepted = (one for one in self.findings if one.undecided and one.accepted is not None)
        return max(0, self.undecided - sum(one.count for one in accepted))
