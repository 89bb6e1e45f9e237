# SPDX-License-Identifier: Apache-2.0
"""A fingerprint stays while the leak does: rebuilds, machines, ASLR and libc versions do not change it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reports
from hypothesis import assume, given
from hypothesis import strategies as st

from ebpftrace.fingerprint import fingerprint, module_name
from ebpftrace.model import Finding, Frame, Stack, StackSource, Verdict

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
APP = "/opt/app/server"

names = st.sampled_from(("start_worker", "acme::Pool::grow(int)", "main", "serve", "run<int>", "on_minute"))
functions = st.lists(names, min_size=1, max_size=6)
numbers = st.integers(0, 1 << 40)
LIBCS = (
    # glibc 2.36, 2.31 and a static one; musl.
    (("clone3", LIBC), ("create_thread", LIBC), ("pthread_create@@GLIBC_2.34", LIBC)),
    (("clone", "/lib/libc-2.31.so"), ("__pthread_create_2_1", "/lib/libpthread-2.31.so")),
    (("__clone3", APP), ("create_thread", APP), ("__pthread_create_2_1", APP)),
    (("__clone", "/lib/ld-musl-x86_64.so.1"), ("pthread_create", "/lib/ld-musl-x86_64.so.1")),
)
ENTRIES = (
    (("__libc_start_call_main", LIBC), ("__libc_start_main@@GLIBC_2.34", LIBC), ("_start", APP)),
    (("__libc_start_main", "/lib/libc-2.31.so"),),
    (("start_thread", LIBC), ("clone3", LIBC)),
    (("start_thread", APP), ("__clone3", APP)),
    (),
)


def leak(*frames: Frame, verdict: Verdict = Verdict.NEVER_JOINED, routine: str = "job") -> Finding:
    start = Frame(routine, "src/job.c", 3, APP, 0x1000)
    stack = Stack(frames, True, StackSource.COPIED)
    return replace(reports.never_joined_in_window(), verdict=verdict, stack=stack, start_routine=start)


@st.composite
def builds(draw: st.DrawFn, own: list[str]) -> Finding:
    """The same code, built and run in any way."""
    directory = draw(st.sampled_from(("/opt/app", "/home/me/build", "/usr/bin")))
    suffix = draw(st.sampled_from(("", " (deleted)")))
    clone = draw(st.sampled_from(("", ".isra.0", ".constprop.1", ".part.0.cold", ".lto_priv.3")))
    frames = [
        Frame(name, module=module, offset=draw(numbers)) for name, module in draw(st.sampled_from(LIBCS))
    ]
    for name in own:
        line, offset = draw(st.integers(1, 9999)), draw(numbers)
        bare = draw(st.booleans())
        shown = name.partition("(")[0] if bare else name
        path = draw(st.sampled_from(("src/pool.c", f"{directory}/pool.c")))
        frames.append(
            Frame(shown + clone, path, line, f"{directory}/server{suffix}", offset, draw(st.booleans()))
        )
    frames += [
        Frame(name, module=module, offset=draw(numbers)) for name, module in draw(st.sampled_from(ENTRIES))
    ]
    return leak(*frames)


@given(st.data(), functions)
def test_it_is_the_same_however_the_code_is_built_and_run(data: st.DataObject, own: list[str]) -> None:
    one, other = data.draw(builds(own)), data.draw(builds(own))
    assert fingerprint(one) == fingerprint(other)


def without_repeats(own: list[str]) -> list[str]:
    return [name for index, name in enumerate(own) if index == 0 or own[index - 1] != name]


@given(st.data(), functions, functions)
def test_other_callers_are_another_leak(data: st.DataObject, own: list[str], others: list[str]) -> None:
    assume(without_repeats(own) != without_repeats(others))
    assert fingerprint(data.draw(builds(own))) != fingerprint(data.draw(builds(others)))


def test_verdict_routine_and_module_tell_leaks_apart() -> None:
    frame = Frame("start_worker", module=APP)
    found = {
        fingerprint(leak(frame)),
        fingerprint(leak(frame, verdict=Verdict.ABANDONED_STACK)),
        fingerprint(leak(frame, routine="other_job")),
        fingerprint(leak(replace(frame, module="/opt/app/libpool.so.1"))),
        fingerprint(leak(replace(frame, module=None))),
    }
    assert len(found) == 5


def test_what_a_thread_of_the_library_calls_reports_leaks_apart() -> None:
    def started_by(called: str) -> Finding:
        function = f"std::thread::thread<{called}, , void>({called}&&)"
        return leak(Frame(function, module=APP), Frame("main", module=APP))

    assert fingerprint(started_by("main::{lambda()#1}")) != fingerprint(started_by("main::{lambda()#2}"))


def test_how_deep_a_recursion_was_does_not_matter() -> None:
    step, end = Frame("walk", module=APP), Frame("main", module=APP)
    assert fingerprint(leak(step, end)) == fingerprint(leak(step, step, step, end))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "libc.so"),
        ("/lib/libc-2.31.so", "libc.so"),
        ("/usr/lib/libstdc++.so.6.0.30", "libstdc++.so"),
        ("/x/_pool.cpython-311-x86_64-linux-gnu.so", "_pool.so"),
        ("/x/_pool.abi3.so", "_pool.so"),
        ("/tmp/perf-4242.map", "perf.map"),
        ("/opt/app/server (deleted)", "server"),
        ("[vdso]", "[vdso]"),
        ("/opt/app/", "/opt/app/"),
        ("", ""),
    ],
)
def test_a_module_is_named_without_its_version(path: str, name: str) -> None:
    assert module_name(path) == name


def test_the_form_is_what_it_was() -> None:
    """Fingerprints stand in files of users: where this fails, ``FORM`` has to be raised."""
    assert (
        fingerprint(leak(Frame("start_worker", "a.c", 1, APP), Frame("main", "a.c", 9, APP)))
        == "f25231c520b20c4a"
    )
