# SPDX-License-Identifier: Apache-2.0
"""What is kept comes back as it was, or not at all: nobody else can have it say something."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpftrace.capture import cache, taskstates
from ebpftrace.capture.btf import Btf
from ebpftrace.capture.cache import read_cached, sources_identity, write_cached


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setattr(cache, "cache_directory", lambda: directory)
    return directory


def kept(place: Path) -> Path:
    (file,) = place.iterdir()
    return file


def test_what_is_kept_comes_back(place: Path) -> None:
    assert read_cached("key") is None
    write_cached("key", b"content")
    write_cached("other\udc80", b"")
    assert (read_cached("key"), read_cached("other\udc80"), read_cached("third")) == (b"content", b"", None)
    write_cached("key", b"newer")
    assert read_cached("key") == b"newer"
    assert sorted(path.stat().st_mode & 0o777 for path in (place, *place.iterdir())) == [0o600, 0o600, 0o700]


def replaced_by_a_link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def has_another_name(file: Path) -> None:
    os.link(file, file.parent.parent / "elsewhere")


def directory_is_a_link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    file.parent.rename(elsewhere)
    (file.parent.parent / "cache").symlink_to(elsewhere)


def is_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def is_another_keys(file: Path) -> None:
    raw = file.read_bytes()
    write_cached("other", b"other content")
    (other,) = set(file.parent.iterdir()) - {file}
    file.write_bytes(other.read_bytes())
    assert file.read_bytes() != raw


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.chmod(0o640),
        lambda file: file.chmod(0o602),
        lambda file: file.parent.chmod(0o770),
        lambda file: file.parent.chmod(0o1777),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes() + b"x"),
        replaced_by_a_link,
        has_another_name,
        directory_is_a_link,
        is_a_fifo,
        is_another_keys,
    ],
)
def test_what_others_may_have_written_or_is_damaged_is_not_read(
    place: Path, change: Callable[[Path], object]
) -> None:
    write_cached("key", b"content")
    assert read_cached("key") == b"content"
    change(kept(place))
    assert read_cached("key") is None


@pytest.mark.parametrize("of", ["file", "directory"])
def test_another_owner_is_not_believed(place: Path, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    write_cached("key", b"content")
    fstat = os.fstat
    inode = (kept(place) if of == "file" else place).stat().st_ino

    def of_somebody_else(fd: int) -> os.stat_result:
        status = fstat(fd)
        fields = list(status)
        if status.st_ino == inode:
            fields[4] += 1  # st_uid
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", of_somebody_else)
    assert read_cached("key") is None
    if of == "directory":
        write_cached("another", b"x")
        assert len(list(place.iterdir())) == 1


@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("flip") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "cache_directory", lambda: place)
        write_cached("key", content)
        raw = bytearray(kept(place).read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        kept(place).write_bytes(raw)
        assert read_cached("key") is None


def test_where_nothing_can_be_written_nothing_is_kept(place: Path) -> None:
    place.write_text("no directory")
    write_cached("key", b"content")
    assert read_cached("key") is None


def test_it_does_not_grow_for_ever(place: Path) -> None:
    for number in range(3 * cache._MAX_FILES):
        write_cached(str(number), b"x")
    assert len(list(place.iterdir())) <= cache._MAX_FILES
    assert read_cached(str(3 * cache._MAX_FILES - 1)) == b"x"


def test_who_is_not_root_has_his_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_directory() == Path("/var/cache/ebpftrace")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cache.cache_directory() == Path("/somewhere/ebpftrace")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.cache_directory() == Path("/home/somebody/.cache/ebpftrace")


def test_sources_are_the_same_only_with_the_same_names_and_content(tmp_path: Path) -> None:
    seen = set()
    (tmp_path / "below").mkdir()
    for name, content in [("a", b"1"), ("a", b"12"), ("b", b"1"), ("below/a", b"1"), ("a", b"1")]:
        for file in tmp_path.rglob("?"):
            file.unlink()
        (tmp_path / name).write_bytes(content)
        seen.add(sources_identity(tmp_path))
    assert len(seen) == 4


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this kernel describes no types")
def test_the_layout_of_tasks_is_kept_as_it_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (member, _) = taskstates._THREAD_POINTER[platform.machine()]
    if not Btf.of_running_kernel().has_name("bpf_task_pt_regs"):
        pytest.skip("needs Linux 5.15")
    taskstates._layout.cache_clear()
    found = taskstates._layout(member)
    taskstates._layout.cache_clear()
    monkeypatch.setattr(taskstates, "_find_layout", lambda _: pytest.fail("it is looked for once more"))
    assert taskstates._layout(member) == found
    taskstates._layout.cache_clear()
    kept(place).unlink()
