"""Uploads on real files: what the client is answered, what the disk then holds."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.descriptors import open_descriptors
from transfers.refusals import (
    OffsetMismatch,
    PathMismatch,
    TooLarge,
    TooManyTransfers,
    TransferError,
    TransferNotFound,
)
from transfers.settings import TransferSettings
from transfers.store import Transfers, open_transfers
from transfers.upload import Discarded, Progress

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
class FolderDestination:
    """A part file in a folder of its own, renamed over the target; what the broker does through the sandbox."""

    target: Path
    fd: int
    part: Path

    @classmethod
    def open(cls, target: Path, *, device: str = "") -> FolderDestination:
        """Open the part; *device* (/dev/full) stands in for it where the disk must fail."""
        parts = target.parent / "parts"
        parts.mkdir(exist_ok=True)
        part = parts / secrets.token_hex(8)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if device:
            os.close(fd)
            fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
        return cls(target, fd, part)

    def in_turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def commit(self) -> None:
        await trio.to_thread.run_sync(os.replace, self.part, self.target)

    async def discard(self) -> None:
        await trio.to_thread.run_sync(self.part.unlink)


@attrs.define(eq=False)
class World:
    """A folder with a target, a store, and the fake clock of both."""

    folder: Path
    transfers: Transfers
    limiter: trio.CapacityLimiter
    discarded: list[Discarded]
    seconds: list[float]

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def parts(self) -> list[str]:
        return sorted(part.name for part in (self.folder / "parts").iterdir())

    async def begin(self, data: bytes, *, is_last: bool = False, offset: int = 0, device: str = "") -> Progress:
        destination = FolderDestination.open(self.target, device=device)
        return await self.transfers.uploads.begin(
            str(self.target), destination, offset=offset, data=data, is_last=is_last
        )

    async def resume(self, transfer_id: str, offset: int, data: bytes, *, is_last: bool = False) -> Progress:
        return await self.transfers.uploads.resume(
            transfer_id, str(self.target), offset=offset, data=data, is_last=is_last
        )


@asynccontextmanager
async def open_world(folder: Path, settings: TransferSettings = SETTINGS) -> AsyncIterator[World]:
    """Open a store; afterwards no descriptor and no part file may be left."""
    (folder / "parts").mkdir(exist_ok=True)
    seconds = [0.0]
    discarded: list[Discarded] = []
    limiter = trio.CapacityLimiter(2)
    before = open_descriptors()
    async with open_transfers(
        settings, limiter=limiter, on_discard=discarded.append, clock=lambda: seconds[0]
    ) as transfers:
        yield World(folder, transfers, limiter, discarded, seconds)
    assert open_descriptors() == before
    assert list((folder / "parts").iterdir()) == []


def sha256sum(path: Path) -> str:
    return subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True).stdout.split()[0]


async def in_turn(limiter: trio.CapacityLimiter, *calls: Callable[[], Awaitable[object]]) -> list[object]:
    """Start the calls one after the other while the disk is held up, then let it go on; a refusal is a result."""
    results: list[object] = [None] * len(calls)

    async def run(number: int, call: Callable[[], Awaitable[object]]) -> None:
        try:
            results[number] = await call()
        except TransferError as refusal:
            results[number] = type(refusal)

    holders = [object() for _ in range(int(limiter.total_tokens))]
    for holder in holders:
        limiter.acquire_on_behalf_of_nowait(holder)
    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(run, number, call)
            await trio.testing.wait_all_tasks_blocked()
        for holder in holders:
            limiter.release_on_behalf_of(holder)
    return results


async def test_file_arrives_whole_with_the_digest_that_sha256sum_gives(tmp_path: Path) -> None:
    content = os.urandom(3 * MIB + 17)
    async with open_world(tmp_path) as world:
        progress = await world.begin(content[:MIB])
        assert not world.target.exists()
        for offset in (MIB, 2 * MIB, 3 * MIB):
            assert (progress.received_bytes, progress.is_complete, progress.sha256) == (offset, False, None)
            data = content[offset : offset + MIB]
            progress = await world.resume(progress.transfer_id, offset, data, is_last=offset == 3 * MIB)
        assert progress.is_complete
        assert progress.sha256 == sha256sum(world.target)
        assert world.target.read_bytes() == content
        assert world.discarded == []


async def test_one_chunk_may_be_the_whole_upload_and_may_be_empty(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for content in (b"hello", b""):
            done = await world.begin(content, is_last=True)
            assert done.sha256 == hashlib.sha256(content).hexdigest() == sha256sum(world.target)
            assert world.target.read_bytes() == content


async def test_repeated_last_chunk_gets_the_same_answer_and_touches_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"abc")
        done = await world.resume(first.transfer_id, 3, b"def", is_last=True)
        world.target.write_bytes(b"edited since")
        assert await world.resume(first.transfer_id, 3, b"def", is_last=True) == done
        assert await world.resume(first.transfer_id, 6, b"", is_last=True) == done
        with pytest.raises(OffsetMismatch, match="came after the last one; the upload expects offset 6"):
            await world.resume(first.transfer_id, 6, b"more", is_last=True)
        assert world.target.read_bytes() == b"edited since"


async def test_gaps_overlaps_and_other_bytes_are_refused_with_the_expected_offset(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"abcdef")
        assert await world.resume(first.transfer_id, 0, b"abcdef") == first
        for offset, data, why in (
            (7, b"x", "leaves a gap"),
            (5, b"fg", "overlaps"),
            (0, b"abcdeX", "differs"),
            (-1, b"x", "overlaps"),
        ):
            with pytest.raises(OffsetMismatch, match=why) as caught:
                await world.resume(first.transfer_id, offset, data)
            assert (caught.value.offset, caught.value.expected_offset) == (offset, 6)
        await world.resume(first.transfer_id, 6, b"", is_last=True)
        assert world.target.read_bytes() == b"abcdef"


async def test_first_chunk_that_is_refused_leaves_nothing_open(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(OffsetMismatch) as caught:
            await world.begin(b"x", offset=5)
        assert caught.value.expected_offset == 0
        with pytest.raises(TooLarge, match="the chunk would have 1048577 bytes; the limit is 1048576"):
            await world.begin(bytes(MIB + 1))
        assert world.parts == []
        assert [gone.received_bytes for gone in world.discarded] == [0, 0]


async def test_later_chunk_has_the_same_limit_and_is_refused_alone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"x")
        with pytest.raises(TooLarge, match="the chunk would have 1048577 bytes; the limit is 1048576"):
            await world.resume(first.transfer_id, 1, bytes(MIB + 1))
        assert (await world.resume(first.transfer_id, 1, bytes(MIB), is_last=True)).is_complete


async def test_several_uploads_to_one_path_are_apart_and_the_last_commit_wins(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        one, two = await world.begin(b"1"), await world.begin(b"2")
        assert len({one.transfer_id, two.transfer_id}) == 2
        await world.resume(two.transfer_id, 1, b"two", is_last=True)
        assert world.target.read_bytes() == b"2two"
        await world.resume(one.transfer_id, 1, b"one", is_last=True)
        assert world.target.read_bytes() == b"1one"


async def test_upload_is_bound_to_its_path_and_its_session(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path) as world,
        open_transfers(SETTINGS, limiter=world.limiter, on_discard=world.discarded.append) as other,
    ):
        first = await world.begin(b"abc")
        with pytest.raises(PathMismatch, match="was opened for"):
            await world.transfers.uploads.resume(first.transfer_id, "/elsewhere", offset=3, data=b"", is_last=True)
        with pytest.raises(TransferNotFound, match="start again"):
            await other.uploads.resume(first.transfer_id, str(world.target), offset=3, data=b"", is_last=True)
        assert (await world.resume(first.transfer_id, 3, b"d")).received_bytes == 4


async def test_size_limits_are_named_and_change_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path, attrs.evolve(SETTINGS, max_upload_bytes=5)) as world:
        first = await world.begin(b"abc")
        with pytest.raises(TooLarge, match="the upload would have 6 bytes; the limit is 5"):
            await world.resume(first.transfer_id, 3, b"def")
        assert (await world.resume(first.transfer_id, 3, b"de", is_last=True)).is_complete
        narrow = FolderDestination.open(world.target)
        with pytest.raises(TooLarge, match="the limit is 2"):
            await world.transfers.uploads.begin(
                str(world.target), narrow, offset=0, data=b"abc", is_last=True, limit_bytes=2
            )
        assert world.target.read_bytes() == b"abcde"


async def test_more_uploads_than_allowed_are_refused_until_one_ends(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        opened = [await world.begin(b"x") for _ in range(SETTINGS.max_open)]
        with pytest.raises(TooManyTransfers, match="3 transfers are open"):
            await world.begin(b"y")
        assert len(world.parts) == SETTINGS.max_open
        await world.resume(opened[0].transfer_id, 1, b"", is_last=True)
        await world.begin(b"y")


async def test_chunk_repeated_while_it_is_being_written_waits_and_is_acknowledged(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"abc")
        again = lambda: world.resume(first.transfer_id, 3, b"def", is_last=True)  # noqa: E731
        one, two = await in_turn(world.limiter, again, again)
        assert one == two
        assert world.target.read_bytes() == b"abcdef"


async def test_pipelined_chunks_are_taken_in_the_order_they_came(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"0")
        await in_turn(
            world.limiter,
            lambda: world.resume(first.transfer_id, 1, b"1"),
            lambda: world.resume(first.transfer_id, 2, b"2"),
            lambda: world.resume(first.transfer_id, 3, b"3", is_last=True),
        )
        assert world.target.read_bytes() == b"0123"
