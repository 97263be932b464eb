"""Downloads of real files: every chunk from the same file, the digest of all of it, few descriptors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from test_transfers_uploads import open_fds, sha256sum

from transfers.downloads import REMEMBERED_DOWNLOADS, Chunk, Downloads
from transfers.refusals import (
    OffsetBeyondEnd,
    SourceChanged,
    SourceUnreadable,
    TooManyTransfers,
    TransfersClosed,
    UnsizedSource,
)
from transfers.settings import TransferSettings
from transfers.store import open_transfers

MIB = 1024 * 1024
SETTINGS = TransferSettings(
    max_open=3, max_chunk_bytes=MIB, max_upload_bytes=8 * MIB, upload_idle_s=600, download_idle_s=60
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
        return sorted(Path(name).name for _, name in open_fds() if name.startswith(f"{folder}/"))


@asynccontextmanager
async def open_world(settings: TransferSettings = SETTINGS) -> AsyncIterator[World]:
    seconds = [0.0]
    limiter = trio.CapacityLimiter(2)
    before = open_fds()
    async with open_transfers(
        settings, limiter=limiter, on_discard=lambda _: None, clock=lambda: seconds[0]
    ) as transfers:
        world = World(transfers.downloads, limiter, seconds)
        world.door.set()
        yield world
    assert open_fds() == before


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


async def test_evicted_download_goes_on_if_its_file_is_the_same_and_only_then(tmp_path: Path) -> None:
    paths = [tmp_path / f"file{number}" for number in range(SETTINGS.max_open + 1)]
    for path in paths:
        path.write_bytes(b"0123456789")
        os.utime(path, ns=(1, 1))
    async with open_world() as world:
        for second, path in enumerate(paths):
            world.seconds[0] = second
            await world.read(path, 0)
        assert world.pinned(tmp_path) == ["file1", "file2", "file3"]
        same = await world.read(paths[0], 4)
        assert same.data == b"4567"
        assert (await world.read(paths[0], 8)).sha256 == sha256sum(paths[0])
        await world.read(paths[0], 0)
        assert "file1" not in world.pinned(tmp_path)
        paths[1].write_bytes(b"9876543210")
        with pytest.raises(SourceChanged):
            await world.read(paths[1], 4)


async def test_descriptors_and_memory_stay_bounded_over_many_files(tmp_path: Path) -> None:
    async with open_world() as world:
        for number in range(2 * REMEMBERED_DOWNLOADS):
            path = tmp_path / f"file{number}"
            path.write_bytes(b"0123456789")
            await world.read(path, 0)
            assert len(world.pinned(tmp_path)) <= SETTINGS.max_open
        assert len(world.downloads._sources) <= SETTINGS.max_open + REMEMBERED_DOWNLOADS + 1


async def test_idle_download_lets_its_file_go(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        first = await world.read(path, 0)
        world.seconds[0] = 59
        world.downloads.sweep()
        assert world.pinned(tmp_path) == ["file"]
        world.seconds[0] = 60
        world.downloads.sweep()
        assert world.pinned(tmp_path) == []
        later = await world.read(path, 4)
        assert later.data == b"4567"
        assert later.transfer_id != first.transfer_id
        assert (await world.read(path, 8)).sha256 == sha256sum(path)


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


async def held_up(world: World, *calls: Callable[[], object]) -> list[object]:
    """Start the calls one after the other while the disk is held up, then let the disk go on."""
    results: list[object] = [None] * len(calls)

    async def run(number: int, call: Callable[[], object]) -> None:
        try:
            results[number] = await call()  # type: ignore[misc]
        except TransfersClosed as refusal:
            results[number] = type(refusal)

    holders = [object() for _ in range(int(world.limiter.total_tokens))]
    for holder in holders:
        world.limiter.acquire_on_behalf_of_nowait(holder)
    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(run, number, call)
            await trio.testing.wait_all_tasks_blocked()
        for holder in holders:
            world.limiter.release_on_behalf_of(holder)
    return results


async def test_more_files_at_once_than_descriptors_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"file{number}" for number in range(SETTINGS.max_open + 1)]
    for path in paths:
        path.write_bytes(b"0123456789")
    async with open_world() as world:
        world.door = trio.Event()
        async with trio.open_nursery() as nursery:
            for path in paths[1:]:
                nursery.start_soon(world.read, path, 0)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(TooManyTransfers, match="3 transfers are open"):
                await world.read(paths[0], 0)
            world.door.set()
        assert world.pinned(tmp_path) == ["file1", "file2", "file3"]
        await world.read(paths[0], 0)


async def test_two_readers_of_one_path_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        chunks = await held_up(
            world,
            lambda: world.read(path, 0),
            lambda: world.read(path, 4),
            lambda: world.read(path, 0),
            lambda: world.read(path, 8),
        )
        assert [chunk.data for chunk in chunks if isinstance(chunk, Chunk)] == [b"0123", b"4567", b"0123", b"89"]
        assert isinstance(chunks[3], Chunk)
        assert chunks[3].sha256 == sha256sum(path)


async def test_download_begun_anew_does_not_spoil_the_chunk_under_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        last, first = await held_up(world, lambda: world.read(path, 8), lambda: world.read(path, 0))
        assert isinstance(last, Chunk)
        assert last.sha256 == sha256sum(path)  # of bytes that three more steps on the disk had to find
        assert isinstance(first, Chunk)
        assert world.pinned(tmp_path) == ["file"]


async def test_session_end_under_a_read_leaves_no_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    async with open_world() as world:
        await world.read(path, 0)

        async def close() -> None:
            await trio.lowlevel.checkpoint()
            world.downloads.close_all()

        under_way, waiting, _ = await held_up(world, lambda: world.read(path, 4), lambda: world.read(path, 8), close)
        assert isinstance(under_way, Chunk)
        assert waiting is TransfersClosed
        assert world.pinned(tmp_path) == []
        with pytest.raises(TransfersClosed):
            await world.read(path, 0)


def test_memory_is_bounded_whatever_the_file_size(tmp_path: Path) -> None:
    """The last byte of a sparse file: all of it is hashed, and the process stays small."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 256 * MIB)
    program = f"""
import os, trio
from transfers.settings import TransferSettings
from transfers.store import open_transfers
settings = {SETTINGS!r}
async def open_file():
    return os.open({str(path)!r}, os.O_RDONLY)
def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
async def main():
    async with open_transfers(settings, limiter=trio.CapacityLimiter(1), on_discard=print) as transfers:
        await transfers.downloads.read("x", offset=0, chunk_bytes=1, open_file=open_file)
        before_kib = peak_kib()
        last = await transfers.downloads.read("x", offset={256 * MIB - 1}, chunk_bytes=1, open_file=open_file)
        print(last.sha256, peak_kib() - before_kib)
trio.run(main)
"""
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    digest, grown_kib = ran.stdout.split()
    assert digest == sha256sum(path)
    assert int(grown_kib) < 16 * 1024
