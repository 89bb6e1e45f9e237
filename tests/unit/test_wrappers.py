# SPDX-License-Identifier: Apache-2.0
"""Whose function a stack is named by: of each runtime a stack as it was seen, and the user's frame in it."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.frames import called, culprit, where
from ebpftrace.model import Frame, Stack
from ebpftrace.wrappers import (
    called_type,
    has_parameters,
    is_pointer,
    is_wrapper,
    qualified,
    started,
    state_type,
    users_frame,
)

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
STDCXX = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30"
PYTHON = "/usr/bin/python3.11"
APP = "/opt/app"


def stack(*frames: tuple[str | None, str]) -> tuple[Frame, ...]:
    return tuple(Frame(name, module=module, offset=0x1000) for name, module in frames)


IN_LIBC = stack(("__clone3", LIBC), (None, LIBC), ("pthread_create", LIBC))


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ([(None, STDCXX), ("std::thread::_M_start_thread", STDCXX), ("serve", APP)], "serve"),
        ([("std::thread::thread<void (&)(), , void>(void (&)())", APP), ("serve()", APP)], "serve()"),
        ([("std::enable_if<!x, T>::type std::async<f()::{lambda()#1}>(f)", APP), ("go()", APP)], "go()"),
        ([("boost::thread::start_thread_noexcept()", APP), ("run(int)", APP)], "run(int)"),
        ([("std::sys::unix::thread::Thread::new", APP), ("leak::spawn", APP)], "leak::spawn"),
        ([("<F as core::ops::function::FnOnce<A>>::call_once", APP), ("a::b", APP)], None),
        ([("<alloc::boxed::Box<F> as core::ops::FnOnce<A>>::call_once", APP), ("a::b", APP)], "a::b"),
        ([("uv_thread_create_ex", "/usr/bin/node"), ("NSFW::fire()", "/x/nsfw.node")], "NSFW::fire()"),
        ([("g_system_thread_new", "/usr/lib/libglib-2.0.so.0"), ("work", APP)], "work"),
        ([("QThread::start(int)", "/usr/lib/libQt5Core.so.5"), ("Poll::go()", APP)], "Poll::go()"),
        ([("SDL_CreateThread_REAL", "/usr/lib/libSDL2-2.0.so.0"), ("sound", APP)], "sound"),
        (
            [
                ("core.thread.osthread.Thread core.thread.osthread.Thread.start()", APP),
                ("void app.spawn()", APP),
            ],
            "void app.spawn()",
        ),
        ([("runtime.newosproc", APP), ("syscall.Mmap", APP), ("main.fill", APP)], "main.fill"),
        ([("JVM_StartThread", "/usr/lib/jvm/libjvm.so"), ("void java.lang.Thread.start()", "[jit]"),
          ("void Job.go(int)", "[jit]")], "void Job.go(int)"),
        ([("do_start_joinable_thread", PYTHON), (None, PYTHON), ("ext_spawn", "/x/ext.so")], "ext_spawn"),
        ([("ffi_call_unix64", "/usr/lib/libffi.so.8"), (None, "/x/_ctypes.cpython-311.so"),
          ("caller", APP)], "caller"),
        ([("pthread_create", "/usr/lib/libasan.so.8"), ("start_job", APP)], "start_job"),
        ([("GOMP_parallel", "/usr/lib/libgomp.so.1"), ("solve", APP)], "solve"),
    ],
)  # fmt: skip
def test_frames_of_libraries_are_skipped(library: list[tuple[str | None, str]], users: str | None) -> None:
    found = users_frame((*IN_LIBC, *stack(*library, ("main", APP))))
    assert found is not None
    assert found.function == (users or library[0][0])


def test_python_code_is_the_users_where_its_frames_are_at_hand() -> None:
    library = "/usr/lib/python3.11/threading.py"
    frames = (
        *IN_LIBC,
        *stack(("thread_PyThread_start_new_thread", PYTHON), ("_PyEval_EvalFrameDefault", PYTHON)),
        *(Frame("Thread.start", library, 964), Frame("spawn", "/srv/app.py", 5)),
        Frame("<module>", "/srv/app.py", 9),
        *stack(("PyEval_EvalCode", PYTHON), ("Py_BytesMain", PYTHON)),
    )
    found = users_frame(frames)
    assert found is not None
    assert (found.function, found.line) == ("spawn", 5)


@pytest.mark.parametrize(
    ("starters", "calls"),
    [
        (
            ["std::thread::thread<serve()::{lambda()#1}, , void>(serve()::{lambda()#1}&&)"],
            "serve()::{lambda()#1}",
        ),
        (["std::thread::thread<Job&, void>(Job&)"], "Job&"),
        (["std::thread::thread<void (&)(int), int, void>(void (&)(int), int&&)"], None),
        (
            [
                "std::__future_base::_Async_state_impl<A>::f",
                "std::enable_if<b>::type std::async<Map<int, 3> >(Map)",
            ],
            "Map<int, 3>",
        ),
        (
            [
                "std::thread::lifecycle::spawn_unchecked::<leak::go::{closure#0}, ()>",
                "std::thread::functions::spawn::<leak::go::{closure#0}, ()>",
            ],
            "leak::go::{closure#0}",
        ),
        (["std::thread::functions::spawn"], None),
        (["start_job", "std::thread::thread<f()::{lambda()#1}>(x)"], None),
    ],
)
def test_what_a_thread_calls_is_reported_by_what_started_it(starters: list[str], calls: str | None) -> None:
    assert (
        started((*IN_LIBC, *stack(*((name, APP) for name in starters)), Frame("main", module=APP))) == calls
    )


@given(st.text(alphabet="ab:<>()[]{} ,&*", max_size=60))
def test_what_any_starter_calls_is_a_part_of_its_name(arguments: str) -> None:
    name = f"std::thread::thread<{arguments}"
    assert (started([Frame(name, module=APP)]) or "") in name


@pytest.mark.parametrize(
    "own",
    [
        Frame("f", "/srv/app/multiprocessing/pool.py", 3),
        Frame("f", "/srv/app/threading.py", 3),
        Frame("f", module="/srv/multiprocessing/app"),
        Frame("f", "/home/me/include/c/x.c", 3, APP),
    ],
)
def test_files_of_the_user_are_none_of_a_library_by_their_name_alone(own: Frame) -> None:
    assert not is_wrapper(own)


def test_modules_of_pythons_library_are_passed_over_by_their_place() -> None:
    module = "/usr/lib/python3.11/lib-dynload/mmap.cpython-311-x86_64-linux-gnu.so"
    frames = (*IN_LIBC, *stack((None, module), ("_PyEval_EvalFrameDefault", PYTHON)), Frame("f", "/a.py", 1))
    assert users_frame(frames) is frames[-1]


def test_a_frame_without_a_name_ends_the_search() -> None:
    """Every call of a Perl extension passes through Perl_pp_entersub: it creates nothing (perl -Mthreads)."""
    frames = (*IN_LIBC, *stack((None, "/usr/lib/perl/threads.so"), ("Perl_pp_entersub", "/usr/bin/perl")))
    found = users_frame(frames)
    assert found is frames[3]
    assert called(found) == "threads.so+0x1000"
    assert culprit(Stack(frames)) is found


@pytest.mark.parametrize(
    ("java", "shown"),
    [
        ((None, "[jit]"), "Unsafe_AllocateMemory0 < [jit] 0x1000"),
        (("Cache::fill", "[jit]"), "Cache::fill < Cache::fill"),
    ],
)
def test_made_code_without_a_name_is_shown_by_what_it_called(
    java: tuple[Optional[str], str], shown: str
) -> None:
    jvm = "/usr/lib/jvm/lib/server/libjvm.so"
    frames = (*IN_LIBC, *stack(("os::malloc", jvm), ("Unsafe_AllocateMemory0", jvm), java, java))
    assert where(Stack(frames), 100) == shown
    assert culprit(Stack(frames)) is frames[-2]


def test_without_a_frame_of_the_user_no_creator_is_named() -> None:
    frames = (*IN_LIBC, *stack(("do_start_new_thread", PYTHON), ("Py_BytesMain", PYTHON), (None, LIBC)))
    assert users_frame(frames) is None
    assert culprit(Stack(frames)) is frames[3]


def test_a_call_without_frames_names_no_creator() -> None:
    assert users_frame((*IN_LIBC, Frame(None, offset=0xDEAD), Frame("main", module=APP))) is None


@pytest.mark.parametrize(
    "own",
    ["start_job", "stdlib_start", "uvula", "app::std::thread", "my_pthread_create", "qt::go()", "coreloop"],
)
def test_names_that_only_resemble_a_librarys_are_the_users(own: str) -> None:
    assert not is_wrapper(Frame(own, module=APP))


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("void a::f<int>(int)", "a::f<int>"),
        ("std::enable_if<(x>3), T>::type std::async<void (&)()>(int)", "std::async<void (&)()>"),
        ("operator new(unsigned long)", "operator new(unsigned long)"),
        ("main::{lambda()#1}::operator()() const", "main::{lambda()#1}::operator()() const"),
        ("a::(anonymous namespace)::f(int)", "a::(anonymous namespace)::f"),
        ("a::b [clone .cold]", "a::b"),
        ("decltype(auto) foo::bar<int>(int)", "foo::bar<int>"),
        ("<F as core::ops::function::FnOnce>::call_once", "<F as core::ops::function::FnOnce>::call_once"),
        ("void java.lang.Thread.start()", "java.lang.Thread.start"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_name_without_what_the_function_returns_and_takes(name: str, bare: str) -> None:
    assert qualified(name) == bare


@given(st.text(alphabet="ab:<>()[]{} _operator~&", max_size=60))
def test_any_text_is_taken_for_a_name(name: str) -> None:
    assert qualified(name) in name


@pytest.mark.parametrize(
    ("function", "called"),
    [
        ("shop::refresh_prices(int)", "void (&)(int)"),
        ("shop::refresh_prices(int)", "void (*)(int)"),
        ("shop::refresh_prices(int)", "void (*&)(int)"),
        ("shop::Cart::pay(int) const", "void (shop::Cart::*)(int) const"),
        ("a::with_text(std::vector<int>, void (*)(int))", "void (&)(std::vector<int>, void (*)(int))"),
        ("void a::made_of<int>(int)", "void (&)(int)"),
        ("done()", "void (&)()"),
    ],
)
def test_a_function_is_known_by_the_type_of_a_pointer_to_it(function: str, called: str) -> None:
    constructor = Frame(f"std::thread::thread<{called}, int, void>({called}, int&&)", module=APP)
    assert called_type([constructor]) == called
    assert started([constructor]) is None
    assert has_parameters(function, called)
    assert not has_parameters(function, "void (&)(long, long)")
    assert not has_parameters("other(unsigned char)", called)


@pytest.mark.parametrize(
    ("table", "called"),
    [
        (
            "vtable for std::thread::_State_impl<std::thread::_Invoker<std::tuple<void (*)(int), int> > >",
            "void (*)(int)",
        ),
        (
            "vtable for std::thread::_State_impl<std::thread::_Invoker<std::tuple<main::{lambda()#1}> > >",
            "main::{lambda()#1}",
        ),
        ("vtable for std::thread::_State_impl<", None),
        ("vtable for shop::Cart", None),
        ("", None),
    ],
)
def test_the_callable_is_known_by_the_virtual_table(table: str, called: Optional[str]) -> None:
    assert state_type(table) == called
    assert called is None or is_pointer(called) == ("*" in called)


def test_a_lambda_is_no_pointer_to_a_function() -> None:
    constructor = Frame("std::thread::thread<main()::<lambda(int)>, int>", module="/opt/app")
    assert called_type([constructor]) is None
    assert started([constructor]) == "main()::<lambda(int)>"
