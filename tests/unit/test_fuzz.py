# SPDX-License-Identifier: Apache-2.0
"""The fuzzer does not rot: each reader gets its sound inputs, and damaged ones that are always the same."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpftrace.capture.btf import Btf
from ebpftrace.errors import CannotTrace
from ebpftrace.unwind import wire
from ebpftrace.unwind.engine import Engine, _DiedError
from fuzz.reader import Reader, TooSlow, examine
from fuzz.readers import READERS
from fuzz.records import READERS as OF_RECORDS

_DAMAGE = st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8))


@pytest.mark.parametrize("name", READERS)
def test_sound_inputs_are_accepted(name: str) -> None:
    reader = READERS[name]
    accepted = [examine(reader, seed) for seed in reader.seeds()]
    assert any(accepted)


@pytest.mark.parametrize("name", READERS)
@given(choice=st.integers(0, 100), damages=st.lists(_DAMAGE, max_size=6), cut=st.floats(0, 1) | st.just(1.0))
@settings(max_examples=25, derandomize=True, database=None)
def test_damaged_inputs_end_as_the_reader_says(
    name: str, choice: int, damages: list[tuple[float, bytes]], cut: float
) -> None:
    reader = READERS[name]
    seeds = reader.seeds()
    content = bytearray(seeds[choice % len(seeds)])
    for place, damage in damages:
        at = int(place * len(content))
        content[at : at + len(damage)] = damage
    examine(reader, bytes(content[: int(cut * len(content))]))


def test_what_a_reader_must_not_do_is_seen() -> None:
    def endless(_: bytes) -> object:
        while True:
            with suppress(Exception):
                sum(range(1000))

    def refuses(data: bytes) -> object:
        raise KeyError(data)

    with pytest.raises(TooSlow):
        examine(Reader("endless", endless, list), b"")
    with pytest.raises(KeyError):
        examine(Reader("refuses", refuses, list), b"")
    assert not examine(Reader("may refuse", refuses, list, (KeyError,)), b"")


def test_a_worker_that_was_taken_over_is_not_believed() -> None:
    answers = READERS["worker-answers"]
    infinite = (
        b'{"pcs": [[Infinity, true]], "end": "outermost", "slots": [], "guessed": 0, "lacking": 0,'
        b' "stopped_at": null}'
    )
    nameless = rb'{"supplement": ["\ud800", "\ud800"]}'
    for text in (infinite, nameless):
        assert not examine(answers, struct.pack("<II", len(text), 0) + text)


def test_a_worker_cannot_fill_our_table_of_descriptors() -> None:
    ours, workers = socket.socketpair()
    with ours, workers:
        wire.send(workers, {}, fd=workers.fileno())
        with pytest.raises(_DiedError):
            Engine()._exchange(ours, None, b"", None, 60)
        # Not the number of all: what other tests left may be closed meanwhile.
        assert same_sockets(workers) == 1


def same_sockets(sock: socket.socket) -> int:
    """How many of our descriptors are this socket."""
    descriptors = Path("/proc/self/fd")
    wanted = (descriptors / str(sock.fileno())).readlink()
    found = 0
    for place in descriptors.iterdir():
        with suppress(OSError):
            found += place.readlink() == wanted
    return found


def test_type_information_cut_anywhere_is_one_line() -> None:
    (whole,) = next(reader for reader in OF_RECORDS if reader.name == "btf").seeds()
    assert Btf(whole).member_offset("task_struct", "exit_code") == 4
    for size in range(len(whole)):
        with pytest.raises(CannotTrace):
            Btf(whole[:size])
    # A structure that says it has more members than there are types' bytes.
    many = bytearray(whole)
    struct.pack_into("<I", many, 24 + 16 + 4, 4 << 24 | 0xFFFF)
    with pytest.raises(CannotTrace):
        Btf(bytes(many)).member_offset("task_struct", "exit_code")
