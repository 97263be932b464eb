"""One session's transfers: what sweeps and what ends is for uploads and downloads alike."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from tests.support.descriptors import open_descriptors
from tests.transfers.test_transfers_uploads import SETTINGS, World, open_world
from transfers.refusals import QuotaExceeded, TransfersClosed
from transfers.upload import Cause


async def begin_both(world: World) -> None:
    (world.folder / "source").write_bytes(b"0123456789")

    async def open_file() -> int:
        return os.open(world.folder / "source", os.O_RDONLY | os.O_CLOEXEC)

    await world.begin(b"abc")
    read = world.transfers.downloads.read
    assert (await read("source", offset=0, chunk_bytes=4, open_file=open_file)).data == b"0123"


async def test_a_sweep_is_of_uploads_and_of_downloads(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        before = open_descriptors()
        await begin_both(world)
        world.seconds[0] = SETTINGS.download_idle_s
        await world.transfers.sweep()
        assert len(open_descriptors() - before) == 1, "an upload may take longer"
        world.seconds[0] = SETTINGS.upload_idle_s
        await world.transfers.sweep()
        assert open_descriptors() == before
        assert [gone.cause for gone in world.discarded] == [Cause.IDLE]


async def test_the_end_is_of_uploads_and_of_downloads(tmp_path: Path) -> None:
    before = open_descriptors()
    async with open_world(tmp_path) as world:
        await begin_both(world)
    assert open_descriptors() == before
    assert [gone.cause for gone in world.discarded] == [Cause.SESSION_ENDED]
    with pytest.raises(TransfersClosed):
        await begin_both(world)


async def test_other_writers_of_the_session_count_against_the_same_limit(tmp_path: Path) -> None:
    async with open_world(tmp_path, attrs.evolve(SETTINGS, max_session_bytes=10)) as world:
        with world.transfers.quota.taken(8), pytest.raises(QuotaExceeded):
            await world.begin(b"abc")
