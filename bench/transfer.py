"""How fast files go up and down in chunks, and that the broker's memory does not know how large they are."""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

from bench.client import Connection, open_connection
from bench.table import MB, Row, at_least_row, at_most_row, missing_row
from tests.support.live import LiveBroker

CHUNK_BYTES = 1_048_576
MB_PER_S = 105
"""100 MiB/s: four times what the reference does at best."""
INDEPENDENT_MB = 10


async def transfer_rows(broker: LiveBroker, chunks: int) -> list[Row]:
    """A small file, then one four times as large; the rates are the large one's."""
    async with open_connection(broker.port) as connection:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        first_peak = await _peak_of(broker, connection, session, chunks // 4)
        up_s, down_s, peak = await _both_ways(broker, connection, session, chunks)
        await connection.ok("kill_session", session_id=session, force=True)
    megabytes = chunks * CHUNK_BYTES / MB
    rows = [
        at_least_row("upload in chunks of 1 MiB", megabytes / up_s, MB_PER_S, "MB/s"),
        at_least_row("download in chunks of 1 MiB", megabytes / down_s, MB_PER_S, "MB/s"),
    ]
    what = "peak memory, file four times as large"
    if peak is None or first_peak is None:
        return [*rows, missing_row(what, "clear_refs is not ours to write")]
    return [*rows, at_most_row(what, peak - first_peak, INDEPENDENT_MB, "MB more RSS")]


async def _peak_of(broker: LiveBroker, connection: Connection, session: str, chunks: int) -> float | None:
    return (await _both_ways(broker, connection, session, chunks))[2]


async def _both_ways(
    broker: LiveBroker, connection: Connection, session: str, chunks: int
) -> tuple[float, float, float | None]:
    """Seconds up, seconds down, and the broker's peak memory of both in MB."""
    resettable = reset_peak(broker.process.pid)
    start = time.perf_counter()
    chunk = base64.b64encode(os.urandom(CHUNK_BYTES))
    digest = await _upload(connection, session, chunks, chunk)
    turn = time.perf_counter()
    if await _download(connection, session, chunk) != digest:
        raise RuntimeError("the file came back changed")
    end = time.perf_counter()
    (broker.workspace / "file").unlink()
    return turn - start, end - turn, peak_mb(broker.process.pid) if resettable else None


async def _upload(connection: Connection, session: str, chunks: int, chunk: bytes) -> str:
    transfer, answer = "", {}
    for index in range(chunks):
        answer = await connection.ok(
            "upload_file",
            session_id=session,
            path="file",
            chunk_data=chunk,
            transfer_id=transfer,
            chunk_offset=index * CHUNK_BYTES,
            is_last=index == chunks - 1,
        )
        transfer = answer["transfer_id"]
    digest: str = answer["sha256"]
    return digest


async def _download(connection: Connection, session: str, chunk: bytes) -> str:
    """Every chunk of the file must be *chunk*."""
    offset = 0
    while True:
        answer = await connection.ok(
            "download_file", chunk, session_id=session, path="file", chunk_size=CHUNK_BYTES, offset=offset
        )
        if answer["chunk_data"] or answer["chunk_size"] != CHUNK_BYTES:
            raise RuntimeError("the file came back changed")
        offset += answer["chunk_size"]
        if answer["is_complete"]:
            digest: str = answer["sha256"]
            return digest


def reset_peak(pid: int) -> bool:
    """Make VmHWM start again from now; False where the kernel does not let us."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb(pid: int) -> float:
    """The most memory of the process since then, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"no VmHWM for {pid}")
