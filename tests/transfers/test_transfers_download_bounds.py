"""What downloads may hold: few descriptors, little memory, for a bounded time, also when several run at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.transfers.test_transfers_downloads import SETTINGS, open_world
from tests.transfers.test_transfers_uploads import in_turn, sha256sum
from transfers.download_state import HASH_PIECE_BYTES
from transfers.downloads import REMEMBERED_DOWNLOADS, Chunk
from transfers.refusals import SourceChanged, TooManyTransfers, TransfersClosed

MIB = 1024 * 1024


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
        assert REMEMBERED_DOWNLOADS <= len(world.downloads._sources) <= SETTINGS.max_open + REMEMBERED_DOWNLOADS + 1


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


async def test_download_in_use_stays_and_an_idle_one_goes_without_a_timer(tmp_path: Path) -> None:
    used, idle = tmp_path / "used", tmp_path / "idle"
    for path in (used, idle):
        path.write_bytes(b"0123456789")
    async with open_world() as world:
        first = await world.read(used, 0)
        world.seconds[0] = 10
        await world.read(idle, 0)
        for seconds in (50, 109):
            world.seconds[0] = seconds
            assert (await world.read(used, 4)).transfer_id == first.transfer_id
        assert world.pinned(tmp_path) == ["used"]


async def test_download_whose_chunk_is_being_read_does_not_expire(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    async with open_world() as world:
        first = await world.read(path, 0)

        async def expire() -> None:
            await trio.lowlevel.checkpoint()
            world.seconds[0] = SETTINGS.download_idle_s
            world.downloads.sweep()

        await in_turn(world.limiter, lambda: world.read(path, 4), expire)
        assert (await world.read(path, 8)).transfer_id == first.transfer_id


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
        chunks = await in_turn(
            world.limiter,
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
        last, first = await in_turn(world.limiter, lambda: world.read(path, 8), lambda: world.read(path, 0))
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

        under_way, waiting, _ = await in_turn(
            world.limiter, lambda: world.read(path, 4), lambda: world.read(path, 8), close
        )
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
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    digest, grown_kib = ran.stdout.split()
    assert digest == sha256sum(path)
    assert int(grown_kib) < 16 * 1024


async def test_the_hash_of_what_nobody_read_has_its_time_and_goes_on_when_asked_again(
    tmp_path: Path, autojump_clock: object
) -> None:
    """In this clock the time is over as soon as a thread is waited for: each call hashes one piece."""
    large, small = tmp_path / "large", tmp_path / "small"
    for path, size_bytes in ((large, 64 << 30), (small, 3 * HASH_PIECE_BYTES)):
        with path.open("wb") as sparse:
            sparse.truncate(size_bytes)
    async with open_world() as world:
        chunk = await world.read(large, (64 << 30) - 1)
        assert (chunk.data, chunk.is_complete, chunk.sha256) == (b"\0", True, None)
        sums = []
        while not any(sums):
            sums.append((await world.read(small, 3 * HASH_PIECE_BYTES - 1)).sha256)
        assert len(sums) > 1
        assert sums[-1] == sha256sum(small)
        assert world.pinned(tmp_path) == ["large"]  # for who asks again
