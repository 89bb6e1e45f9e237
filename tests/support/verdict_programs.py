# SPDX-License-Identifier: Apache-2.0
"""The programs of test_verdicts: what each is, and what ``mmap-leaks`` must say of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import pytest
from harness import TARGETS
from programs import DYNAMIC, MUSL, MUSL_STATIC, STATIC, STATIC_PIE, STRIPPED, Build, compiled

NEVER_JOINED = "never-joined-thread"
ABANDONED = "abandoned-stack"

THREADS, BEFORE = 10, 4
"""Threads of each program of lists_threads, and how many of them are there before the trace."""
STACK = 200 << 10
GUARD = 4 << 10
CACHED = 8 << 20
"""Bytes of a stack, of which four fit into glibc's cache of 40 MiB, with their guards."""

_LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


@dataclass(frozen=True)
class Leak:
    """The one leak of a program: how many mappings it has from before the trace, and from the trace."""

    verdict: str
    before: int
    inside: int


@dataclass(frozen=True)
class Case:
    """One program as it is started; ``make`` skips the test where it can't be built here."""

    make: Callable[[Path], Path]
    arguments: tuple[object, ...]
    leak: Optional[Leak] = None
    environment: tuple[tuple[str, str], ...] = ()
    routine: str = ""
    """Function that the leaked threads began in."""
    creator: str = ""
    """Function of the program that made the mappings."""


def _c(source: str, build: Build = DYNAMIC) -> Callable[[Path], Path]:
    return lambda directory: compiled(directory, source, build)


def _tool(tool: str, *command: str) -> Callable[[Path], Path]:
    """Built by another compiler; ``command`` has OUT and SRC in it."""

    def make(directory: Path) -> Path:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        binary = directory / f"by-{tool}"
        if not binary.exists():
            words = [word.replace("OUT", str(binary)).replace("SRC", str(TARGETS)) for word in command]
            cache = {"GOCACHE": str(directory / "go-cache"), "GO111MODULE": "off"}
            subprocess.run([tool, *words], check=True, env={**os.environ, **cache})
        return binary

    return make


_CXX = _tool("c++", "-O2", "-pthread", "-o", "OUT", "SRC/verdict_std_thread.cpp")
_RUST = _tool("rustc", "-O", "-o", "OUT", "SRC/verdict_threads.rs")
_GO = _tool("go", "build", "-o", "OUT", "SRC/verdict_threads.go")


def _java(directory: Path) -> Path:
    _tool("javac", "-d", "OUT", "SRC/VerdictThreads.java")(directory)
    return Path(shutil.which("java") or "java")


def _preloaded(library: str) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        found = next((path for place in _LIBRARIES for path in Path(place).glob(library)), None)
        if found is None:
            pytest.skip(f"{library} is not installed")
        starter = directory / f"preload-{found.name}"
        starter.write_text(f'#!/bin/sh\nLD_PRELOAD={found} exec "$@"\n')
        starter.chmod(0o755)
        return starter

    return make


def _threads(
    kind: str, leak: Optional[str] = None, build: Build = DYNAMIC, routine: str = "", before: int = BEFORE
) -> Case:
    found = None if leak is None else Leak(leak, before, THREADS - BEFORE)
    return Case(_c("lists_threads", build), (kind, THREADS, STACK, BEFORE), found, routine=routine)


def _cache(count: int, size: int = CACHED, tunable: str = "") -> Case:
    environment = (("GLIBC_TUNABLES", f"glibc.pthread.stack_cache_size={tunable}"),) if tunable else ()
    return Case(_c("lists_threads"), ("joined", count, size, 0), environment=environment)


def _arenas(*environment: tuple[str, str]) -> Case:
    return Case(_c("verdict_arenas"), (20,), environment=environment)


def _std(kind: str, leak: Optional[Leak] = None) -> Case:
    return Case(_CXX, (kind, THREADS), leak, creator="shop::start(char const*)" if leak else "")


def _rust(kind: str, leak: Optional[Leak] = None) -> Case:
    return Case(_RUST, (kind, THREADS), leak, creator="verdict_threads::start" if leak else "")


_ALL = Leak(NEVER_JOINED, 0, THREADS)

GLIBC = {
    # Threads that nobody joins, whatever their end.
    "returns": _threads("returns", NEVER_JOINED, routine="returns"),
    "exits": _threads("exits", NEVER_JOINED, routine="exits"),
    "cancelled": _threads("cancelled", NEVER_JOINED, routine="waits"),
    "cleanup": _threads("cleanup", NEVER_JOINED, routine="cleanup"),
    "c11": _threads("c11", NEVER_JOINED, routine="c11"),
    "raw exit": _threads("raw", NEVER_JOINED, routine="raw"),
    "raw exit, detached": _threads("raw-detached", ABANDONED, routine="raw"),
    "initial thread ends": _threads("leader", NEVER_JOINED, routine="returns"),
    "static": _threads("returns", NEVER_JOINED, STATIC, "returns"),
    "static-pie": _threads("returns", NEVER_JOINED, STATIC_PIE, "returns"),
    "a thousand": Case(
        _c("lists_threads"), ("returns", 1000, 32768, 300), Leak(NEVER_JOINED, 300, 700), routine="returns"
    ),
    # Threads that somebody still can join.
    "handles kept": _threads("kept"),
    # Stacks of the application.
    "user stacks": _threads("user", ABANDONED, routine="returns"),
    # From before the trace nobody knows that they were stacks, and what is left in them counts as stored.
    "user stacks kept": Case(
        _c("lists_threads"), ("user-joined", THREADS, STACK, 0), Leak(ABANDONED, 0, THREADS)
    ),
    "raw clone": Case(_c("reproducer"), (7,), Leak(ABANDONED, 0, 7), creator="main"),
    # What looks like one of these.
    "joined": _threads("joined"),
    "reversed": _threads("reversed"),
    "detached": _threads("detached"),
    "detached late": _threads("detached-late"),
    "live": _threads("live"),
    "live detached": _threads("live-detached"),
    "forked": _threads("raw-fork"),
    "user stacks freed": _threads("user-returned"),
    "static joined": _threads("joined", build=STATIC),
    "static detached": _threads("detached", build=STATIC),
    "arenas": _arenas(),
    "one arena": _arenas(("MALLOC_ARENA_MAX", "1")),
    "64 arenas": _arenas(("MALLOC_ARENA_MAX", "64")),
    "cache below its limit": _cache(3),
    "cache nearly full": _cache(4),
    "cache above its limit": _cache(5),
    "cache far above its limit": _cache(30),
    "cache exactly full": _cache(30, STACK, str(5 * (STACK + GUARD))),
    "small cache": _cache(30, STACK, "1000000"),
    "no cache": _cache(5, STACK, "0"),
}
"""Programs with glibc, written in C."""

OTHERS = {
    "musl returns": _threads("returns", NEVER_JOINED, MUSL),
    "musl exits": _threads("exits", NEVER_JOINED, MUSL),
    "musl c11": _threads("c11", NEVER_JOINED, MUSL),
    "musl user stacks kept": _threads("user-joined", ABANDONED, MUSL, before=0),
    "musl joined": _threads("joined", build=MUSL),
    "musl detached": _threads("detached", build=MUSL),
    "musl static joined": _threads("joined", build=MUSL_STATIC),
    "musl static detached": _threads("detached", build=MUSL_STATIC),
    "musl static returns": _threads("returns", ABANDONED, MUSL_STATIC),
    "stripped joined": _threads("joined", build=STRIPPED),
    "stripped returns": _threads("returns", build=STRIPPED),
    "std::thread lost": _std("lost"),
    "std::thread detached": _std("detached"),
    "std::thread joined": _std("joined"),
    "std::async": _std("async"),
    "Rust forgotten": _rust("forgotten", _ALL),
    "Rust dropped": _rust("dropped"),
    "Rust joined": _rust("joined"),
    "Rust scoped": _rust("scoped"),
    "Go": Case(_GO, (50,)),
    "Java": Case(_java, ("-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", "by-javac", "VerdictThreads", 20)),
    "jemalloc": Case(_preloaded("libjemalloc.so.*"), (TARGETS / "bin" / "healthy", "malloc-pool")),
    "tcmalloc": Case(_preloaded("libtcmalloc*.so.*"), (TARGETS / "bin" / "healthy", "malloc-pool")),
}
"""Other C libraries, other languages, other allocators."""
