# SPDX-License-Identifier: Apache-2.0
"""Files that are deleted, replaced, hidden or gone when the stacks are named: the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from stacks_helpers import FIRST_PAGES, GCC, TARGETS, Caught, catch, compile_target, physical

from ebpftrace.model import Stack
from ebpftrace.unwind.engine import Engine
from ebpftrace.unwind.resolve import JIT, NOTE_GUESSED, StackResolver

pytest.importorskip("drgn")

OUTER_CHAIN = ["leaf", "middle", "outer", "main"]
PLUGIN_CHAIN = ["leaf", "middle", "outer", "plugin_inner", "plugin_entry", "in_plugin", "main"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    source = str(TARGETS / "stacks_chain.c")
    return compile_target(tmp_path / "chain", *GCC, "-g", source, "-pthread", "-ldl")


@pytest.fixture
def static_chain(tmp_path: Path) -> Path:
    command = [*GCC, "-g", "-static", "-Wl,--build-id", str(TARGETS / "stacks_chain.c"), "-pthread", "-ldl"]
    return compile_target(tmp_path / "static_chain", *command)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    return compile_target(tmp_path / "plugin.so", *GCC, "-shared", "-fPIC", str(TARGETS / "stacks_plugin.c"))


def names_from_leaf(stack: Stack) -> list[str]:
    names = physical(stack)
    return names[names.index("leaf") :] if "leaf" in names else names


def test_files_deleted_and_process_dead(engine: Engine, chain: Path, plugin: Path) -> None:
    kept: dict[int, Caught] = {}
    resolver = None
    for caught in catch([str(chain), str(plugin)]):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        kept[caught.site] = caught
    assert resolver is not None
    chain.unlink()
    plugin.unlink()
    assert not resolver.alive
    assert names_from_leaf(resolver.resolve(kept[0].copy))[:4] == OUTER_CHAIN
    assert names_from_leaf(resolver.resolve(kept[4].copy))[:7] == PLUGIN_CHAIN
    assert all(resolver.resolve(kept[site].copy).complete for site in (0, 1, 2, 3, 4, 6))


def test_files_deleted_before_the_tracer_came(engine: Engine, chain: Path, plugin: Path) -> None:
    calls = catch([str(chain), str(plugin)])
    for caught in calls:
        if caught.site == 4:
            break
    chain.unlink()
    plugin.unlink()
    with StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
    calls.close()
    assert names_from_leaf(stack)[:7] == PLUGIN_CHAIN
    assert stack.complete


def test_files_replaced_by_others_of_the_same_name(engine: Engine, chain: Path, plugin: Path) -> None:
    calls = catch([str(chain), str(plugin)])
    for caught in calls:
        if caught.site == 4:
            break
    for path in (chain, plugin):
        other = path.with_suffix(".new")
        shutil.copy("/bin/true", other)
        other.rename(path)
    with StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
    calls.close()
    assert names_from_leaf(stack)[:7] == PLUGIN_CHAIN
    assert stack.complete


def test_files_in_another_mount_namespace(engine: Engine, chain: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    script = f"mount -t tmpfs none {hidden} && cp {chain} {hidden}/chain && exec {hidden}/chain"
    calls = catch(["unshare", "-m", "sh", "-c", script])
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        assert not (hidden / "chain").exists()
        stack = resolver.resolve(caught.copy)
    calls.close()
    assert names_from_leaf(stack)[:4] == OUTER_CHAIN
    assert stack.complete


def test_a_library_loaded_later_is_found_when_a_stack_needs_it(
    engine: Engine, chain: Path, plugin: Path
) -> None:
    resolver = None
    for caught in catch([str(chain), str(plugin)]):
        resolver = resolver or StackResolver(caught.pid, engine)
        if caught.site == 4:
            stack = resolver.resolve(caught.copy)
    assert names_from_leaf(stack)[:7] == PLUGIN_CHAIN
    assert stack.complete


def test_copies_from_before_and_after_an_exec(engine: Engine, chain: Path) -> None:
    resolver = None
    before: list[Caught] = []
    calls = catch(["sh", "-c", f"exec {chain}"], every=True)
    for caught in calls:
        if caught.site < 0 and "sh" in Path(f"/proc/{caught.pid}/comm").read_text():
            resolver = resolver or StackResolver(caught.pid, engine)
            resolver.refresh()
            before.append(caught)
        elif caught.site == 0:
            break
    assert resolver is not None
    first = resolver.resolve(before[-1].copy)
    after = resolver.resolve(caught.copy)
    assert names_from_leaf(after)[:4] == OUTER_CHAIN
    assert after.complete
    assert first.complete
    assert first.frames[-1].module != str(chain)
    assert resolver.resolve(before[-1].copy) == first
    calls.close()


def split_debug(binary: Path) -> Path:
    debug = binary.with_suffix(".dbg")
    subprocess.run(["objcopy", "--only-keep-debug", binary, debug], check=True)
    subprocess.run(["strip", "-s", binary], check=True)
    return debug


def build_id(binary: Path) -> str:
    notes = subprocess.run(["readelf", "-n", binary], check=True, capture_output=True, text=True).stdout
    return notes.split("Build ID: ", 1)[1].split()[0]


def container(tmp_path: Path, binary: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(binary, root / "app")
    return root


def first_stack(engine: Engine, *command: str) -> Stack:
    calls = catch(command)
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
    calls.close()
    return stack


def test_debug_info_of_the_container_by_build_id(engine: Engine, static_chain: Path, tmp_path: Path) -> None:
    debug = split_debug(static_chain)
    digits = build_id(static_chain)
    root = container(tmp_path, static_chain)
    place = root / "usr/lib/debug/.build-id" / digits[:2] / f"{digits[2:]}.debug"
    place.parent.mkdir(parents=True)
    # An absolute link means the container's root, not the host's.
    shutil.copy(debug, root / "app.debug")
    place.symlink_to("/app.debug")
    stack = first_stack(engine, "chroot", str(root), "/app")
    assert names_from_leaf(stack)[:4] == OUTER_CHAIN
    assert next(f for f in stack.frames if f.function == "leaf").file is not None


def test_debug_info_by_debug_link(engine: Engine, chain: Path) -> None:
    debug = split_debug(chain)
    (chain.parent / ".debug").mkdir()
    subprocess.run(["objcopy", f"--add-gnu-debuglink={debug}", chain], check=True)
    debug.rename(chain.parent / ".debug" / debug.name)
    assert names_from_leaf(first_stack(engine, str(chain)))[:4] == OUTER_CHAIN


def test_debug_info_that_dwz_moved_to_a_shared_file(
    engine: Engine, static_chain: Path, tmp_path: Path
) -> None:
    if shutil.which("dwz") is None:
        pytest.skip("dwz is not installed")
    root = container(tmp_path, static_chain)
    debug = split_debug(root / "app")
    twin = debug.with_suffix(".twin")
    shutil.copy(debug, twin)
    where = "/usr/lib/debug/.dwz/shared.debug"
    (root / "usr/lib/debug/.dwz").mkdir(parents=True)
    subprocess.run(["dwz", "-m", f"{root}{where}", "-M", where, debug, twin], check=True)
    digits = build_id(static_chain)
    place = root / "usr/lib/debug/.build-id" / digits[:2] / f"{digits[2:]}.debug"
    place.parent.mkdir(parents=True)
    debug.rename(place)
    stack = first_stack(engine, "chroot", str(root), "/app")
    assert names_from_leaf(stack)[:4] == OUTER_CHAIN
    assert next(f for f in stack.frames if f.function == "leaf").line is not None


def test_debug_info_of_another_program_is_refused(engine: Engine, static_chain: Path, tmp_path: Path) -> None:
    split_debug(static_chain)
    digits = build_id(static_chain)
    other = compile_target(tmp_path / "other", *GCC, "-g", str(TARGETS / "stacks_jit.c"))
    root = container(tmp_path, static_chain)
    place = root / "usr/lib/debug/.build-id" / digits[:2] / f"{digits[2:]}.debug"
    place.parent.mkdir(parents=True)
    shutil.copy(other, place)
    stack = first_stack(engine, "chroot", str(root), "/app")
    assert stack.complete
    assert not any(f.function for f in stack.frames)
    assert all(f.module == "/app" or (f.module or "").endswith("/app") for f in stack.frames)


@pytest.mark.parametrize("namespace", [[], ["unshare", "--mount", "--pid", "--fork", "--mount-proc"]])
def test_jit_code_is_named_by_the_perf_map(engine: Engine, tmp_path: Path, namespace: list[str]) -> None:
    binary = compile_target(tmp_path / "jit", *GCC, str(TARGETS / "stacks_jit.c"))
    stacks = {}
    resolver = None
    for caught in catch([*namespace, str(binary)]):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        stacks[caught.site] = resolver.resolve(caught.copy)
    with_pointer = physical(stacks[20])
    assert with_pointer[1:5] == ["leaf", "py::with_pointer:/srv/app.py", "outer", "main"]
    assert stacks[20].complete
    assert stacks[20].note == ""
    trampoline = physical(stacks[23])
    assert trampoline[1:5] == ["leaf", "trampoline", "outer", "main"]
    assert stacks[23].complete
    without = physical(stacks[21])
    assert without[1:5] == ["leaf", "LazyCompile:~without app.js:1", "outer", "main"]
    assert stacks[21].complete


@pytest.mark.parametrize("memory", ["memfd", "zero"])
def test_jit_code_in_shared_memory_is_named_by_the_perf_map(
    engine: Engine, tmp_path: Path, memory: str
) -> None:
    """.NET maps the memfd "doublemapper" twice, to write its code and to execute it."""
    binary = compile_target(tmp_path / "jit", *GCC, str(TARGETS / "stacks_jit.c"))
    stacks = {}
    resolver = None
    for caught in catch([str(binary), memory]):
        resolver = resolver or StackResolver(caught.pid, engine)
        resolver.refresh()
        stacks[caught.site] = resolver.resolve(caught.copy)
    assert resolver is not None
    for site, name in ((20, "py::with_pointer:/srv/app.py"), (21, "LazyCompile:~without app.js:1")):
        assert physical(stacks[site])[1:5] == ["leaf", name, "outer", "main"]
        assert stacks[site].complete
        assert JIT in [frame.module for frame in stacks[site].frames]
    notes = resolver.stack_warnings.notes()
    assert not [note for note in notes if "memfd" in note or "/dev/zero" in note]


def test_jit_code_without_a_map_keeps_its_place(engine: Engine, tmp_path: Path) -> None:
    binary = compile_target(tmp_path / "jit", *GCC, str(TARGETS / "stacks_jit.c"))
    stack = first_stack(engine, str(binary), "no-map")
    assert [f.module for f in stack.frames if f.function is None] == [JIT]
    assert stack.complete


def test_jit_code_of_a_process_that_has_gone_is_crossed_by_a_guess_that_is_reported(
    engine: Engine, tmp_path: Path
) -> None:
    # With frame pointers, as the code below a JIT's must be for the guess to be a good one.
    options = (*GCC, "-fno-omit-frame-pointer")
    binary = compile_target(tmp_path / "jit", *options, str(TARGETS / "stacks_jit.c"))
    caught: dict[int, Caught] = {}
    resolver = None
    for call in catch([str(binary), "keep-map"]):
        resolver = resolver or StackResolver(call.pid, engine)
        resolver.refresh()
        caught[call.site] = call
    assert resolver is not None
    with_pointer = resolver.resolve(caught[20].copy)
    Path(f"/tmp/perf-{caught[20].pid}.map").unlink()
    assert physical(with_pointer)[1:5] == ["leaf", "py::with_pointer:/srv/app.py", "outer", "main"]
    assert not with_pointer.complete
    assert with_pointer.note == f"the caller of py::with_pointer:/srv/app.py {NOTE_GUESSED}"
    without = resolver.resolve(caught[21].copy)
    assert physical(without)[1:] == ["leaf", "LazyCompile:~without app.js:1"]
    assert not without.complete
    assert "no unwind table" in without.note


def test_jit_code_made_since_the_maps_were_read(engine: Engine, tmp_path: Path) -> None:
    binary = compile_target(tmp_path / "jit", *GCC, str(TARGETS / "stacks_jit.c"))
    resolver = None
    for caught in catch([str(binary), "no-map"]):
        resolver = resolver or StackResolver(caught.pid, engine)
        stack = resolver.resolve(caught.copy)
    names = [name for name in physical(stack) if not name.startswith("[jit]")]
    assert names[1:4] == ["leaf", "newest", "main"]
    assert [f.module for f in stack.frames].count(JIT) == 2
    assert stack.complete


def python_with_perf_maps() -> str:
    """A CPython that writes them, which 3.12 and newer do."""
    names = [f"python3.{minor}" for minor in range(12, 20)]
    pyenv = Path.home().glob(".pyenv/versions/3.*/bin/python3")
    for program in (*names, *map(str, pyenv)):
        if shutil.which(program) is None:
            continue
        script = (
            "import os, sys\n"
            "if sys.version_info < (3, 12): sys.exit(1)\n"
            "os.unlink(f'/tmp/perf-{os.getpid()}.map')  # another process will have this PID\n"
            "print(sys.executable)"
        )
        asked = subprocess.run(
            [program, "-X", "perf", "-c", script], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    pytest.skip("no CPython 3.12 or newer with perf support")


def test_python_functions(engine: Engine, tmp_path: Path) -> None:
    """Between the interpreter's own C functions."""
    script = tmp_path / "app.py"
    pages = FIRST_PAGES + 3
    script.write_text(
        "import mmap\n"
        f"def innermost(): mmap.mmap(-1, {pages} * 4096)\n"
        "class Server:\n"
        "    def handle(self): innermost()\n"
        "Server().handle()\n"
    )
    calls = catch([python_with_perf_maps(), "-X", "perf", str(script)])
    caught = next(calls)
    with StackResolver(caught.pid, engine) as resolver:
        stack = resolver.resolve(caught.copy)
    calls.close()
    Path(f"/tmp/perf-{caught.pid}.map").unlink()
    functions = [name.rpartition(":")[0] for name in physical(stack) if name.startswith("py::")]
    assert functions == ["py::innermost", "py::Server.handle", "py::<module>"]
    assert stack.complete


@pytest.mark.parametrize("hazard", ["fifo", "directory", "link", "other-owner"])
def test_a_dangerous_perf_map_is_left_alone(engine: Engine, tmp_path: Path, hazard: str) -> None:
    binary = compile_target(tmp_path / "jit", *GCC, str(TARGETS / "stacks_jit.c"))
    calls = catch([str(binary), "no-map"])
    caught = next(calls)
    place = Path(f"/tmp/perf-{caught.pid}.map")
    place.unlink(missing_ok=True)  # of a process that had this PID before
    try:
        if hazard == "fifo":
            os.mkfifo(place)
        elif hazard == "directory":
            place.mkdir()
        elif hazard == "link":
            place.symlink_to("/dev/zero")
        else:
            place.write_text("0 ffffffff wrong\n")
            os.chown(place, 12345, 12345)
        with StackResolver(caught.pid, engine) as resolver:
            stack = resolver.resolve(caught.copy)
            (note,) = resolver.stack_warnings.notes()
            assert note.startswith(f"perf map {place} not read")
    finally:
        calls.close()
        place.rmdir() if hazard == "directory" else place.unlink()
    assert "wrong" not in physical(stack)
    assert stack.complete
