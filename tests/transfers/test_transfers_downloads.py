"""Downloads of real files: every chunk from the same file, the digest of all of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from tests.support.descriptors import open_descriptors
from tests.transfers.test_transfers_uploads import sha256sum
from transfers.downloads import Chunk, Downloads
from transfers.refusals import (
    OffsetBeyondEnd,
    SourceChanged,
    SourceUnreadable,
    UnsizedSource,
)
from transfers.settings import TransferSettings
from transfers.store import open_transfers

MIB = 1024 * 1024
SETTINGS = TransferSettings(
    max_open=3,
    max_chunk_bytes=MIB,
    max_upload_bytes=8 * MIB,
    max_session_bytes=1 << 40,
    reserve_bytes=0,
    upload_idle_s=600,
    download_idle_s=60,
)


@attrs.define(eq=False)
class World:
    downloads: Downloads
    limiter: trio.CapacityLimiter
    seconds: list[float]
    opened: list[Path] = attrs.field(factory=list)
    door: trio.Event = attrs.field(factory=trio.Event)

    async def read(self, path: Path, offset: int, chunk_bytes: int = 4) -> Chunk:
        async def open_file() -> int:
            await self.door.wait()
            self.opened.append(path)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

        return await self.downloads.read(str(path), offset=offset, chunk_bytes=chunk_bytes, open_file=open_file)

    def pinned(self, folder: Path) -> list[str]:
        return sorted(Path(name).name for _, name in open_descriptors() if name.startswith(f"{folder}/"))


@asynccontextmanager
async def open_world(settings: TransferSettings = SETTINGS) -> AsyncIterator[World]:
    seconds = [0.0]
    limiter = trio.CapacityLimiter(2)
    before = open_descriptors()
    async with open_transfers(
        settings, limiter=limiter, on_discard=lambda _: None, clock=lambda: seconds[0]
    ) as transfers:
        world = World(transfers.downloads, limiter, seconds)
        world.door.set()
        yield world
    assert open_descriptors() == before


async def whole(world: World, path: Path, chunk_bytes: int) -> tuple[bytes, Chunk]:
    """Download as the customer's document says: repeat with offset += chunk_size until is_complete."""
    data, chunk = b"", await world.read(path, 0, chunk_bytes)
    while not chunk.is_complete:
        assert chunk.sha256 is None
        data += chunk.data
        chunk = await world.read(path, chunk.offset + chunk_bytes, chunk_bytes)
    return data + chunk.data, chunk


async def test_file_arrives_whole_with_the_digest_that_sha256sum_gives(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3 * MIB + 17))
    async with open_world() as world:
        data, last = await whole(world, path, MIB)
        assert data == path.read_bytes()
        assert last.sha256 == sha256sum(path)
        assert last.size_bytes == 3 * MIB + 17
        assert world.opened == [path]
        assert world.pinned(tmp_path) == []


@pytest.mark.parametrize("size_bytes", [0, 1, 4, 8])
async def test_small_and_empty_files_are_complete_at_once(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size_bytes)
    async with open_world() as world:
        chunk = await world.read(path, 0, 8)
        assert (chunk.data, chunk.is_complete, chunk.sha256) == (b"x" * size_bytes, True, sha256sum(path))


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (-5, 1), (1, 1), (MIB, MIB), (MIB + 1, MIB), (2**40, MIB)])
async def test_chunk_size_is_clamped(tmp_path: Path, asked: int, given: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2 * MIB))
    async with open_world() as world:
        assert len((await world.read(path, 0, asked)).data) == given


async def test_last_chunk_may_be_repeated_and_has_its_digest_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        _, last = await whole(world, path, 4)
        assert await world.read(path, 8, 4) == last
        assert await world.read(path, 10, 4) == attrs.evolve(last, data=b"", offset=10)
        assert world.pinned(tmp_path) == []


async def test_what_is_appended_to_a_file_that_was_taken_at_once_is_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"0123")
    async with open_world() as world:
        assert (await world.read(path, 0)).is_complete
        with path.open("ab") as log:
            log.write(b"456")
        assert (await world.read(path, 4)).data == b"456"


async def test_chunks_out_of_order_still_end_with_the_digest_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(40 * MIB))
    async with open_world() as world:
        await world.read(path, 0, 4)
        await world.read(path, 20 * MIB, MIB)
        last = await world.read(path, 39 * MIB, MIB)
        assert last.sha256 == sha256sum(path)
        resumed = await world.read(path, 39 * MIB + 5, MIB)
        assert resumed.sha256 == last.sha256


async def test_download_goes_on_from_the_file_it_began_with_when_another_takes_its_name(tmp_path: Path) -> None:
    path, newer = tmp_path / "file", tmp_path / "newer"
    path.write_bytes(b"old old old")
    newer.write_bytes(b"new new new and longer")
    async with open_world() as world:
        first = await world.read(path, 0)
        newer.rename(path)
        rest = [await world.read(path, offset) for offset in (4, 8)]
        assert b"".join(chunk.data for chunk in (first, *rest)) == b"old old old"
        assert rest[-1].sha256 == hashlib.sha256(b"old old old").hexdigest()
        assert {chunk.transfer_id for chunk in rest} == {first.transfer_id}
        assert (await world.read(path, 0)).data == b"new "


@pytest.mark.parametrize("change", ["write", "append", "truncate"])
async def test_file_changed_underneath_is_an_error_until_the_download_starts_anew(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    os.utime(path, ns=(1, 1))
    async with open_world() as world:
        await world.read(path, 0)
        if change == "truncate":
            os.truncate(path, 5)
        else:
            with path.open("r+b" if change == "write" else "ab") as file:
                file.write(b"X")
        for offset in (4, 8):
            with pytest.raises(SourceChanged, match="start again at offset 0"):
                await world.read(path, offset)
        assert world.pinned(tmp_path) == []
        data, last = await whole(world, path, 4)
        assert data == path.read_bytes()
        assert last.sha256 == sha256sum(path)


async def test_offset_beyond_the_end_is_refused_with_the_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        for offset in (11, -1):
            with pytest.raises(OffsetBeyondEnd, match="has 10 bytes") as caught:
                await world.read(path, offset)
            assert (caught.value.offset, caught.value.size_bytes) == (offset, 10)


async def test_kernel_file_without_a_size_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    async with open_world() as world:
        with pytest.raises(UnsizedSource, match="read_file"):
            await world.read(Path("/proc/self/status"), 0)


async def test_error_of_the_opener_comes_through_and_the_disks_is_named(tmp_path: Path) -> None:
    async with open_world() as world:
        with pytest.raises(FileNotFoundError):
            await world.read(tmp_path / "missing", 0)
        with pytest.raises(SourceUnreadable, match="Is a directory"):
            await world.read(tmp_path, 0, MIB)
        assert world.downloads._sources.keys() == {str(tmp_path)}  # the one that could at least be opened
