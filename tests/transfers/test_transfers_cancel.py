"""Cancel everywhere: the same work, cancelled at its first step, its second, and so on until it gets through.

After each: no descriptor, no part file, and the destination is the old or the new file, whole. And what a
client would do next, repeating the call whose answer it lost, ends well.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

from tests.transfers.test_transfers_downloads import World as DownloadWorld
from tests.transfers.test_transfers_downloads import open_world as open_download_world
from tests.transfers.test_transfers_uploads import World, open_world, sha256sum
from transfers.upload import Progress

OLD, NEW = b"old", b"abcdefghi"


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels *scope* when *task* is stepped for the nth time; delivered at its next checkpoint."""

    task: trio.lowlevel.Task
    scope: trio.CancelScope
    step: int
    seen: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.seen += 1
            if self.seen == self.step:
                self.scope.cancel()


async def cancelled_at(step: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Run *work* cancelled at its *step*th step; return whether it came to that."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return instrument.seen >= step


async def upload(world: World) -> None:
    progress = await world.begin(NEW[:3])
    progress = await world.resume(progress.transfer_id, 3, NEW[3:6])
    await world.resume(progress.transfer_id, 6, NEW[6:], is_last=True)


async def test_session_cancelled_at_any_step_of_an_upload_leaves_nothing(tmp_path: Path) -> None:
    outcomes = set()

    async def session() -> None:
        async with open_world(tmp_path) as world:  # it checks descriptors and part files itself
            await upload(world)

    for step in itertools.count(1):
        (tmp_path / "target").write_bytes(OLD)
        was_cancelled = await cancelled_at(step, session)
        assert list((tmp_path / "parts").iterdir()) == []
        outcomes.add((tmp_path / "target").read_bytes())
        if not was_cancelled:
            break
    assert step > 10
    assert outcomes == {OLD, NEW}


@pytest.mark.parametrize("lost", [1, 2])
async def test_call_cancelled_at_any_step_can_be_repeated(tmp_path: Path, lost: int) -> None:
    """The client of an upload of three chunks loses the answer to one of them, and sends the chunk again."""
    for step in itertools.count(1):
        (tmp_path / "target").write_bytes(OLD)
        async with open_world(tmp_path) as world:
            first = await world.begin(NEW[:3])
            for number in range(1, lost):
                await send(world, first, number)
            was_cancelled = await cancelled_at(step, functools.partial(send, world, first, lost))
            assert world.target.read_bytes() in ({OLD, NEW} if lost == 2 else {OLD})
            for number in range(lost, 3):
                last = await send(world, first, number)
            assert last.sha256 == sha256sum(world.target)
            assert world.target.read_bytes() == NEW
            assert world.discarded == []
        if not was_cancelled:
            break
    assert step > (2 if lost == 1 else 4)


async def send(world: World, first: Progress, number: int) -> Progress:
    data = NEW[3 * number : 3 * number + 3]
    return await world.resume(first.transfer_id, 3 * number, data, is_last=number == 2)


async def test_begin_cancelled_at_any_step_leaves_no_open_upload(tmp_path: Path) -> None:
    for step in itertools.count(1):
        opened: list[Progress] = []
        async with open_world(tmp_path) as world:

            async def begin(world: World = world, opened: list[Progress] = opened) -> None:
                opened.append(await world.begin(NEW))

            was_cancelled = await cancelled_at(step, begin)
            assert len(world.parts) == len(opened)
        if not was_cancelled:
            break
    assert step > 2


async def test_download_cancelled_at_any_step_leaves_no_descriptor_and_can_be_repeated(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(NEW)
    for step in itertools.count(1):
        async with open_download_world() as world:

            async def download(world: DownloadWorld = world) -> None:
                for offset in (0, 3, 8):  # out of order, so that the last one hashes the rest
                    await world.read(path, offset, 3)

            was_cancelled = await cancelled_at(step, download)
            chunks = [await world.read(path, offset, 3) for offset in (0, 3, 6)]
            assert b"".join(chunk.data for chunk in chunks) == NEW
            assert chunks[-1].sha256 == sha256sum(path)
        if not was_cancelled:
            break
    assert step > 5
