"""Where output is kept: in memory and in files without names, up to a quota that a session's commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sandbox.commands.spill import PENDING_BYTES, Quota, Spill
from sandbox.commands.transcript import STDERR, STDOUT
from sandbox.kernel.files import open_nameless
from sandbox.protocol.commands import FRAME_HEADER
from tests.transfers.test_transfers_upload_ends import files_limited_to

MIB = 1024 * 1024


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(os.listdir("/proc/self/fd"))
    yield tmp_path / "output"
    assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is left"
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").iterdir()), "a file is left"


def keep_all(_wanted: int) -> None:
    """Give nothing up."""


def new_spill(folder: Path, *, quota: Quota | None = None, threads: trio.CapacityLimiter | None = None) -> Spill:
    return Spill(100, str(folder), quota or Quota(MIB, keep_all), threads or trio.CapacityLimiter(1))


async def say(spill: Spill, data: bytes, stream: int = STDOUT) -> None:
    """Say it in pieces as large as a pipe's, as a command's task does."""
    for begin in range(0, len(data), 65536):
        spill.add(stream, data[begin : begin + 65536])
        if spill.due:
            await spill.settle()


async def test_little_output_needs_no_file(folder: Path) -> None:
    spill = new_spill(folder)
    await say(spill, b"hello")
    page = await spill.read("stdout", 1, 3)
    assert (page.data, page.cursor, page.next_cursor, page.end) == (b"ell", 1, 4, 5)
    spill.finish()
    await spill.tuck_away()
    assert not folder.exists()


async def test_every_byte_can_be_paged_from_memory_and_file(folder: Path) -> None:
    data = bytes(i * 7 % 256 for i in range(PENDING_BYTES * 3 + 12345))
    spill = new_spill(folder)
    await say(spill, data)
    await say(spill, b"and more", STDERR)
    found, cursor = b"", 0
    while (page := await spill.read("stdout", cursor, 50_000)).data:
        found, cursor = found + page.data, page.next_cursor
    assert found == data
    assert (await spill.read("both", len(data), 100)).data == b"and more"
    spill.close()


async def test_without_its_file_a_reader_gets_what_is_in_memory_and_the_count_of_what_is_not(folder: Path) -> None:
    spill = new_spill(folder)
    spill.add(STDOUT, b"in the file, ")
    spill.add(STDERR, b"this too, ")
    await spill.settle()
    for stream, data in ((STDOUT, b"out "), (STDERR, b"bad "), (STDOUT, b"end")):
        spill.add(stream, data)
    spill.close()
    page = spill.read_newest("stdout", 2, 100)
    assert (page.data, page.cursor, page.evicted_bytes, page.end) == (b"out end", 13, 11, 20)
    page = spill.read_newest("both", 23 + 5, 5)
    assert (page.data, page.cursor, page.evicted_bytes, page.next_cursor) == (b"ad en", 28, 0, 33)
    assert spill.read_newest("stderr", 99, 5).data == b""
    spill.give_up()
    page = spill.read_newest("both", 0, 100)
    assert (page.data, page.cursor, page.evicted_bytes) == (b"", 34, 34)


async def test_a_full_quota_drops_with_exact_counts(folder: Path) -> None:
    quota = Quota(MIB, keep_all)
    spill = new_spill(folder, quota=quota)
    await say(spill, b"x" * (3 * MIB))
    kept = spill.total("stdout")
    assert MIB - kept < 64 * FRAME_HEADER.size
    assert spill.dropped("stdout") == 3 * MIB - kept
    assert spill.stdout.total_bytes == 3 * MIB
    assert quota.used_bytes <= MIB
    page = await spill.read("stdout", kept - 5, 100)
    assert (page.data, page.dropped_bytes) == (b"xxxxx", 3 * MIB - kept)
    spill.give_up()
    assert quota.used_bytes == 0


async def test_what_was_given_up_says_so(folder: Path) -> None:
    spill = new_spill(folder)
    await say(spill, b"y" * 400_000)
    spill.finish()
    spill.give_up()
    page = await spill.read("stdout", 100, 50)
    assert (page.data, page.cursor, page.evicted_bytes, page.end) == (b"", 400_000, 399_900, 400_000)


async def test_a_disk_that_fails_is_treated_as_full(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    spill = new_spill(tmp_path / "file")
    await say(spill, b"x" * (4 * PENDING_BYTES))
    assert spill.broken
    assert spill.total("stdout") + spill.dropped("stdout") == 4 * PENDING_BYTES
    assert (await spill.read("stdout", 0, 10)).data == b"x" * 10


async def test_what_a_failing_disk_did_not_take_is_not_said_to_have_been_searched(folder: Path) -> None:
    spill = new_spill(folder)
    await say(spill, b"x" * 10)
    with files_limited_to(0), pytest.raises(OSError, match="File too large"):
        await spill.open_log("stdout", 0)
    with pytest.raises(OSError, match="File too large"):  # the disk takes it now, and does not get it
        await spill.open_log("stdout", 0)
    spill.close()


async def test_waiting_for_more_ends_with_more_and_with_the_end(folder: Path) -> None:
    spill = new_spill(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spill.wait_more, "stdout", 0)
        await trio.testing.wait_all_tasks_blocked()
        spill.add(STDOUT, b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(spill.wait_more, "stdout", 1)
        nursery.start_soon(spill.wait_said, 1)
        await trio.testing.wait_all_tasks_blocked()
        spill.finish()


async def test_readers_and_the_writer_do_not_disturb_each_other(folder: Path) -> None:
    spill = new_spill(folder)
    data = bytes(i * 11 % 256 for i in range(900_000))

    async def read_all() -> None:
        found = b""
        while len(found) < len(data):
            await spill.wait_more("stdout", len(found))
            found += (await spill.read("stdout", len(found), 30_000)).data
        assert found == data

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(read_all)
        await say(spill, data)
    spill.close()


def test_the_files_have_no_name_and_are_private(tmp_path: Path) -> None:
    fd = open_nameless(str(tmp_path / "a" / "b"))
    try:
        assert os.listdir(tmp_path / "a" / "b") == []
        assert os.fstat(fd).st_nlink == 0
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
