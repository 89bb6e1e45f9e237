# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ebpftrace.errors import CannotTrace
from ebpftrace.report import output

REPOSITORY = Path(output.__file__).parents[2]


def in_child(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", f"from ebpftrace.report import output\n{code}"],
        capture_output=options.pop("capture_output", True),
        text=True,
        cwd=REPOSITORY,
        **options,
    )


def test_new_file_follows_the_umask(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    before = os.umask(0o027)
    try:
        output.check_writable(str(place))
        assert list(tmp_path.iterdir()) == []
        output.write(str(place), "done\n")
    finally:
        os.umask(before)
    assert place.read_text() == "done\n"
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [place]


def test_existing_file_keeps_its_mode_and_its_readers(tmp_path: Path) -> None:
    place = tmp_path / "report.txt"
    place.write_text("old")
    place.chmod(0o604)
    with place.open() as reader:
        output.check_writable(str(place))
        assert place.read_text() == "old"
        output.write(str(place), "new")
        assert reader.read() == "old"
    assert place.read_text() == "new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o604


def test_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = tmp_path / "real" / "file"
    real.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)
    output.write(str(link), "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert not real.is_symlink()


def test_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    place.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(CannotTrace, match=r"cannot write .*too large"):
            output.write(str(place), "x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


def test_growing_file_has_all_so_far_whatever_happens_to_its_name(tmp_path: Path) -> None:
    place, moved = tmp_path / "reports.json", tmp_path / "moved"
    with output.Growing(str(place)) as file:
        file.add(["one ", "and "])
        with place.open() as reader:
            file.add("two, ")
            assert reader.read() == "one and "
        assert place.read_text() == "one and two, "
        place.replace(moved)
        place.write_text("somebody else's")
        file.add("three")
    assert (place.read_text(), moved.read_text()) == ("one and two, three", "one and two, ")
    assert sorted(tmp_path.iterdir()) == [moved, place]


@pytest.mark.parametrize("path", ["/nowhere/at/all/report.json", "/proc/report.json", "/tmp", ""])
def test_places_that_cannot_be_written(path: str) -> None:
    with pytest.raises(CannotTrace, match=r"^cannot write "):
        output.check_writable(path)
    with pytest.raises(CannotTrace, match=r"^cannot write "):
        output.write(path, "text")


def test_error_is_one_line_whatever_the_name() -> None:
    with pytest.raises(CannotTrace) as caught:
        output.check_writable("/nowhere/\x1b[2J\nname")
    assert str(caught.value).isprintable()


def test_device_that_is_full(tmp_path: Path) -> None:
    output.check_writable("/dev/full")
    with pytest.raises(CannotTrace, match="no space left"):
        output.write("/dev/full", "text")
    output.write("/dev/null", "text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert list(tmp_path.iterdir()) == []


def test_fifo_is_written_straight(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    output.check_writable(str(fifo))
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    output.write(str(fifo), "through the pipe")
    reader.join(timeout=30)
    assert got == ["through the pipe"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_keeps_what_it_has(path: str, tmp_path: Path) -> None:
    piped = in_child(f"output.check_writable({path!r}); output.write({path!r}, 'text')")
    assert piped.stdout == "text"
    twice = in_child(f"file = output.Growing({path!r}); file.add('one '); file.add('two')")
    assert twice.stdout == "one two"
    redirected = tmp_path / "redirected"
    with redirected.open("w") as target:
        target.write("before ")
        target.flush()
        in_child(f"output.write({path!r}, 'text')", stdout=target, capture_output=False, check=True)
    assert redirected.read_text() == "before text"


def test_closed_standard_output_is_reported_before_the_trace() -> None:
    script = (
        'exec >&-; exec "$0" -c \'from ebpftrace.report import output; output.check_writable("/dev/stdout")\''
    )
    ended = subprocess.run(
        ["sh", "-c", script, sys.executable], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
    )
    assert "CannotTrace: cannot write /dev/stdout: bad file descriptor" in ended.stderr


def test_stream_with_a_poor_encoding() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = in_child(r"import sys; output.write_stream(sys.stdout, 'caf\xe9 \u6f22\n')", env=environment)
    assert ended.stdout == "caf\\xe9 \\u6f22\n"
    assert ended.stderr == ""


@pytest.mark.parametrize(("name", "missing"), [("gone/report", "gone"), ("gone/too/report", "gone")])
def test_a_missing_directory_is_named(tmp_path: Path, name: str, missing: str) -> None:
    with pytest.raises(CannotTrace) as refused:
        output.check_writable(str(tmp_path / name))
    assert refused.value.what.endswith(f": there is no directory {tmp_path / missing}")
    assert refused.value.remedy == "make it, or choose another file"
