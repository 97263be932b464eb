"""That the broker's memory does not know how large a file is: chunks from all over a huge sparse one, and its hash."""

from __future__ import annotations

import os
import time

from bench.client import Connection, open_connection
from bench.memory import Held
from bench.table import MB, Row, at_most_row, missing_row
from bench.transfer import CHUNK_BYTES, peak_mb, reset_peak
from tests.support.live import LiveBroker

CHUNKS = 64
MORE_MB = 40
"""A chunk, its base64, the answer as text and as bytes, and room for what the allocator keeps of a few of them."""


async def sparse_rows(broker: LiveBroker, gigabytes: float) -> list[Row]:
    """Warm up on a file of some chunks, then the huge one; its last chunk has the hash of all of it."""
    size_bytes = int(gigabytes * 1e9)
    for name, size in (("small", 8 * CHUNK_BYTES), ("huge", size_bytes)):
        os.truncate(_made(broker, name), size)
    async with open_connection(broker.port) as connection:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        await _chunks(connection, session, "small", 8 * CHUNK_BYTES)
        before = Held.of(broker.process.pid)
        resettable = reset_peak(broker.process.pid)
        await _chunks(connection, session, "huge", size_bytes)
        start = time.perf_counter()
        last = await _chunk(connection, session, "huge", size_bytes - CHUNK_BYTES)
        seconds = time.perf_counter() - start
        await connection.ok("kill_session", session_id=session, force=True)
    if not last["sha256"]:
        raise RuntimeError("the last chunk has no digest")
    what = f"peak memory, sparse file of {gigabytes:g} GB"
    if not resettable:
        return [missing_row(what, "clear_refs is not ours to write")]
    more_mb = peak_mb(broker.process.pid) - before.rss_mb
    note = f"its hash {size_bytes / seconds / MB:.0f} MB/s"
    return [at_most_row(what, more_mb, MORE_MB, "MB more RSS", note)]


def _made(broker: LiveBroker, name: str) -> str:
    path = broker.workspace / name
    path.touch()
    return str(path)


async def _chunks(connection: Connection, session: str, path: str, size_bytes: int) -> None:
    for number in range(CHUNKS):
        await _chunk(connection, session, path, number * (size_bytes - CHUNK_BYTES) // CHUNKS)


async def _chunk(connection: Connection, session: str, path: str, offset: int) -> dict[str, object]:
    answer = await connection.ok("download_file", session_id=session, path=path, chunk_size=CHUNK_BYTES, offset=offset)
    if answer["chunk_size"] != CHUNK_BYTES:
        raise RuntimeError(f"{answer['chunk_size']} bytes came at {offset}")
    return answer
