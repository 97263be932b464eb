"""How long a single call takes, with one client: commands, sessions, small files, and the yardsticks beside them."""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from bench.client import Connection, open_connection
from bench.rounds import Probe, interleaved
from bench.servers import yardstick
from bench.share import open_share
from bench.table import Row, p50_row, yardstick_row
from tests.support.live import LiveBroker

TRUE = ["/bin/true"]
R = "R: captured trio.run_process(/bin/true)"
BARE = "bare ASGI echo on Hypercorn-trio"
E = "E: echo tool of the bare SDK on Hypercorn-trio"
FSYNC = "write 1 KB, fsync, rename, fsync folder (thread)"
EXECUTE = "execute_command /bin/true, one client"
SHARE = "gateway + session + sandbox alone"
CREATE = "create_session"
READ = "read_file 1 KB"
WRITE = "write_file 1 KB"
KB = "x" * 1024


async def latency_rows(broker: LiveBroker, rounds: int) -> list[Row]:
    """Measure all of them in turns."""
    async with _probes(broker) as (probes, rare):
        samples = await interleaved(probes, rare, rounds)
    p50 = {name: statistics.median(taken) for name, taken in samples.items()}
    r, e = p50[R], p50[E]
    return [
        *(yardstick_row(name, samples[name]) for name in (R, BARE, E, FSYNC)),
        p50_row(EXECUTE, samples[EXECUTE], e + 1.5 * r, "E + 1.5 R"),
        p50_row(SHARE, samples[SHARE], 1.5 * r, "1.5 R"),
        p50_row(CREATE, samples[CREATE], 0.015, ""),
        p50_row(READ, samples[READ], e + 0.001, "E + 1 ms"),
        p50_row(WRITE, samples[WRITE], e + 0.001 + p50[FSYNC], "E + 1 ms + fsync"),
    ]


@asynccontextmanager
async def _probes(broker: LiveBroker) -> AsyncIterator[tuple[dict[str, Probe], dict[str, Probe]]]:
    """The probes, and the rare one: sessions are not created so fast that no spare could be warm."""
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(open_connection(await stack.enter_async_context(yardstick("bare"))))
        sdk = await stack.enter_async_context(open_connection(await stack.enter_async_context(yardstick("sdk"))))
        ours = await stack.enter_async_context(open_connection(broker.port))
        share = await stack.enter_async_context(open_share())
        session = (await ours.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        await ours.ok("write_file", session_id=session, path="kb", content=KB)
        probes: dict[str, Probe] = {
            R: _run_true,
            BARE: lambda: bare.post("/", {}, b"{}"),
            E: lambda: sdk.ok("echo", text="hello"),
            EXECUTE: lambda: ours.ok("execute_command", session_id=session, argv=["true"]),
            SHARE: share,
            READ: lambda: ours.ok("read_file", session_id=session, path="kb"),
            WRITE: lambda: ours.ok("write_file", session_id=session, path="kb", content=KB),
            FSYNC: lambda: trio.to_thread.run_sync(durable_write, broker.workspace),
        }
        yield probes, {CREATE: _creator(ours, stack)}
        await ours.ok("kill_session", session_id=session, force=True)


async def _run_true() -> None:
    await trio.run_process(TRUE, capture_stdout=True, capture_stderr=True)


def _creator(ours: Connection, stack: AsyncExitStack) -> Probe:
    """create_session; the sessions are killed when all is measured."""
    made: list[str] = []

    async def create() -> None:
        made.append((await ours.ok("create_session"))["session_id"])

    async def end_all() -> None:
        for session in made:
            await ours.ok("kill_session", session_id=session, force=True)

    stack.push_async_callback(end_all)
    return create


def durable_write(folder: Path) -> None:
    """The least that an atomic, durable write of 1 KB costs on this disk."""
    part, whole = folder / "part", folder / "whole"
    with part.open("wb") as file:
        file.write(KB.encode())
        file.flush()
        os.fsync(file.fileno())
    part.rename(whole)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
