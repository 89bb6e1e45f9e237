"""What still refers to exited threads and mappings, in running programs that know it."""

from __future__ import annotations

from harness import Json, Target, eventually

from ebpftrace.model import Books, BooksState, Interval, Reach, Search, Suspect, Where
from ebpftrace.process.maps import read_maps
from ebpftrace.process.now import read_books_of
from ebpftrace.search import search

LENGTH = 64 << 10
INVERTED = (1 << 64) - 1


def books_of(pid: int) -> Books:
    return read_books_of(pid, read_maps(pid))


def suspects_of(books: Books) -> dict[int, Suspect]:
    """By handle, the threads that have exited and that nobody has joined."""
    return {
        thread.descriptor: Suspect((thread.stack,), thread.descriptor)
        for thread in books.threads
        if thread.exited and thread.stack is not None and not thread.detached
    }


def facts_of(program: Target) -> tuple[list[tuple[Json, Suspect]], Books]:
    """What the program tells of handles and mappings, as suspects, once all those threads have exited."""
    program.run()
    facts = [*program.facts("handle"), *program.facts("mapping")]
    handles = {fact["secret"] ^ INVERTED for fact in facts if fact["event"] == "handle"}
    eventually(lambda: handles <= suspects_of(books_of(program.pid)).keys(), "all threads have exited")
    books = books_of(program.pid)
    by_handle = suspects_of(books)
    paired = []
    for fact in facts:
        value = fact["secret"] ^ INVERTED
        suspect = Suspect((Interval(value, value + LENGTH),))
        paired.append((fact, by_handle[value] if fact["event"] == "handle" else suspect))
    return paired, books


WHERE = {
    "data": (Where.GLOBAL, "in_data in search", "in_data+0x8 in search"),
    "bss": (Where.GLOBAL, "in_bss in search", "in_bss+0x8 in search"),
    "packed struct": (Where.GLOBAL, "in_packed+0x4 in search", "in_packed+0x10 in search"),
    "tls of main": (Where.TLS, "", ""),
    "tls of a thread": (Where.TLS, "", ""),
    "frame of main": (Where.STACK, "", ""),
    "frame of a thread": (Where.STACK, "", ""),
    "heap": (Where.HEAP, "", ""),
    "arena": (Where.HEAP, "", ""),
    "large block": (Where.MAPPING, "", ""),
    "mapping": (Where.MAPPING, "", ""),
    "read-only memory": (Where.MAPPING, "", ""),
    "shared memory": (Where.SHARED, "", ""),
    "memfd": (Where.SHARED, "memfd:search", "memfd:search"),
    "sigaltstack": (Where.KERNEL, "", "sigaltstack"),
    "epoll": (Where.KERNEL, "", "epoll"),
    **{name: (Where.REGISTER, name, "") for name in ("rbx", "r12", "r13", "r14", "r15")},
}


def test_every_place_that_counts_and_none_that_does_not() -> None:
    with Target("search") as program:
        paired, books = facts_of(program)
        found = search(program.pid, [suspect for _, suspect in paired], books)
        assert found.complete, found.gaps
        assert found.searches == 1, "no thread runs: one pass proves it"
        told = {(fact["event"], fact["place"]): bool(fact["kept"]) for fact, _ in paired}
        seen = {(fact["event"], fact["place"]): not found.reach[suspect].lost for fact, suspect in paired}
        assert seen == told
        for fact, suspect in paired:
            if fact["place"] in WHERE:
                check_holder(found.reach[suspect], fact, program.pid)
        assert program.end() == 0


def check_holder(reach: Reach, fact: Json, pid: int) -> None:
    where, of_handle, of_mapping = WHERE[fact["place"]]
    holder = reach.holders[0]
    expected = of_handle if fact["event"] == "handle" else of_mapping
    assert (holder.where, holder.symbol) == (where, expected), fact
    if where in (Where.STACK, Where.TLS):
        is_main = "main" in fact["place"]
        assert (holder.thread == pid) == is_main
        assert holder.thread_name == ("search" if is_main else "keeper")
    assert (holder.address is None) == (where in (Where.REGISTER, Where.KERNEL))


def test_nothing_to_search_for() -> None:
    assert search(1, [], Books(BooksState.ABSENT)) == Search(complete=True)
