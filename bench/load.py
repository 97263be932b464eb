"""Many clients at once: how many commands a second the broker answers, and how many of them fail."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import trio

from bench.client import Connection, open_connection
from bench.servers import yardstick
from bench.table import Row, at_least_row, at_most_row
from tests.support.live import LiveBroker

CLIENTS = 8
CALLS_PER_SECOND = 200
WINDOWS = 3

Work = Callable[[Connection], Awaitable[object]]


async def load_rows(broker: LiveBroker, window_s: float) -> list[Row]:
    """Windows of the SDK's echo and of ours in turns; the rate is the median window's."""
    async with AsyncExitStack() as stack:
        echo_port = await stack.enter_async_context(yardstick("sdk"))
        first = await stack.enter_async_context(open_connection(broker.port))
        session = (await first.ok("create_session"))["session_id"]
        echo_rates, rates, failed = [], [], 0
        for _window in range(WINDOWS):
            echo_rates.append((await drive(echo_port, _echo, window_s))[0])
            rate, failures = await drive(broker.port, lambda c: execute(c, session), window_s)
            rates.append(rate)
            failed += failures
        await first.ok("kill_session", session_id=session, force=True)
    note = f"SDK echo {sorted(echo_rates)[WINDOWS // 2]:.0f}/s"
    return [
        at_least_row(
            f"execute_command, {CLIENTS} clients", sorted(rates)[WINDOWS // 2], CALLS_PER_SECOND, "calls/s", note
        ),
        at_most_row(f"failed calls with {CLIENTS} clients", failed, 0.5, "calls"),
    ]


async def drive(port: int, work: Work, window_s: float) -> tuple[float, int]:
    """Calls a second and failures while *CLIENTS* clients call as fast as they can."""
    ends, failures = 0, 0

    async def one_client() -> None:
        nonlocal ends, failures
        async with open_connection(port) as connection:
            while trio.current_time() < deadline:
                failures += 0 if await work(connection) else 1
                ends += 1

    start = time.perf_counter()
    deadline = trio.current_time() + window_s
    async with trio.open_nursery() as nursery:
        for _client in range(CLIENTS):
            nursery.start_soon(one_client)
    return ends / (time.perf_counter() - start), failures


async def _echo(connection: Connection) -> bool:
    return bool((await connection.call("echo", text="hello"))["success"])


async def execute(connection: Connection, session: str) -> bool:
    """Whether a command ran and ended well."""
    return bool((await connection.call("execute_command", session_id=session, argv=["true"])).get("success"))
