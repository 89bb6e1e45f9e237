# SPDX-License-Identifier: Apache-2.0
"""Distinguishes functions of the user's code from those of libraries and runtimes that it calls.

A thread's stack is mapped by the C library, called by a thread library, called by a language's runtime,
called by the code that wanted a thread.  If a report names one function, it is one of that code.  All
libraries are in one table, ``_LIBRARIES``; a missing one is a new entry there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import NamedTuple, Optional

from ebpftrace.model import Frame

MMAP_NAMES = frozenset({"mmap", "mmap64", "__mmap", "__mmap64", "__GI___mmap", "__GI___mmap64", "syscall"})
MALLOC_NAMES = frozenset(
    {"malloc", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign", "libc_malloc"}
    | {"libc_calloc", "libc_realloc", "int_malloc", "int_memalign", "mid_memalign", "libc_memalign"}
    | {"sysmalloc", "sysmalloc_mmap"}
)
"""Without leading underscores."""
THREAD_MAKERS = ("allocate_stack", "pthread_create", "thrd_create")
"""Beginnings of names without leading underscores, whose number differs between versions and libraries."""

_OF_LIBC = frozenset(
    {name.lstrip("_") for name in MMAP_NAMES}
    | MALLOC_NAMES
    | {"mremap", "brk", "sbrk", "morecore", "clone", "clone3", "clone_internal", "create_thread"}
)
"""Whole names without leading underscores; they also occur if the C library is linked into the program."""
_DEPTH_TO_MAKER = 4
"""glibc: clone3 <- __clone_internal <- create_thread <- pthread_create (nptl/pthread_create.c)."""
_MAX_NAME = 4096
"""Characters of a name that are examined."""
_OPERATOR = "operator"


class _Library(NamedTuple):
    """How the frames of one library are recognized; one of the three suffices."""

    modules: tuple[str, ...] = ()
    """Beginnings of file names."""
    functions: tuple[str, ...] = ()
    """Beginnings of names with namespaces, without leading underscores and the type of the result."""
    sources: tuple[str, ...] = ()
    """Parts, as regular expressions, of the path of a source file, or of the file with the code."""


_LIBC = _Library(
    modules=("libc.so", "libc-", "libc.musl", "ld-", "libpthread", "[vdso]"),
    functions=(*THREAD_MAKERS, "libc_start_"),
)
_LIBRARIES = {
    "C": _LIBC,
    "allocators": _Library(
        modules=("libjemalloc", "libtcmalloc", "libmimalloc"),
        functions=("je_", "rjem_", "tcmalloc::"),
    ),
    "sanitizers": _Library(
        modules=("libasan.so", "liblsan.so", "libtsan.so", "libubsan.so"),
        functions=("interceptor_", "sanitizer::", "asan::", "tsan::", "lsan::"),
    ),
    "C++": _Library(
        modules=("libstdc++", "libc++"),
        functions=("std::", "gthread_", "gnu_cxx::", "operator new"),
        sources=(r"/include/c\+\+/",),
    ),
    "Boost": _Library(modules=("libboost_",), functions=("boost::",)),
    "Rust": _Library(
        functions=("std::", "core::", "alloc::"),
        sources=("/library/std/src/", "/library/core/src/", "/library/alloc/src/"),
    ),
    "CPython": _Library(
        modules=("python3", "libpython", "_ctypes.", "libffi.so"),
        functions=(
            *("PyThread_", "thread_PyThread_", "ThreadHandle_start", "PyEval_", "PyObject_", "ffi_call"),
            *("do_start_joinable_thread", "do_start_new_thread"),
        ),
        sources=(r"/python3\.\d+/(?:threading\.py|concurrent/|multiprocessing/|ctypes/|lib-dynload/)",),
    ),
    "Go": _Library(
        functions=(
            *("runtime.", "runtime/", "syscall.", "internal/", "golang.org/x/sys/"),
            *("x_cgo_", "cgo_", "crosscall"),
        )
    ),
    "libuv and V8": _Library(modules=("libuv.so",), functions=("uv_", "v8::", "Builtins_")),
    "GLib": _Library(
        modules=("libglib-2.0", "libgobject-2.0", "libgio-2.0", "libgthread-2.0"),
        functions=("g_thread_", "g_system_thread_"),
    ),
    "Qt": _Library(
        modules=("libQt5Core", "libQt6Core", "libQt5Concurrent", "libQt6Concurrent"),
        functions=("QThread", "QtConcurrent::"),
    ),
    "SDL": _Library(modules=("libSDL2", "libSDL3"), functions=("SDL_CreateThread", "SDL_SYS_CreateThread")),
    "OpenMP": _Library(modules=("libgomp.so", "libomp.so"), functions=("GOMP_", "gomp_", "kmp")),
    "D": _Library(
        modules=("libgphobos", "libgdruntime", "libphobos2", "libdruntime"),
        functions=("core.", "std.", "rt.", "D4core", "D3std", "D2rt"),
    ),
    "Java": _Library(
        modules=("libjvm.so", "libjli.so"),
        functions=("java.lang.", "java.util.concurrent.", "jdk.internal.", "sun.misc."),
    ),
}

_MODULES = tuple(name for library in _LIBRARIES.values() for name in library.modules)
_FUNCTIONS = tuple(name for library in _LIBRARIES.values() for name in library.functions)
_SOURCES = re.compile("|".join(part for library in _LIBRARIES.values() for part in library.sources))


def users_frame(frames: Sequence[Frame]) -> Optional[Frame]:
    """The innermost frame of the user's code; None if there is none, or if it can't be determined.

    A frame without a name or file outside the known libraries ends the search: it may be the user's function,
    so one of its callers must not be named instead.
    """
    for frame in past_thread_maker(frames):
        if not is_wrapper(frame):
            return frame if frame.function or frame.module else None
    return None


def is_wrapper(frame: Frame) -> bool:
    """Whether a frame belongs to a library or runtime between the user's code and the system call."""
    if posixpath.basename(frame.module or "").startswith(_MODULES):
        return True
    if any(path and _SOURCES.search(path) for path in (frame.file, frame.module)):
        return True
    if not frame.function:
        return False
    if plain(frame) in _OF_LIBC:
        return True
    return qualified(frame.function).lstrip("_<&*").startswith(_FUNCTIONS)


def is_of_libc(frame: Frame) -> bool:
    """Whether a frame belongs to the C library, or is a function of it that creates threads or mappings."""
    module = posixpath.basename(frame.module or "")
    name = plain(frame)
    return module.startswith(_LIBC.modules) or name in _OF_LIBC or name.startswith(_LIBC.functions)


def past_thread_maker(frames: Sequence[Frame]) -> Sequence[Frame]:
    """The callers of the function that creates threads.

    The frames inside it are dropped because in a stripped C library they get names of other functions.
    """
    for depth, frame in enumerate(frames[:_DEPTH_TO_MAKER]):
        if plain(frame).startswith(THREAD_MAKERS):
            return frames[depth + 1 :]
    return frames


def plain(frame: Frame) -> str:
    """The function's name without leading underscores; empty if it has none."""
    return (frame.function or "").lstrip("_")


def qualified(name: str) -> str:
    """A demangled name without result and arguments: ``void a::f<int>(int)`` is ``a::f<int>``.

    C++ encodes the result only for instances of templates (Itanium C++ ABI 5.1.5), D and Java for any
    function.
    """
    text = name[:_MAX_NAME].partition(" [clone ")[0]
    depth, begin = 0, 0
    for at, letter in enumerate(text):
        if letter in "<([{":
            if letter == "(" and depth == 0 and _takes_arguments(text, begin, at):
                return text[begin:at]
            depth += 1
        elif letter in ">)]}":
            depth = max(depth - 1, 0)
        elif letter == " " and depth == 0:
            begin = at + 1
        elif depth == 0 and text.startswith(_OPERATOR, at) and text[at - 1 : at] in ("", " ", ":"):
            # The operator may be a bracket itself: operator<, operator(), operator new.
            return text[begin:]
    return text[begin:]


def _takes_arguments(text: str, begin: int, at: int) -> bool:
    return at > begin and not text.startswith("(anonymous ", at) and text[begin:at] != "decltype"


_STARTERS = (
    *("std::thread::thread<", "std::jthread::jthread<", "std::async<", "boost::thread::thread<"),
    *("std::thread::spawn::<", "std::thread::functions::spawn::<"),
    "<std::thread::builder::Builder>::spawn::<",
)
"""Functions that start a thread in C++ and Rust; their first template argument is the type of the
callable."""
_PLACEHOLDERS = frozenset({"F", "_"})
_POINTER = re.compile(r"\((?:(?:[^()]*::)?\*&{0,2}|&{1,2})\)\(")
"""The part of the type of a pointer or reference to a (member) function before its parameters."""


def started(frames: Sequence[Frame]) -> Optional[str]:
    """The lambda, closure or class that a thread calls, by the names of the functions that started it.

    The start routine of such a thread is a library's, and the same for all of them.  None if the frames do
    not show it: for a pointer to a function they have only its type (``called_type``).
    """
    called = _called(frames)
    return None if called is None or _POINTER.search(called) else called


def called_type(frames: Sequence[Frame]) -> Optional[str]:
    """The type of the function that a thread was started with, such as ``void (&)(int)``."""
    called = _called(frames)
    return called if called is not None and _POINTER.search(called) else None


_STATE = "vtable for std::thread::_State_impl<"
_TUPLE = "std::tuple<"


def starts_std_thread(frames: Sequence[Frame]) -> bool:
    """Whether libstdc++ created the thread, whose argument is then a ``std::thread::_State``."""
    makers = past_thread_maker(frames)[:1]
    return any("std::thread::_M_start_thread" in (frame.function or "") for frame in makers)


def state_type(table: str) -> Optional[str]:
    """The type of the callable in a ``std::thread::_State_impl``, by the name of its virtual table.

    It is the first element of the tuple of callable and arguments (libstdc++, bits/std_thread.h), and there
    even if the functions that created the thread were inlined.  None for any other name.
    """
    if not table.startswith(_STATE) or _TUPLE not in table:
        return None
    return _first_argument(table.partition(_TUPLE)[2]) or None


def is_pointer(called: str) -> bool:
    """Whether the type of a callable is a pointer or reference to a function."""
    return _POINTER.search(called) is not None


def has_parameters(function: str, called: str) -> bool:
    """Whether a demangled function has the parameters of that type."""
    pointer = _POINTER.search(called)
    name = qualified(function)
    after = function[function.find(name) + len(name) :]
    return pointer is not None and after == called[pointer.end() - 1 :]


def _called(frames: Sequence[Frame]) -> Optional[str]:
    for frame in past_thread_maker(frames):
        if not is_wrapper(frame):
            return None
        name = qualified(frame.function or "")
        starter = next((start for start in _STARTERS if name.startswith(start)), None)
        if starter is not None:
            called = _first_argument(name[len(starter) :])
            if called and called not in _PLACEHOLDERS:
                return called
    return None


def _first_argument(arguments: str) -> str:
    """The text up to the first comma or closing bracket at the top level of the list."""
    depth = 0
    for at, letter in enumerate(arguments):
        if depth == 0 and letter in ",>":
            return arguments[:at].strip()
        depth += (letter in "<([{") - (letter in ">)]}")
    return ""
