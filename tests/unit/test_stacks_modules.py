# SPDX-License-Identifier: Apache-2.0
"""Load bias, layouts over time, and ELF headers, on real and broken files."""

from __future__ import annotations

import mmap
import os
import struct
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.elf import (
    EHDR,
    MAX_KEPT_SECTIONS,
    MAX_SEGMENTS,
    PT_LOAD,
    ElfHeaders,
    NotElfError,
    Section,
    Segment,
    read_headers,
)
from ebpftrace.model import Vma
from ebpftrace.procfs.files import FileKey, file_key
from ebpftrace.procfs.maps import read_maps
from ebpftrace.unwind import debugfiles, modules
from ebpftrace.unwind import files as files_module
from ebpftrace.unwind.files import FileStore, StoredFile
from ebpftrace.unwind.modules import CodeRange, Layout, ModuleHistory, load_bias
from ebpftrace.unwind.unwind_image import memory_file, unwind_image


def code(start: int, end: int, path: str = "a", file: int = 0) -> CodeRange:
    return CodeRange(start, end, path, file, start, 0)


def test_find_is_half_open() -> None:
    layout = Layout((code(10, 20), code(30, 40, "b")))
    assert [bool(layout.find(at)) for at in (9, 10, 19, 20, 29, 30, 39, 40)] == [0, 1, 1, 0, 0, 1, 1, 0]


def test_a_layout_is_filled_up_only_where_it_is_free() -> None:
    before = Layout((code(10, 20, "old"), code(50, 60, "stays")))
    after = Layout((code(15, 25, "new"), code(30, 40, "loaded"), code(50, 60, "stays")))
    assert [r.path for r in before.over(after).ranges] == ["old", "loaded", "stays"]


def test_code_without_a_file_has_grown_where_it_was_free() -> None:
    def made(start: int, end: int) -> CodeRange:
        return CodeRange(start, end, "", None, 0, 0)

    before = Layout((made(10, 20), code(30, 40, "stays"), made(50, 60)))
    after = Layout((made(5, 25), made(28, 70)))
    assert before.over(after).ranges == (made(5, 25), made(28, 30), code(30, 40, "stays"), made(40, 70))


@given(
    st.lists(st.integers(0, 60), unique=True, max_size=12),
    st.lists(st.integers(0, 60), unique=True, max_size=12),
)
def test_merged_layouts_stay_disjoint_and_keep_the_first(cuts: list[int], others: list[int]) -> None:
    def ranges(points: list[int], path: str) -> Layout:
        ordered = sorted(points)
        return Layout(tuple(code(a, b, path) for a, b in zip(ordered[::2], ordered[1::2])))

    first, second = ranges(cuts, "first"), ranges(others, "second")
    merged = first.over(second)
    assert all(a.end <= b.start for a, b in zip(merged.ranges, merged.ranges[1:]))
    assert set(first.ranges) <= set(merged.ranges)
    left_out = set(second.ranges) - set(merged.ranges)
    assert all(any(a.start < r.end and r.start < a.end for a in first.ranges) for r in left_out)


def test_bias_comes_from_the_executable_segment() -> None:
    # As lld lays out: code at file offset 0x1234 is loaded one page further on.
    loads = (Segment(PT_LOAD, 4, 0, 0, 0x1234, 0x1234), Segment(PT_LOAD, 5, 0x1234, 0x2234, 0x5000, 0x5000))
    headers = ElfHeaders(3, loads, (), None)
    assert load_bias(headers, 0x7F0000002000, 0x1000, 0x6000) == 0x7F0000000000
    assert load_bias(headers, 0x7F0000002000, 0x9000, 0x1000) is None


def test_own_process_has_its_interpreter_and_library() -> None:
    files = FileStore()
    history = ModuleHistory(os.getpid(), files)
    assert history.refresh()
    paths = [r.path for r in history.at(None).ranges if r.file is not None]
    assert os.path.realpath(sys.executable) in paths
    assert any("libc.so" in path for path in paths)
    assert "[vdso]" in paths
    assert not history.refresh()
    files.close()


def test_readings_of_much_code_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    files = FileStore()
    history = ModuleHistory(os.getpid(), files)
    assert history.refresh(1)
    first = history.at(1)
    monkeypatch.setattr(modules, "MAX_RANGES", 4 * len(first.ranges))
    code, private = [], mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    for moment in range(2, 12):
        code.append(mmap.mmap(-1, moment << 12, private, mmap.PROT_READ | mmap.PROT_EXEC))
        assert history.refresh(moment)
    assert history.at(0) is first
    assert sum(r.end - r.start for r in history.at(None).ranges if not r.path) >= sum(map(len, code))
    assert 2 <= len(history._layouts) <= 4
    files.close()


def test_refresh_of_a_process_that_is_gone_changes_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    history = ModuleHistory(pid, FileStore())
    assert not history.refresh()
    assert history.at(0) == Layout(())


def test_a_reading_of_a_process_that_exits_meanwhile_does_not_lose_known_files() -> None:
    """As on overlayfs before Linux 6.8, maps has another device than the BPF program: it is opened anew."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    files, root = FileStore(), own_root()
    library = next(vma for vma in read_maps(os.getpid()) if "libc.so" in vma.path and "x" in vma.perms)
    history = ModuleHistory(pid, files, root)
    history.mapped(library, 10)
    known = history.at(10).find(library.start)
    assert known is not None
    assert known.file is not None
    by_maps = library._replace(device="ff:ff")
    assert not history.refresh(20, [by_maps])
    assert history.at(None).find(library.start) == known
    # Other code at the same place is not taken for it.
    for other in (by_maps._replace(path="/other"), by_maps._replace(offset=library.offset + 4096)):
        assert history.refresh(30, [other])
        found = history.at(None).find(library.start)
        assert found is not None
        assert found.file is None
        history.mapped(library, 40)
    os.close(root)
    files.close()


def own_auxv() -> dict[int, int]:
    words = struct.iter_unpack("=QQ", Path("/proc/self/auxv").read_bytes())
    return dict(words)


def own_root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY)


def executed_ranges(history: ModuleHistory) -> list[CodeRange]:
    read = [r for r in history.at(None).ranges if r.file is not None]
    interpreters = ("/ld-", "/ld.", "[vdso]", os.path.realpath(sys.executable))
    return [r for r in read if any(name in r.path for name in interpreters)]


def test_where_a_program_lies_is_the_same_by_its_auxiliary_vector_and_by_its_maps() -> None:
    files, root = FileStore(), own_root()
    read, reported = ModuleHistory(os.getpid(), files), ModuleHistory(os.getpid(), files, root)
    assert read.refresh()
    (program,) = {
        r for r in read_maps(os.getpid()) if r.path == os.path.realpath(sys.executable) and "x" in r.perms
    }
    reported.executed(file_key(program), own_auxv(), 5)
    assert list(reported.at(7).ranges) == executed_ranges(read)
    os.close(root)
    files.close()


def test_a_library_is_known_from_when_it_was_mapped_until_it_is_read_to_be_gone() -> None:
    files, root = FileStore(), own_root()
    history = ModuleHistory(os.getpid(), files, root)
    library = next(vma for vma in read_maps(os.getpid()) if "libc.so" in vma.path and "x" in vma.perms)
    elsewhere = library._replace(start=1 << 40, end=(1 << 40) + library.size)
    assert history.refresh(10)
    history.mapped(elsewhere, 20)
    assert [bool(history.at(at).find(1 << 40)) for at in (5, 20, 25)] == [False, True, True]
    assert history.at(20).find(library.start) == history.at(5).find(library.start)
    # It was mapped before a reading that has been made, and is not in it: it was unmapped again.
    assert history.refresh(40)
    assert not history.at(40).find(1 << 40)
    history.mapped(elsewhere, 30)
    assert history.at(35).find(1 << 40)
    assert not history.at(40).find(1 << 40)
    os.close(root)
    files.close()


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 6)), min_size=2, max_size=8).flatmap(
        lambda places: st.tuples(st.just(places), st.permutations(range(len(places))))
    )
)
def test_what_is_reported_in_any_order_is_known_in_the_order_of_time(
    case: tuple[list[tuple[int, int]], list[int]],
) -> None:
    places, order = case
    history, model = (ModuleHistory(os.getpid(), FileStore()) for _ in range(2))
    vmas = [
        Vma(start << 12, start + pages << 12, "r-xp", 0, "00:00", 1, f"/{index}")
        for index, (start, pages) in enumerate(places)
    ]
    for index in order:
        history.mapped(vmas[index], 10 * index)
    for index, vma in enumerate(vmas):
        model.mapped(vma, 10 * index)
    for index, vma in enumerate(vmas):
        found = history._layouts[index].find(vma.start)
        assert found is not None
        assert found.path == vma.path
        # What was covered never comes back; what was not stays.
        assert history._layouts[index] == model._layouts[index]


def test_a_file_that_has_another_ones_name_is_not_taken_for_it(tmp_path: Path) -> None:
    files, root = FileStore(), own_root()
    library = next(vma for vma in read_maps(os.getpid()) if "libc.so" in vma.path and "x" in vma.perms)
    copy = tmp_path / "libc.so"
    copy.write_bytes(Path(library.path).read_bytes())
    history = ModuleHistory(os.getpid(), files, root)
    history.mapped(library._replace(path=str(copy)), 1)
    assert [r.file for r in history.at(1).ranges] == [None]
    status = copy.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    history.mapped(library._replace(path=str(copy), inode=status.st_ino, device=device), 2)
    (found,) = history.at(2).ranges
    assert found.file is not None
    os.close(root)
    files.close()


def test_files_beyond_the_limit_are_reported() -> None:
    files = FileStore(limit=1)
    history = ModuleHistory(os.getpid(), files)
    history.refresh()
    ranges = [r for r in history.at(None).ranges if r.path]
    assert len({r.file for r in ranges if r.file is not None}) == 1
    left_out = [r for r in ranges if r.file is None]
    assert left_out
    assert all("no more than 1 file" in files.why_refused(r.path) for r in left_out)
    files.close()


def test_bias_of_every_own_module_is_right() -> None:
    """The ELF header of a module is mapped at bias plus its lowest address."""
    files = FileStore()
    history = ModuleHistory(os.getpid(), files)
    history.refresh()
    starts = {vma.start: vma for vma in read_maps(os.getpid())}
    modules = history.at(None).modules
    assert modules
    for module in modules:
        start = module.bias + files[module.file].headers.start
        assert starts[start & ~4095].offset == 0
    files.close()


@pytest.fixture(scope="module")
def real() -> bytes:
    return Path("/proc/self/exe").read_bytes()


def test_headers_of_a_real_file(real: bytes) -> None:
    headers = read_headers(lambda offset, count: real[offset : offset + count])
    assert headers.section(".eh_frame") is not None
    assert headers.build_id is not None
    assert headers.start < headers.end
    image = unwind_image(lambda offset, count: real[offset : offset + count], headers)
    assert image is not None
    again = read_headers(lambda offset, count: image[offset : offset + count])
    assert (again.start, again.end) == (headers.start, headers.end)
    table, small = headers.section(".eh_frame"), again.section(".eh_frame")
    assert table is not None
    assert small is not None
    assert (small.address, small.size) == (table.address, table.size)


@pytest.fixture(scope="module")
def head(real: bytes) -> bytes:
    return real[:4096]


def test_headers_of_endless_tables_are_not_kept(real: bytes) -> None:
    """A target may map thousands of files, and the headers of each stay in memory."""
    ident, kind, machine, version, entry, phoff, _, flags, _, phentsize, phnum, *_ = EHDR.unpack_from(real)
    tables = real[phoff : phoff + phnum * phentsize].ljust(65_535 * 64, b"\0")

    def read(segments: int, sections: int) -> ElfHeaders:
        counts = (flags, EHDR.size, phentsize, segments, 64, sections, 1)
        content = EHDR.pack(ident, kind, machine, version, entry, EHDR.size, EHDR.size, *counts) + tables
        return read_headers(lambda offset, count: content[offset : offset + count])

    for sections in (MAX_KEPT_SECTIONS, MAX_KEPT_SECTIONS + 1, 65_535):
        assert len(read(MAX_SEGMENTS, sections).sections) == MAX_KEPT_SECTIONS
    with pytest.raises(NotElfError):
        read(MAX_SEGMENTS + 1, 1)


@pytest.mark.parametrize("size", [4096, 4097])
def test_a_debug_file_that_is_too_large_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(debugfiles, "MAX_CHECKED_BYTES", 4096)
    (tmp_path / "lib").mkdir()
    content = b"\x7fELF".ljust(size, b"\0")
    (tmp_path / "lib/a.debug").write_bytes(content)
    link = b"a.debug\0" + struct.pack("<I", zlib.crc32(content))
    headers = ElfHeaders(3, (), (Section(".gnu_debuglink", 1, 0, 0, len(link)),), None)
    stored = StoredFile(0, "/lib/a.so", memory_file("linked", link), headers)
    root = os.open(tmp_path, os.O_PATH)
    found = list(debugfiles.debug_files(stored, [root]))
    assert [file.checked for file in found] == [True] * (size == 4096)
    for fd in (root, stored.fd, *(file.fd for file in found)):
        os.close(fd)


@settings(deadline=None)
@given(data=st.data())
def test_broken_headers_are_refused_or_read(data: st.DataObject, head: bytes) -> None:
    broken = bytearray(head[: data.draw(st.integers(0, 4096))])
    for _ in range(data.draw(st.integers(0, 8))):
        if broken:
            at = data.draw(st.integers(0, min(len(broken), 1024) - 1))
            broken[at] = data.draw(st.integers(0, 255))
    raw = bytes(broken)

    def read(offset: int, count: int) -> bytes:
        assert count <= 1 << 28
        return raw[offset : offset + count]

    try:
        headers = read_headers(read)
    except NotElfError:
        return
    unwind_image(read, headers)


def test_what_is_not_elf_is_refused_and_reported(tmp_path: Path) -> None:
    files = FileStore()
    text = tmp_path / "text"
    text.write_text("hello")
    for number, path in enumerate(["/dev/null", str(text), "/nonexistent"]):
        assert files.add(FileKey("0:0", number, path), lambda path=path: os.open(path, os.O_RDONLY)) is None
    assert files.why_refused("/dev/null") == files.why_refused(str(text)) == "no ELF file that can be read"
    assert files.why_refused("/nonexistent") == "the file cannot be opened"
    executable = os.open(sys.executable, os.O_RDONLY)
    assert files.add(FileKey("0:0", 3, "/nonexistent"), lambda: executable) is not None
    assert "opened" not in files.why_refused("/nonexistent")
    files.close()


def test_files_of_no_use_are_remembered_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target may make and map them without end."""
    monkeypatch.setattr(files_module, "MAX_USELESS", 10)
    text = tmp_path / "text"
    text.write_text("hello")
    files = FileStore(limit=1)
    opened = 0

    def open_text() -> int:
        nonlocal opened
        opened += 1
        return os.open(text, os.O_RDONLY)

    for _ in range(2):
        for number in range(20):
            assert files.add(FileKey("0:0", number, f"/{number}"), open_text) is None
    assert opened == 20 + 9
    files.close()


def test_debug_info_that_is_no_elf_file_is_not_handed_over(tmp_path: Path) -> None:
    """The name is the target's, and the directory may be the host's: "shadow", mapped from /etc."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/shadow").write_text("root:secret")
    link = b"shadow\0\0" + struct.pack("<I", 0)
    headers = ElfHeaders(3, (), (Section(".gnu_debuglink", 1, 0, 0, len(link)),), b"build id")
    stored = StoredFile(0, "/etc/a.so", memory_file("linked", link), headers)
    root = os.open(tmp_path, os.O_PATH)
    assert not list(debugfiles.debug_files(stored, [root]))
    assert not list(debugfiles.supplements("/usr/lib/debug/a", "/etc/shadow", "00" * 20, [root]))
    os.close(stored.fd)
    os.close(root)


def test_a_debug_link_that_cannot_be_read_is_none() -> None:
    """Reading a target's file may fail at any place: a bad disk, a server that forgot it."""
    headers = ElfHeaders(3, (), (Section(".gnu_debuglink", 1, 0, 0, 16),), None)
    directory = os.open("/", os.O_RDONLY)
    assert not list(debugfiles.debug_files(StoredFile(0, "/a.so", directory, headers), [directory]))
    os.close(directory)
