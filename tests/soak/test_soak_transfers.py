"""However large a file is, the broker holds a few chunks of it."""

from __future__ import annotations

import base64
import hashlib
import os

import psutil
import pytest

from tests.support.live import LiveBroker, connect, new_session, ok, running_broker

pytestmark = [pytest.mark.soak]

MIB = 1024 * 1024
HUGE_BYTES = 10_000_000_000
CHUNKS = 100
SLACK_BYTES = 40 * MIB
"""A chunk, its base64, the answer as text and as bytes, and what the allocator keeps of a few of them."""


def rss_bytes(broker: LiveBroker) -> int:
    held: int = psutil.Process(broker.process.pid).memory_info().rss
    return held


@pytest.mark.bounded(300)
async def test_memory_stays_flat_for_a_sparse_file_of_ten_gigabytes() -> None:
    with running_broker() as broker:
        for name, size in (("small", 8 * MIB), ("huge", HUGE_BYTES)):
            (broker.workspace / name).touch()
            os.truncate(broker.workspace / name, size)
        with (broker.workspace / "huge").open("r+b") as file:
            file.seek(HUGE_BYTES // 2)
            file.write(b"in the middle")
        async with connect(broker) as client:
            sid = await new_session(client, working_dir=str(broker.workspace))
            for number in range(8):
                await ok(client, "download_file", session_id=sid, path="small", chunk_size=MIB, offset=number * MIB)
            before = rss_bytes(broker)
            for number in range(CHUNKS):
                offset = number * HUGE_BYTES // CHUNKS
                chunk = await ok(client, "download_file", session_id=sid, path="huge", chunk_size=MIB, offset=offset)
                data = base64.b64decode(chunk["chunk_data"])
                assert data == (b"in the middle" if offset == HUGE_BYTES // 2 else b"").ljust(MIB, b"\0")
                assert rss_bytes(broker) - before < SLACK_BYTES


@pytest.mark.bounded(300)
async def test_memory_stays_flat_while_a_large_file_is_uploaded() -> None:
    with running_broker() as broker:
        async with connect(broker) as client:
            sid = await new_session(client, working_dir=str(broker.workspace))
            transfer_id, digest = "", hashlib.sha256()
            for number in range(2 * CHUNKS):
                data = os.urandom(MIB)
                digest.update(data)
                answer = await ok(
                    client,
                    "upload_file",
                    session_id=sid,
                    path="up",
                    chunk_data=base64.b64encode(data).decode(),
                    transfer_id=transfer_id,
                    chunk_offset=number * MIB,
                    is_last=number == 2 * CHUNKS - 1,
                )
                transfer_id = answer["transfer_id"]
                if number == 8:
                    before = rss_bytes(broker)
                if number > 8:
                    assert rss_bytes(broker) - before < SLACK_BYTES
            assert answer["sha256"] == digest.hexdigest()
