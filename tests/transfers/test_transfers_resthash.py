"""What a download does not hash on its way is hashed by a worker, which lives no longer than the download needs it."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from broker.session.resources import HashesInside
from sandbox.files.hashes import HASHERS
from tests.sandbox.files.test_sandbox_hashes import HUGE, gone, sha256sum, sparse
from tests.sandbox.files.test_sandbox_treework import workers
from tests.support.descriptors import open_descriptors
from tests.support.door import Door, open_door
from tests.transfers.test_transfers_downloads import SETTINGS
from transfers import disk
from transfers.download_state import Answer, Changed, Download, HashRest
from transfers.downloads import HASHED_HERE_BYTES, Chunk, Downloads, RestHash
from transfers.filestreams import FileSource, open_file_source
from transfers.refusals import SourceChanged
from transfers.store import open_transfers

LARGE = 2 * HASHED_HERE_BYTES


@attrs.define(eq=False)
class World:
    door: Door
    downloads: Downloads
    seconds: list[float]

    async def last(self, path: Path) -> Chunk:
        async def open_file() -> int:
            await trio.lowlevel.checkpoint()
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        size_bytes = path.stat().st_size
        return await self.downloads.read(str(path), offset=size_bytes - 1, chunk_bytes=1, open_file=open_file)

    async def working(self) -> int:
        with trio.fail_after(30):
            while not (pids := workers(self.door)):
                await trio.lowlevel.checkpoint()
        return pids[0]


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    seconds = [0.0]
    async with (
        open_door() as door,
        open_transfers(
            SETTINGS,
            limiter=trio.CapacityLimiter(2),
            on_discard=lambda _: None,
            hashes=HashesInside(door.files.hashes),
            clock=lambda: seconds[0],
        ) as transfers,
    ):
        before = open_descriptors()
        yield World(door, transfers.downloads, seconds)
        transfers.downloads.close_all()
        assert open_descriptors() == before


@asynccontextmanager
async def open_source(path: Path, door: Door) -> AsyncIterator[FileSource]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    source = await open_file_source(str(path), fd, trio.CapacityLimiter(2), HashesInside(door.files.hashes))
    try:
        yield source
    finally:
        source.close()


async def test_a_last_chunk_has_the_hash_that_a_worker_made_and_no_worker_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(LARGE))
    async with open_world() as world:
        chunk = await world.last(path)
        assert (chunk.sha256, chunk.why_no_sha256) == (sha256sum(path), "")
        with trio.fail_after(30):
            while workers(world.door):
                await trio.lowlevel.checkpoint()
        again = await world.last(path)  # a client that lost the answer: nothing is hashed once more
        assert again.sha256 == chunk.sha256
        assert not workers(world.door)


async def test_a_little_that_is_missing_takes_no_worker(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", HASHED_HERE_BYTES)
    async with open_world() as world:
        world.door.stop()  # it could start none
        assert (await world.last(path)).sha256 == sha256sum(path)
        world.door.go_on()


async def test_a_worker_that_stands_still_costs_the_hash_and_says_so(tmp_path: Path, autojump_clock: object) -> None:
    """In this clock HASH_S is over as soon as everybody waits for the worker: at once, whatever it does."""
    path = sparse(tmp_path / "file", HUGE)
    async with open_world() as world:
        chunk = await world.last(path)
        assert (chunk.data, chunk.is_complete, chunk.sha256) == (b"\0", True, None)
        assert chunk.why_no_sha256 == "the file was not hashed to its end in 5 s"


async def test_a_worker_ends_with_the_download_that_is_let_go(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", HUGE)
    async with open_world() as world:
        chunk = await world.last(path)
        assert chunk.sha256 is None
        (pid,) = workers(world.door)
        world.seconds[0] = SETTINGS.download_idle_s
        world.downloads.sweep()
        await gone(pid)


async def test_a_cancelled_chunk_ends_its_worker_at_once(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", HUGE)
    async with open_world() as world:
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.last, path)
                pid = await world.working()
                nursery.cancel_scope.cancel()
            await gone(pid)


async def test_a_killed_worker_costs_the_hash_and_the_next_call_has_it(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 40 * HASHED_HERE_BYTES)
    async with open_world() as world:
        chunks = []

        async def ask() -> None:
            chunks.append(await world.last(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            os.kill(await world.working(), signal.SIGKILL)
        (chunk,) = chunks
        assert (chunk.data, chunk.is_complete, chunk.sha256) == (b"\0", True, None)
        assert "ended" in chunk.why_no_sha256 or "No such process" in chunk.why_no_sha256  # before it was known
        sums = []
        while not any(sums):  # HASH_S each, on a slow machine
            sums.append((await world.last(path)).sha256)
        assert sums[-1] == sha256sum(path)


@pytest.mark.parametrize("size_bytes", [LARGE - 1, LARGE + 1])
async def test_a_file_of_another_size_is_another_file(tmp_path: Path, size_bytes: int) -> None:
    path = sparse(tmp_path / "file", HUGE)
    async with open_world() as world:
        with pytest.RaisesGroup(SourceChanged):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.last, path)
                await world.working()
                os.truncate(path, size_bytes)


async def test_a_replaced_file_is_hashed_as_it_was_pinned(tmp_path: Path) -> None:
    path, other = sparse(tmp_path / "file", LARGE), tmp_path / "other"
    other.write_bytes(b"x" * LARGE)
    right = sha256sum(path)
    async with open_world() as world:
        chunks = []

        async def ask() -> None:
            chunks.append(await world.last(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await world.working()
            other.rename(path)
        assert chunks[0].sha256 == right


async def test_a_stream_that_went_out_is_hashed_by_a_worker_that_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(LARGE))
    async with open_door() as door, open_source(path, door) as source:
        source.sent(0, LARGE)
        assert await source.settle()
        assert (source.sha256, source.why_no_sha256) == (hashlib.sha256(path.read_bytes()).hexdigest(), "")
        source.close()
        with trio.fail_after(30):
            while workers(door):
                await trio.lowlevel.checkpoint()


async def test_a_stream_without_a_hash_is_whole_and_says_why(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", HUGE)
    async with open_door() as door, open_source(path, door) as source:
        source.sent(0, HUGE)
        async with trio.open_nursery() as nursery:
            settled = []

            async def settle() -> None:
                settled.append(await source.settle())

            nursery.start_soon(settle)
            with trio.fail_after(30):
                while not (pids := workers(door)):
                    await trio.lowlevel.checkpoint()
            os.kill(pids[0], signal.SIGKILL)
        assert settled == [True]
        assert source.sha256 is None
        assert "process" in source.why_no_sha256


async def test_who_waits_for_a_worker_all_the_time_is_told_nothing_untrue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers of the session are at other files: this one was never begun, and its next call has its hash."""
    monkeypatch.setattr("transfers.downloads.HASH_S", 0.3)
    path, other = sparse(tmp_path / "file", LARGE), sparse(tmp_path / "other", HUGE)
    async with open_world() as world:
        hashes = world.door.files.hashes
        fd = os.open(other, os.O_RDONLY | os.O_CLOEXEC)
        async with trio.open_nursery() as nursery:
            for _ in range(HASHERS):
                nursery.start_soon(hashes.whole, "other", fd, HUGE)
            with trio.fail_after(30):
                while hashes.turn().borrowed_tokens < HASHERS:
                    await trio.lowlevel.checkpoint()
            chunk = await world.last(path)
            assert (chunk.is_complete, chunk.sha256) == (True, None)
            assert chunk.why_no_sha256 == "the file was not hashed to its end in 0.3 s"
            nursery.cancel_scope.cancel()
        os.close(fd)
        monkeypatch.undo()
        sums = []
        while not any(sums):  # HASH_S each, on a slow machine
            sums.append((await world.last(path)).sha256)
        assert sums[-1] == sha256sum(path)


@attrs.define(eq=False)
class Place:
    """Where files are hashed, one at a time: not before the test lets it, and not while it says that it cannot."""

    goes_on: trio.Event = attrs.field(factory=trio.Event)
    fault: OSError | None = None
    begun: list[str] = attrs.field(factory=list)
    ended: list[str] = attrs.field(factory=list)

    def of(self, path: str) -> Place:
        self.begun.append(path)
        return self

    async def upto(self, fd: int, length: int) -> tuple[int, str]:
        await self.goes_on.wait()
        if self.fault is not None:
            raise self.fault
        return os.fstat(fd).st_size, f"the hash of {length} bytes"

    def close(self) -> None:
        self.ended.append(self.begun[-1])


@attrs.define(eq=False)
class Missing:
    """A file of which nothing was hashed on its way."""

    rest_hash: RestHash
    _download: Download
    _pin: disk.Pin

    async def settle(self, within_s: float) -> HashRest | Answer | Changed:
        return await self.rest_hash.settle(self._download, self._download.rest(), self._pin, within_s)


TOLD = Answer(sha256=f"the hash of {LARGE} bytes")


@contextmanager
def missing(path: Path, place: Place) -> Iterator[Missing]:
    pin = disk.Pin(os.open(sparse(path, LARGE), os.O_RDONLY | os.O_CLOEXEC))
    with pin.use() as fd:
        download = Download(disk.identity_of(fd))
    try:
        yield Missing(RestHash(str(path), place, trio.CapacityLimiter(1)), download, pin)
    finally:
        pin.close()


async def test_at_the_limit_a_hash_elsewhere_only_stops_and_another_call_goes_on(tmp_path: Path) -> None:
    path, place = tmp_path / "file", Place()
    with missing(path, place) as rest:
        assert isinstance(await rest.settle(0), HashRest)
        assert rest.rest_hash.why_none == "the file was not hashed to its end in 0 s"
        place.goes_on.set()
        assert await rest.settle(60) == TOLD
        assert (place.begun, place.ended) == ([str(path)], [])
        for _ in range(2):
            rest.rest_hash.close()
        assert place.ended == [str(path)]


async def test_a_call_that_is_cancelled_ends_what_it_began_elsewhere_and_the_next_begins_anew(tmp_path: Path) -> None:
    path, place = tmp_path / "file", Place()
    with missing(path, place) as rest:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rest.settle, 60)
            await trio.testing.wait_all_tasks_blocked()
            assert (place.begun, place.ended) == ([str(path)], [])
            nursery.cancel_scope.cancel()
        assert place.ended == [str(path)]
        place.goes_on.set()
        assert await rest.settle(60) == TOLD
        assert (place.begun, place.ended) == ([str(path)] * 2, [str(path)])


@pytest.mark.parametrize("facts", [("nobody is there to hash",), (errno.ESRCH, "nobody is there to hash")])
async def test_why_there_was_no_hash_is_not_said_of_the_hash_that_came_later(
    tmp_path: Path, facts: tuple[object, ...]
) -> None:
    place = Place(fault=OSError(*facts))
    place.goes_on.set()
    with missing(tmp_path / "file", place) as rest:
        assert isinstance(await rest.settle(60), HashRest)
        assert rest.rest_hash.why_none == "nobody is there to hash"
        place.fault = None
        assert (await rest.settle(60), rest.rest_hash.why_none) == (TOLD, "")
