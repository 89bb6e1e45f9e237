# SPDX-License-Identifier: Apache-2.0
"""The readers of ELF files and of glibc's descriptions, against files and memory that lie."""

from __future__ import annotations

import random
import re
import struct
import tempfile
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.model import Vma
from ebpftrace.nptl.lists import SYMBOLS, Lists, lists_of_image
from ebpftrace.nptl.struct_pthread import Format
from ebpftrace.nptl.symbols import Image, Segment, file_mappings, is_fixed, read_image
from ebpftrace.vmas import Vmas

NAMES = frozenset({"malloc", "getpid", "no_such_symbol"})


def _libc() -> Path:
    for line in Path("/proc/self/maps").read_text().splitlines():
        match = re.search(r"/\S*/libc[.-]\S*$", line)
        if match:
            return Path(match[0])
    pytest.skip("this Python has no libc mapped")


def _read(content: bytes, names: frozenset[str] = NAMES) -> Optional[Image]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        with Path(file.name).open("rb") as stream:
            return read_image(stream, names)


def test_symbols_of_a_real_library() -> None:
    image = _read(_libc().read_bytes())
    assert image is not None
    assert set(image.symbols) == {"malloc", "getpid"}
    (code,) = (vma for vma in _own_mappings() if vma.path == str(_libc()) and "x" in vma.perms)
    bias = image.bias(code)
    assert bias is not None
    assert code.start <= bias + image.symbols["malloc"] < code.end


SEGMENTS = st.builds(Segment, *[st.integers(0, (1 << 64) - 1)] * 3, st.booleans())
IMAGES = st.builds(
    Image,
    st.sampled_from("<>"),
    st.lists(SEGMENTS).map(tuple),
    st.dictionaries(st.text(), st.integers()),
    st.booleans(),
)


@given(IMAGES)
def test_an_image_is_kept_as_it_is(image: Image) -> None:
    assert Image.from_bytes(image.to_bytes()) == image


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"3", b'["<", [[]], {}]', b'["<", [], [1]]', b"[1, 2]"])
def test_anything_else_is_no_image(raw: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        Image.from_bytes(raw)


@pytest.mark.parametrize("start", [b"\x7fELF\2\1", b"\x7fELF\2\2", b"\x7fELG\2\1", b"#!", b""])
@pytest.mark.parametrize("kind", [b"\2\0", b"\0\2", b"\3\0", b"\2"])
def test_a_program_that_is_loaded_where_it_was_linked_to_be(
    tmp_path: Path, start: bytes, kind: bytes
) -> None:
    header = start.ljust(16, b"\0") + kind
    (tmp_path / "program").write_bytes(header if len(kind) == 1 else header.ljust(64, b"\0"))
    fixed = {(b"\x7fELF\2\1", b"\2\0"), (b"\x7fELF\2\2", b"\0\2")}
    with (tmp_path / "program").open("rb") as file:
        assert is_fixed(file) == ((start, kind) in fixed)


def _own_mappings() -> list[Vma]:
    vmas = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        area, perms, offset, device, inode, *path = line.split()
        start, end = (int(part, 16) for part in area.split("-"))
        vmas.append(Vma(start, end, perms, int(offset, 16), device, int(inode), *path[:1] or [""]))
    return vmas


def test_each_file_once_and_by_its_code() -> None:
    files = file_mappings(Vmas(_own_mappings()))
    assert len({(vma.device, vma.inode) for vma in files}) == len(files)
    assert all("x" in vma.perms for vma in files)
    assert str(_libc()) in {vma.path for vma in files}


@given(seed=st.integers(0, 2**32), hits=st.integers(1, 12), cut=st.booleans())
@settings(max_examples=150)
def test_damaged_files_never_raise(seed: int, hits: int, cut: bool) -> None:
    choices = random.Random(seed)
    content = bytearray(_libc().read_bytes())
    headers = struct.unpack_from("<Q", content, 40)[0]
    # Damage where it matters: the ELF header, program headers, section headers, and the tables they name.
    places = [(0, 64), (0, 64), (64, 800), (headers, len(content)), (0, len(content))]
    for _ in range(hits):
        low, high = choices.choice(places)
        at = choices.randrange(low, max(low + 1, high - 8))
        value = choices.choice([0, 1, 0xFF, 0xFFFF, 2**31, 2**63, 2**64 - 1, choices.getrandbits(64)])
        width = choices.choice([1, 2, 4, 8])
        content[at : at + width] = struct.pack("<Q", value)[:width]
    if cut:
        del content[choices.randrange(len(content)) :]
    image = _read(bytes(content))
    assert image is None or set(image.symbols) <= NAMES


@given(content=st.binary(max_size=400))
def test_anything_is_no_elf_file_or_an_empty_one(content: bytes) -> None:
    image = _read(b"\x7fELF\x02\x01\x01" + content)
    assert image is None or not image.symbols


def test_a_sparse_giant_is_not_read_whole() -> None:
    header = bytearray(_libc().read_bytes()[:64])
    struct.pack_into("<Q", header, 40, 1 << 20)
    with tempfile.NamedTemporaryFile() as file:
        file.write(header)
        file.truncate(1 << 40)
        file.flush()
        with Path(file.name).open("rb") as stream:
            image = read_image(stream, NAMES)
    assert image is None or not image.symbols


class Anything:
    """Memory in which every word is one of a few."""

    def __init__(self, words: list[int]) -> None:
        self.words = words

    def read(self, address: int, size: int) -> bytes:
        if address >= 1 << 47 or address < 4096:
            raise OSError
        values = [self.words[(address // 4 + at) % len(self.words)] for at in range(size // 4 + 1)]
        return struct.pack(f"<{len(values)}I", *values)[:size]


VERSION = int.from_bytes(b"2.36", "little")


@given(
    words=st.lists(st.one_of(st.integers(0, 2500), st.just(VERSION), st.integers(0, 2**32 - 1)), min_size=3),
    places=st.lists(st.integers(0, 1 << 20), min_size=len(SYMBOLS), max_size=len(SYMBOLS)),
    version=st.sampled_from([b"2.31\0\0\0\0", b"2.36\0\0\0\0", b"2.43.900", b"9.999\0\0\0"]),
)
@settings(max_examples=500)
def test_descriptions_that_lie_are_refused_or_make_a_sound_format(
    words: list[int], places: list[int], version: bytes
) -> None:
    image = Image("<", (Segment(0, 0, 1 << 30),), {name: place + 1 for name, place in zip(SYMBOLS, places)})
    memory = _Versioned(words, version)
    vma = Vma(1 << 30, 1 << 31, "r-xp", 0, "08:01", 7, "/lib/libc.so.6")
    found = lists_of_image(image, vma, memory, False)
    if isinstance(found, Lists):
        form = Format(found, None)
        form.unpack(1 << 20, bytes(form.size))


class _Versioned(Anything):
    def __init__(self, words: list[int], version: bytes) -> None:
        super().__init__(words)
        self.version = version

    def read(self, address: int, size: int) -> bytes:
        # Only the version is read in eights at a place of its own; pointers may be it too.
        return self.version if size == 8 else super().read(address, size)


def test_true_descriptions_are_understood() -> None:
    offsets = {
        "pthread_list": 704, "pthread_tid": 720, "pthread_cancelhandling": 776,
        "list_t_next": 0, "list_t_prev": 8,
        "pthread_schedparam_sched_priority": 1584, "pthread_start_routine": 1592, "pthread_nextevent": 1632,
        "rtld_global__dl_stack_used": 4192, "rtld_global__dl_stack_user": 4208,
    }  # fmt: skip
    memory = bytearray(4096)
    symbols = {}
    for index, (name, offset) in enumerate(offsets.items()):
        symbols[f"_thread_db_{name}"] = 16 * (index + 1)
        struct.pack_into("<3I", memory, 16 * (index + 1), 64, 1, offset)
    symbols.update({"__nptl_version": 1024, "__nptl_rtld_global": 1040, "_thread_db_sizeof_pthread": 1056})
    memory[1024:1029] = b"2.36\0"
    struct.pack_into("<Q", memory, 1040, 0x7F0000000000)
    struct.pack_into("<I", memory, 1056, 2368)

    class Flat:
        def read(self, address: int, size: int) -> bytes:
            return bytes(memory[address - 0x10000 :][:size])

    vma = Vma(0x10000, 0x11000, "r-xp", 0, "08:01", 7, "/lib/libc.so.6")
    found = lists_of_image(Image("<", (Segment(0, 0, 4096),), symbols), vma, Flat(), False)
    assert isinstance(found, Lists)
    assert found.version == (2, 36)
    assert (found.used, found.user, found.cache, found.cache_size) == tuple(
        0x7F0000000000 + offset for offset in (4192, 4208, 4224, 4240)
    )
