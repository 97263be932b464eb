"""What a thread does on one descriptor of a transfer: each byte of a span and none beside it."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.descriptors import open_descriptors
from tests.support.door import needs_root
from transfers.disk import (
    BURST_BUFFER_BYTES,
    Burst,
    Full,
    Pin,
    Stop,
    hash_rest,
    identify,
    read_chunk,
    send_burst,
    write_chunk,
)
from transfers.download_state import Answer, Download, HashRest, Identity, Read
from transfers.refusals import UnsizedSource
from transfers.upload_state import Upload, Write

MIB = 1024 * 1024
SIZE_BYTES = 3 * BURST_BUFFER_BYTES + 5
CONTENT = os.urandom(SIZE_BYTES)
ANYWHERE = st.integers(0, SIZE_BYTES)
in_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def content(folder: Path, data: bytes = CONTENT) -> Iterator[int]:
    """A file with these bytes, open."""
    (folder / "f").write_bytes(data)
    with opened(folder / "f") as fd:
        yield fd


@contextmanager
def narrow_pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that takes so much as pipes do, and then does not block."""
    taking, giving = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield taking, giving
    finally:
        os.close(giving)
        os.close(taking)


# --- who closes


def test_a_closed_descriptor_is_given_to_nobody_although_its_number_is_another_files(tmp_path: Path) -> None:
    before = open_descriptors()
    pin = Pin(os.open(tmp_path, os.O_RDONLY | os.O_CLOEXEC))
    with pin.use() as number:
        pin.close()
        assert open_descriptors() != before, "while it is used it stays open"
    assert open_descriptors() == before
    with opened(tmp_path / "other", os.O_WRONLY | os.O_CREAT) as other:
        assert other == number
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught, pin.use():
            pytest.fail("it was given out")
        assert caught.value.errno == errno.EBADF
        pin.close()
        assert os.fstat(other).st_size == 0, "and closing once more closes nothing"


# --- what is sent


@in_one_folder
@given(ANYWHERE, ANYWHERE)
@example(0, SIZE_BYTES)
@example(5, BURST_BUFFER_BYTES + 10)  # the second round is for less than its buffer holds
def test_a_burst_is_the_bytes_of_its_span_and_no_others(tmp_path: Path, one: int, other: int) -> None:
    start, stop = sorted((one, other))
    with content(tmp_path) as fd, opened(tmp_path / "sent", os.O_RDWR | os.O_CREAT | os.O_TRUNC) as sent:
        assert send_burst(fd, (start, stop), identify(fd, "f"), sent) == Burst(stop, Stop.DONE)
        assert (tmp_path / "sent").read_bytes() == CONTENT[start:stop]


def test_a_burst_to_who_takes_no_more_ends_where_the_next_one_goes_on(tmp_path: Path) -> None:
    with content(tmp_path) as fd, narrow_pipe() as (taking, giving):
        known, got = identify(fd, "f"), b""
        burst = Burst(0, Stop.FULL)
        while burst.stop is Stop.FULL:
            burst = send_burst(fd, (burst.offset, SIZE_BYTES), known, giving)
            got += os.read(taking, SIZE_BYTES)
            assert len(got) == burst.offset
        assert (burst, got) == (Burst(SIZE_BYTES, Stop.DONE), CONTENT)


def test_a_burst_to_who_is_gone_says_so_and_how_far_it_came(tmp_path: Path) -> None:
    with content(tmp_path) as fd, narrow_pipe() as (taking, giving):
        os.close(taking)
        assert send_burst(fd, (7, SIZE_BYTES), identify(fd, "f"), giving) == Burst(7, Stop.GONE)
        os.dup2(giving, taking)  # for who closes both


def test_nothing_is_sent_of_another_file_than_was_known(tmp_path: Path) -> None:
    with content(tmp_path) as fd, opened(tmp_path / "sent", os.O_RDWR | os.O_CREAT) as sent:
        known = identify(fd, "f")
        with (tmp_path / "f").open("ab") as more:
            more.write(b"!")
        assert send_burst(fd, (0, SIZE_BYTES), known, sent) == Burst(0, Stop.CHANGED)
        assert os.fstat(sent).st_size == 0


def test_a_burst_beyond_the_end_of_the_file_ends_there(tmp_path: Path) -> None:
    with content(tmp_path) as fd, opened(tmp_path / "sent", os.O_RDWR | os.O_CREAT) as sent:
        burst = send_burst(fd, (0, SIZE_BYTES + 1), identify(fd, "f"), sent)
        assert burst == Burst(SIZE_BYTES, Stop.CHANGED)


# --- what is read and hashed


@in_one_folder
@given(ANYWHERE, st.integers(1, SIZE_BYTES))
@example(0, SIZE_BYTES)
def test_a_chunk_is_the_bytes_at_its_offset(tmp_path: Path, offset: int, length: int) -> None:
    with content(tmp_path) as fd:
        step = Download(identify(fd, "f")).ask(offset, length)
        assert isinstance(step, Read)
        data, outcome = read_chunk(fd, step)
        assert data == CONTENT[offset : offset + length]
        assert (outcome.length, outcome.identity) == (len(data), identify(fd, "f"))


def test_a_chunk_that_begins_in_what_was_hashed_is_hashed_from_there(tmp_path: Path) -> None:
    with content(tmp_path, CONTENT[:100]) as fd:
        download = Download(identify(fd, "f"))
        for offset, length in ((0, 60), (40, 60)):
            step = download.ask(offset, length)
            assert isinstance(step, Read)
            _, outcome = read_chunk(fd, step)
            verdict = download.got(step, outcome)
        assert verdict == Answer(sha256=hashlib.sha256(CONTENT[:100]).hexdigest())


def test_each_piece_of_the_rest_is_hashed_and_nothing_behind_it(tmp_path: Path) -> None:
    data = os.urandom(4 * MIB)
    with content(tmp_path, data) as fd:
        download = Download(identify(fd, "f"), piece_bytes=3 * MIB // 2)
        step = download.rest()
        while isinstance(step, HashRest):
            outcome = hash_rest(fd, step)
            assert outcome.length == step.length
            assert outcome.digest.hexdigest() == hashlib.sha256(data[: step.hash_from + step.length]).hexdigest()
            verdict = download.hashed(step, outcome)
            assert isinstance(verdict, HashRest | Answer)
            step = verdict
        assert step == Answer(sha256=hashlib.sha256(data).hexdigest())


def test_what_is_gone_of_a_file_is_told_by_the_length(tmp_path: Path) -> None:
    with content(tmp_path) as fd:
        download = Download(identify(fd, "f"))
        rest, step = download.rest(), download.ask(0, SIZE_BYTES)
        assert isinstance(rest, HashRest)
        assert isinstance(step, Read)
        os.truncate(tmp_path / "f", 5)
        assert hash_rest(fd, rest).length == 5
        data, outcome = read_chunk(fd, step)
        assert (data, outcome.length) == (CONTENT[:5], 5)


MANY_MAPPINGS = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    page = mmap.ALLOCATIONGRANULARITY
    kept = [mmap.mmap(file.fileno(), page, prot=mmap.PROT_READ, offset=2 * number * page) for number in range(100)]
input()
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def facts_of(program: str, argv: Sequence[str | Path], name: str) -> Iterator[Path]:
    """A file of /proc about a process that answered one line, and waits for another."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # With a directory of its own it is forked: posix_spawn takes no empty name from Python 3.13 on.
    with subprocess.Popen(argv, executable=program, cwd="/", **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"echo\n")
        process.stdin.flush()
        process.stdout.readline()
        yield Path(f"/proc/{process.pid}/{name}")
        process.communicate()


def test_a_chunk_of_which_little_is_read_at_a_time_is_read_to_its_end_and_no_further(tmp_path: Path) -> None:
    """The kernel gives a page of the mappings of a process at most, as a network file system may of any file."""
    with (tmp_path / "f").open("wb") as mapped:
        mapped.truncate(200 * mmap.ALLOCATIONGRANULARITY)
    argv = [sys.executable, "-I", "-c", MANY_MAPPINGS, tmp_path / "f"]
    with facts_of(sys.executable, argv, "maps") as path, opened(path) as fd:
        text = path.read_bytes()
        offset, length = 10, 7000
        assert len(os.pread(fd, length, offset)) < length < len(text) - offset
        step = Download(Identity(size_bytes=len(text), mtime_ns=0, ino=0, dev=0)).ask(offset, length)
        assert isinstance(step, Read)
        data, outcome = read_chunk(fd, step)
        assert data == text[offset : offset + length]
        assert outcome.length == length


def test_a_kernel_file_of_one_byte_is_not_taken_for_an_empty_one() -> None:
    """The command line of a process whose only argument is empty."""
    with facts_of("/bin/sh", [""], "cmdline") as path, opened(path) as fd:
        assert path.read_bytes() == b"\0"
        with pytest.raises(UnsizedSource):
            identify(fd, "f")


# --- what is written


def chunk(upload: Upload, data: bytes) -> Write:
    step = upload.offer(upload.received_bytes, data, is_last=False)
    assert isinstance(step, Write)
    return step


def free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Sixteen pages that nobody else writes to."""
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as folder:
        yield folder


@needs_root
def test_a_chunk_fits_if_the_reserve_is_still_free_behind_it(disk: Path) -> None:
    free = free_bytes(disk)
    with opened(disk / "f", os.O_RDWR | os.O_CREAT) as fd:
        step = chunk(Upload(max_bytes=MIB), b"x" * 8192)
        with pytest.raises(Full) as caught:
            write_chunk(fd, step, free - 8191)
        assert (caught.value.needed_bytes, caught.value.free_bytes) == (8192, free)
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value) == str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        assert os.fstat(fd).st_size == 0
        assert write_chunk(fd, step, free - 8192).hexdigest() == hashlib.sha256(b"x" * 8192).hexdigest()
        assert (disk / "f").read_bytes() == b"x" * 8192


@needs_root
def test_what_is_written_of_a_chunk_before_the_disk_is_full_is_cut_off_again(disk: Path) -> None:
    """As when others take the room after the look: a reserve below nothing lets any chunk pass that."""
    upload = Upload(max_bytes=MIB)
    with opened(disk / "f", os.O_RDWR | os.O_CREAT) as fd:
        first = chunk(upload, b"x" * 4096)
        upload.wrote(first, write_chunk(fd, first, 0))
        with pytest.raises(Full) as caught:
            write_chunk(fd, chunk(upload, b"y" * (MIB // 2)), -MIB)
        assert (caught.value.needed_bytes, caught.value.free_bytes) == (MIB // 2, free_bytes(disk))
        assert (disk / "f").read_bytes() == b"x" * 4096
