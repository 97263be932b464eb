"""A file as the source of a stream: read ahead, in parts, in any order; and the same file all the time."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.descriptors import open_descriptors
from tests.transfers.test_transfers_uploads import World, open_world
from transfers.download_state import HASH_PIECE_BYTES
from transfers.filestreams import FileSink, FileSource, ReadAhead, open_file_source
from transfers.refusals import OffsetBeyondEnd, SourceChanged, SourceUnreadable, TransferNotFound, UnsizedSource
from transfers.streams import PIECE_BYTES
from transfers.upload import Cause

CONTENT = bytes(range(256)) * 8
T = TypeVar("T")


@asynccontextmanager
async def open_source(path: Path) -> AsyncIterator[FileSource]:
    before = open_descriptors()
    source = await open_file_source(str(path), os.open(path, os.O_RDONLY | os.O_CLOEXEC), trio.CapacityLimiter(2))
    try:
        yield source
    finally:
        source.close()
    assert open_descriptors() == before


async def read(source: FileSource, start: int, stop: int | None) -> bytes:
    """What a client gets who takes it all."""
    got = b""
    async with source.pieces(start, stop) as pieces:
        while piece := await pieces.next():
            source.sent(start + len(got), len(piece))
            got += piece
    return got


async def take_all(pieces: ReadAhead) -> None:
    while await pieces.next():
        pass


@given(st.lists(st.tuples(st.integers(0, 2047), st.integers(1, 2048)), min_size=1, max_size=5))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_in_any_order_are_the_file_and_its_digest(tmp_path: Path, asked: list[tuple[int, int]]) -> None:
    (tmp_path / "f").write_bytes(CONTENT)

    async def check() -> None:
        async with open_source(tmp_path / "f") as source:
            for start, length in asked:
                stop = min(len(CONTENT), start + length)
                assert await read(source, start, stop) == CONTENT[start:stop]
                assert (await source.settle()) == (source.sent_bytes == len(CONTENT))
            missing = source.next_offset
            assert await read(source, missing, None) == CONTENT[missing:]
            await read(source, 0, None)
            assert await source.settle()
            assert source.sent_bytes == len(CONTENT)
            assert source.sha256 == hashlib.sha256(CONTENT).hexdigest()

    trio.run(check)


async def test_what_is_not_taken_is_not_read_far_ahead(tmp_path: Path) -> None:
    """Three pieces are in memory: the one that is used, the one that waits, the one that was read behind it."""
    path = tmp_path / "f"
    with path.open("wb") as sparse:
        sparse.truncate(1 << 30)
    async with open_source(path) as source, source.pieces(0, None) as pieces:
        await pieces.next()
        await trio.testing.wait_all_tasks_blocked()
        hashed = source._download._hashed_bytes
        assert hashed <= 3 * PIECE_BYTES


async def test_a_changed_file_ends_the_stream_before_its_last_byte(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(6 * PIECE_BYTES))
    async with open_source(path) as source:
        async with source.pieces(0, None) as pieces:
            got = len(await pieces.next())
            with path.open("ab") as more:
                more.write(b"!")
            with pytest.raises(SourceChanged):
                await take_all(pieces)
        assert got < 6 * PIECE_BYTES
        with pytest.raises(SourceChanged):
            await source.read(0, 1)


async def test_leaving_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    async with open_source(path) as source:
        async with source.pieces(0, None) as pieces:
            await pieces.next()
        assert not await source.settle()


async def test_a_kernel_file_has_no_size_to_promise() -> None:
    before = open_descriptors()
    with pytest.raises(UnsizedSource):
        await open_file_source("/proc/version", os.open("/proc/version", os.O_RDONLY), trio.CapacityLimiter(1))
    assert open_descriptors() == before


async def test_a_file_that_went_out_is_complete_without_a_hash_that_takes_too_long(
    tmp_path: Path, autojump_clock: object
) -> None:
    """In this clock the time is over as soon as a thread is waited for."""
    path, size_bytes = tmp_path / "file", 3 * HASH_PIECE_BYTES
    with path.open("wb") as sparse:
        sparse.truncate(size_bytes)
    async with open_source(path) as source:
        source.sent(0, size_bytes)
        assert (await source.settle(), source.sha256) == (True, None)


class Sending:
    """A socket of this process, which others write to without waiting."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    async def burst(self, write: Callable[[int], T], limiter: trio.CapacityLimiter) -> T:
        return await trio.to_thread.run_sync(write, self._end.fileno(), limiter=limiter)


async def test_nothing_goes_out_of_a_file_that_was_found_changed_even_if_it_looks_as_before(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    before = path.stat().st_mtime_ns
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with open_source(path) as source:
            assert (await source.burst(Sending(ours), 0, 100)).offset == 100
            assert theirs.recv(4096) == CONTENT[:100]
            path.write_bytes(CONTENT + b"!")
            with pytest.raises(SourceChanged):
                await source.burst(Sending(ours), 100, 200)
            path.write_bytes(CONTENT)
            os.utime(path, ns=(before, before))
            for _ in range(2):
                with pytest.raises(SourceChanged):
                    await source.burst(Sending(ours), 100, 200)


async def test_what_went_out_is_hashed_a_little_at_a_time_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "f"
    content = bytes(3 * PIECE_BYTES)
    path.write_bytes(content)
    async with open_source(path) as source:
        assert not await source.hash_some(), "nothing went out"
        source.sent(0, PIECE_BYTES + 10)
        assert await source.hash_some()
        assert await source.hash_some()
        assert not await source.hash_some()
        source.sent(PIECE_BYTES + 10, len(content) - PIECE_BYTES - 10)
        rounds = 0
        while await source.hash_some():
            rounds += 1
        assert rounds == 2
        assert await source.settle()
        assert source.sha256 == hashlib.sha256(content).hexdigest()


async def test_a_change_is_seen_by_who_hashes_what_went_out(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    async with open_source(path) as source:
        source.sent(0, len(CONTENT))
        path.write_bytes(CONTENT[:5])
        with pytest.raises(SourceChanged):
            await source.hash_some()


async def test_a_change_is_seen_by_the_one_read_and_by_the_hash_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    async with open_source(path) as reading, open_source(path) as settling:
        settling.sent(0, len(CONTENT))
        path.write_bytes(CONTENT[:5])
        with pytest.raises(SourceChanged):
            await reading.read(0, 1)
        with pytest.raises(SourceChanged):
            await settling.settle()


async def test_nothing_is_read_beyond_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(CONTENT)
    async with open_source(path) as source:
        assert await source.read(len(CONTENT), 1) == b""
        with pytest.raises(OffsetBeyondEnd) as caught:
            await source.read(len(CONTENT) + 1, 1)
        assert (caught.value.offset, caught.value.size_bytes) == (len(CONTENT) + 1, len(CONTENT))


async def test_a_file_that_cannot_be_read_is_named_whoever_reads(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with open_source(tmp_path) as folder:  # which opens and cannot be read
            folder.sent(0, folder.size_bytes)
            for read in (lambda: folder.read(0, 1), lambda: folder.burst(Sending(ours), 0, 1), folder.settle):
                with pytest.raises(SourceUnreadable, match=str(tmp_path)):
                    await read()


async def test_a_file_that_cannot_even_be_looked_at_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    before = open_descriptors()
    with pytest.raises(SourceUnreadable, match="some name"):
        await open_file_source("some name", os.open(tmp_path / "f", os.O_WRONLY), trio.CapacityLimiter(1))
    assert open_descriptors() == before


async def open_sink(world: World) -> FileSink:
    return FileSink(world.transfers.uploads, (await world.begin(b"")).transfer_id)


async def test_what_is_written_to_a_sink_is_put_in_place_when_it_is_finished(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sink = await open_sink(world)
        for piece in (b"abc", b"", b"def"):
            await sink.write(piece)
        assert sink.received_bytes == 6
        assert not world.target.exists()
        for _ in range(2):
            assert await sink.finish() == hashlib.sha256(b"abcdef").hexdigest()
        assert world.target.read_bytes() == b"abcdef"


async def test_a_sink_that_is_aborted_puts_nothing_in_place(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        sink = await open_sink(world)
        await sink.write(b"abc")
        await sink.abort(Cause.EXPIRED)
        assert [(gone.received_bytes, gone.cause) for gone in world.discarded] == [(3, Cause.EXPIRED)]
        for use in (lambda: sink.write(b"d"), sink.finish):
            with pytest.raises(TransferNotFound):
                await use()
        assert not world.target.exists()
