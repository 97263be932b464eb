"""How uploads end when all does not go well: full disks, failed replacements, expiry, the session's end."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.support.descriptors import open_descriptors
from tests.transfers.test_transfers_uploads import SETTINGS, FolderDestination, World, in_turn, open_world
from transfers.refusals import (
    DigestMismatch,
    OffsetMismatch,
    QuotaExceeded,
    RanShort,
    SizeMismatch,
    TransferNotFound,
    TransfersClosed,
    UploadInDoubt,
    UploadLost,
)
from transfers.upload import COMMIT_BOUND_S, DISCARD_BOUND_S, Cause, Progress
from transfers.upload_state import Declared
from transfers.uploads import REMEMBERED_UPLOADS

MIB = 1024 * 1024
MORE_THAN_THERE_IS = 1 << 60  # bytes of address space


async def test_full_disk_loses_the_upload_for_good_and_spares_the_destination(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.target.write_bytes(b"old")
        with pytest.raises(UploadLost, match="No space left on device") as caught:
            await world.begin(b"new", device="/dev/full")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert world.target.read_bytes() == b"old"
        assert [gone.why for gone in world.discarded] == ["No space left on device"]


async def test_upload_is_not_committed_unless_its_bytes_are_on_the_disk(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        with pytest.raises(UploadLost, match="Invalid argument"):  # what fsync says of /dev/full
            await world.begin(b"", is_last=True, device="/dev/full")
        assert not world.target.exists()


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """A disk that takes a part of a write and fails the rest (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@asynccontextmanager
async def no_thread() -> AsyncIterator[None]:
    """A kernel that refuses every thread, for want of room for its stack; those that wait for work have some."""
    done, refused = threading.Event(), trio.Event()
    limiter = trio.CapacityLimiter(math.inf)

    async def take() -> None:
        try:
            await trio.to_thread.run_sync(done.wait, limiter=limiter)
        except RuntimeError:
            refused.set()

    before = threading.stack_size(MORE_THAN_THERE_IS)
    try:
        async with trio.open_nursery() as nursery:
            try:
                while not refused.is_set():
                    nursery.start_soon(take)
                    await trio.testing.wait_all_tasks_blocked()
                yield
            finally:
                done.set()
    finally:
        threading.stack_size(before)


@pytest.mark.parametrize("data", [b"def", b""], ids=["at the write", "at the flush"])
async def test_chunk_for_which_there_is_no_thread_can_be_sent_again(tmp_path: Path, data: bytes) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"abc")
        async with no_thread():
            with pytest.raises(RanShort):
                await world.resume(first.transfer_id, 3, data, is_last=True)
        whole = await world.resume(first.transfer_id, 3, data, is_last=True)
        assert whole.is_complete
        assert (world.target.read_bytes(), world.discarded) == (b"abc" + data, [])


async def test_loss_in_the_middle_of_a_chunk_is_sticky(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(bytes(MIB))
        with files_limited_to(MIB + 100_000), pytest.raises(UploadLost, match="File too large"):
            await world.resume(first.transfer_id, MIB, bytes(MIB))
        assert world.parts == []
        for offset in (0, MIB, MIB + 100_000):
            with pytest.raises(UploadLost, match="File too large"):
                await world.resume(first.transfer_id, offset, bytes(MIB), is_last=True)
        assert not world.target.exists()


async def test_commit_that_fails_loses_the_upload_and_removes_the_part(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.target.mkdir()  # a file cannot be renamed over a folder
        first = await world.begin(b"abc")
        for _ in range(2):
            with pytest.raises(UploadLost, match="Is a directory"):
                await world.resume(first.transfer_id, 0, b"abc", is_last=True)
        assert [(gone.why, gone.leftover) for gone in world.discarded] == [("Is a directory", "")]


class DoorGone(Exception):
    """An error of the destination's own vocabulary."""


@attrs.define(eq=False)
class BrokenDoor(FolderDestination):
    async def commit(self) -> None:
        raise DoorGone


async def test_error_of_the_destination_comes_through_and_loses_the_upload(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        uploads, path = world.transfers.uploads, str(world.target)
        first = await uploads.begin(path, BrokenDoor.open(world.target), offset=0, data=b"abc", is_last=False)
        with pytest.raises(DoorGone):
            await world.resume(first.transfer_id, 3, b"", is_last=True)
        with pytest.raises(UploadInDoubt, match="it was cut off while the destination was replaced"):
            await world.resume(first.transfer_id, 3, b"", is_last=True)


class NotYet(Exception):
    """What a destination says that somebody else is changing."""


@attrs.define(eq=False)
class TakenPlace(FolderDestination):
    """One that somebody else is changing until `taken` says no."""

    taken: bool = attrs.field(default=True, init=False)

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self.taken:
            raise NotYet
        yield


async def test_upload_that_must_wait_for_its_place_is_as_it_was(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        uploads, destination = world.transfers.uploads, TakenPlace.open(world.target)
        first = await uploads.begin(str(world.target), destination, offset=0, data=b"abc", is_last=False)
        for data in (b"def", b""):
            with pytest.raises(NotYet):
                await world.resume(first.transfer_id, 3, data, is_last=True)
        destination.taken = False
        done = await world.resume(first.transfer_id, 3, b"def", is_last=True)
        assert (done.is_complete, world.target.read_bytes()) == (True, b"abcdef")


async def test_what_came_to_nothing_may_be_written_once_more_and_what_was_put_in_place_not(tmp_path: Path) -> None:
    async with open_world(tmp_path, attrs.evolve(SETTINGS, max_session_bytes=10)) as world:
        given_up = await world.begin(b"12345678")
        await world.transfers.uploads.discard(given_up.transfer_id, Cause.CANCELLED)
        with pytest.raises(UploadLost):
            await world.begin(b"12345678", device="/dev/full")
        await world.begin(b"12345678", is_last=True)
        with pytest.raises(QuotaExceeded):
            await world.begin(b"123")
        await world.begin(b"12")


async def begin_declared(world: World, *, size_bytes: int | None = None, sha256: str | None = None) -> Progress:
    declared, door = Declared(size_bytes=size_bytes, sha256=sha256), FolderDestination.open(world.target)
    return await world.transfers.uploads.begin(
        str(world.target), door, offset=0, data=b"ab", is_last=False, declared=declared
    )


async def test_upload_of_another_size_than_was_declared_can_go_on(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        begun = await begin_declared(world, size_bytes=4)
        for more, is_last, size_bytes in ((b"cde", False, 5), (b"", True, 2)):
            with pytest.raises(SizeMismatch) as caught:
                await world.resume(begun.transfer_id, 2, more, is_last=is_last)
            told = caught.value
            assert (told.size_bytes, told.declared_bytes, told.expected_offset) == (size_bytes, 4, 2)
        assert (await world.resume(begun.transfer_id, 2, b"cd", is_last=True)).is_complete


async def test_upload_of_other_bytes_than_were_declared_is_lost(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        begun = await begin_declared(world, sha256=hashlib.sha256(b"abcd").hexdigest())
        with pytest.raises(DigestMismatch):
            await world.resume(begun.transfer_id, 2, b"cX", is_last=True)
        assert [gone.cause for gone in world.discarded] == [Cause.MISMATCH]
        assert not world.target.exists()


@attrs.define(eq=False)
class SilentDoor(FolderDestination):
    async def commit(self) -> None:
        await trio.sleep_forever()

    async def discard(self) -> None:
        self.part.unlink()
        await trio.sleep_forever()


async def test_file_system_that_never_answers_is_waited_for_only_so_long(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with open_world(tmp_path) as world:
        began = trio.current_time()
        with pytest.raises(UploadInDoubt, match=f"no answer in {COMMIT_BOUND_S} s"):
            await world.transfers.uploads.begin(
                str(world.target), SilentDoor.open(world.target), offset=0, data=b"", is_last=True
            )
        assert trio.current_time() - began <= COMMIT_BOUND_S + DISCARD_BOUND_S
        assert [gone.leftover for gone in world.discarded] == ["its removal was not answered in time"]


async def test_end_of_the_session_is_bounded_and_reports_what_is_left_over(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with open_world(tmp_path) as world:
        uploads, path = world.transfers.uploads, str(world.target)
        for _ in range(2):
            await uploads.begin(path, SilentDoor.open(world.target), offset=0, data=b"", is_last=False)
        for name in world.parts[1:]:
            (tmp_path / "parts" / name).unlink()
        began = trio.current_time()
        await uploads.close_all()
        assert trio.current_time() - began <= DISCARD_BOUND_S
        assert len(world.discarded) == 2
        assert all(gone.leftover for gone in world.discarded)
        for name in world.parts:
            (tmp_path / "parts" / name).unlink()


async def test_descriptor_of_a_write_that_outlasts_the_session_is_closed_after_it(
    tmp_path: Path, autojump_clock: object
) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"0")
        before = open_descriptors()
        for holder in (holders := [object(), object()]):
            world.limiter.acquire_on_behalf_of_nowait(holder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_lost, world, first)
            await trio.testing.wait_all_tasks_blocked()
            await world.transfers.uploads.close_all()
            assert open_descriptors() == before  # its number must not become another file's under the write
            for holder in holders:
                world.limiter.release_on_behalf_of(holder)
        assert [gone.leftover for gone in world.discarded] == ["there was no time to remove it"]
        for name in world.parts:
            (tmp_path / "parts" / name).unlink()


async def expect_lost(world: World, first: Progress) -> None:
    with pytest.raises(UploadLost, match="its session ended"):
        await world.resume(first.transfer_id, 1, b"1")


async def test_end_of_the_session_discards_every_open_upload(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        world.target.write_bytes(b"old")
        opened = [await world.begin(b"new") for _ in range(2)]
        await world.transfers.uploads.close_all()
        assert world.parts == []
        assert {gone.transfer_id for gone in world.discarded} == {one.transfer_id for one in opened}
        assert {gone.why for gone in world.discarded} == {"its session ended"}
        with pytest.raises(TransfersClosed):
            await world.begin(b"late")
        with pytest.raises(TransfersClosed):
            await world.resume(opened[0].transfer_id, 3, b"late")
        assert world.target.read_bytes() == b"old"


async def test_abandoned_upload_expires_and_a_used_one_does_not(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        abandoned, used = await world.begin(b"1"), await world.begin(b"2")
        world.seconds[0] = 400
        await world.resume(used.transfer_id, 1, b"2")
        world.seconds[0] = 600
        await world.transfers.sweep()
        assert [gone.transfer_id for gone in world.discarded] == [abandoned.transfer_id]
        assert world.discarded[0].why == "no chunk came for 600 s"
        assert len(world.parts) == 1
        with pytest.raises(TransferNotFound):
            await world.resume(abandoned.transfer_id, 1, b"")
        await world.resume(used.transfer_id, 2, b"", is_last=True)


async def test_expired_uploads_make_room_without_a_timer(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        for _ in range(SETTINGS.max_open):
            await world.begin(b"x")
        world.seconds[0] = 600
        await world.begin(b"y")
        assert len(world.parts) == 1


async def test_results_are_remembered_for_a_while_and_not_for_ever(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        done: list[Progress] = []
        for second in range(REMEMBERED_UPLOADS + 1):
            world.seconds[0] = second
            done.append(await world.begin(b"x", is_last=True))
        with pytest.raises(TransferNotFound):
            await world.resume(done[0].transfer_id, 0, b"x", is_last=True)
        assert await world.resume(done[1].transfer_id, 0, b"x", is_last=True) == done[1]
        world.seconds[0] = 5000
        await world.transfers.sweep()
        with pytest.raises(TransferNotFound):
            await world.resume(done[-1].transfer_id, 0, b"x", is_last=True)


async def test_refused_first_chunks_do_not_push_out_the_results_that_are_remembered(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        done = await world.begin(b"x", is_last=True)
        for second in range(REMEMBERED_UPLOADS):
            world.seconds[0] = second
            with pytest.raises(OffsetMismatch):
                await world.begin(b"x", offset=1)
        await world.begin(b"y", is_last=True)
        assert await world.resume(done.transfer_id, 0, b"x", is_last=True) == done


async def test_upload_that_is_given_up_is_gone_and_one_that_is_over_stays_as_it_is(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        uploads = world.transfers.uploads
        done = await world.begin(b"x", is_last=True)
        open_one = await world.begin(b"y")
        for transfer_id in (done.transfer_id, open_one.transfer_id, open_one.transfer_id, "unknown"):
            await uploads.discard(transfer_id, Cause.CANCELLED)
        assert [(gone.transfer_id, gone.cause) for gone in world.discarded] == [(open_one.transfer_id, Cause.CANCELLED)]
        assert world.parts == []
        with pytest.raises(TransferNotFound):
            await world.resume(open_one.transfer_id, 1, b"y")
        assert await world.resume(done.transfer_id, 0, b"x", is_last=True) == done


async def test_part_file_that_cannot_be_removed_is_reported_as_left_over(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        begun = await world.begin(b"x")
        (tmp_path / "parts" / world.parts[0]).unlink()
        await world.transfers.uploads.discard(begun.transfer_id, Cause.CANCELLED)
        assert [gone.leftover for gone in world.discarded] == [os.strerror(errno.ENOENT)]


@attrs.define(eq=False)
class InterruptedDoor(FolderDestination):
    """It cannot be committed, and whoever discards it is cancelled in the middle."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    async def commit(self) -> None:
        raise OSError("an error without a number")

    async def discard(self) -> None:
        self.scope.cancel()
        await trio.lowlevel.checkpoint()
        await FolderDestination.discard(self)


@pytest.mark.parametrize("ending", ["discard", "sweep", "close_all", "lost"])
async def test_part_file_is_removed_although_who_removes_it_is_cancelled(tmp_path: Path, ending: str) -> None:
    async with open_world(tmp_path) as world:
        uploads, door = world.transfers.uploads, InterruptedDoor.open(world.target)
        begun = await uploads.begin(str(world.target), door, offset=0, data=b"x", is_last=False)
        world.seconds[0] = SETTINGS.upload_idle_s
        ends = {
            "discard": lambda: uploads.discard(begun.transfer_id, Cause.EXPIRED),
            "sweep": uploads.sweep,
            "close_all": uploads.close_all,
            "lost": lambda: world.resume(begun.transfer_id, 1, b"", is_last=True),
        }
        with door.scope, suppress(UploadLost):
            await ends[ending]()
        assert world.parts == []
        assert [gone.leftover for gone in world.discarded] == [""]
        assert all(gone.why for gone in world.discarded)


async def test_who_leaves_waits_for_one_expired_upload_and_not_for_all(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        uploads, door = world.transfers.uploads, InterruptedDoor.open(world.target)
        first = await uploads.begin(str(world.target), door, offset=0, data=b"x", is_last=False)
        others = {(await world.begin(b"x")).transfer_id for _ in range(2)}
        world.seconds[0] = SETTINGS.upload_idle_s
        with door.scope:  # cancelled while the first one is discarded
            await uploads.sweep()
        assert [gone.transfer_id for gone in world.discarded] == [first.transfer_id]
        await uploads.sweep()
        assert {gone.transfer_id for gone in world.discarded[1:]} == others
        assert world.parts == []


async def test_upload_whose_chunk_is_being_written_does_not_expire(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"0")
        world.seconds[0] = 600
        answer, _ = await in_turn(
            world.limiter, lambda: world.resume(first.transfer_id, 1, b"1"), world.transfers.sweep
        )
        assert isinstance(answer, Progress)
        assert world.discarded == []


async def test_session_end_waits_for_the_chunk_under_way_and_closes_what_it_used(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first = await world.begin(b"0")
        answer, _ = await in_turn(
            world.limiter, lambda: world.resume(first.transfer_id, 1, b"1"), world.transfers.uploads.close_all
        )
        assert isinstance(answer, Progress)
        assert world.parts == []
