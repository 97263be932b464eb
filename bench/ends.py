"""How late a call answers whose command must be ended, and whether anything of its tree is left by then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from bench.client import Connection, open_connection
from bench.table import MS, Row, at_most_row
from tests.support.live import GRACE_S, LiveBroker, marked
from tests.support.live_trees import SHAPES, Tree, tree

TIMEOUT_S = 0.4
LATE_MS = 100

Ending = Callable[[Connection, str, Tree], Awaitable[float]]


async def end_rows(broker: LiveBroker, rounds: int) -> list[Row]:
    """One row for each way to end a tree, the worst of its shapes named; and one for the survivors."""
    rows, survivors = [], 0
    for what, end in (("timeout", _timeout), ("kill_session", _kill), ("kill_session force", _kill_hard)):
        late: dict[str, float] = {}
        for shape in SHAPES:
            for _round in range(rounds):
                late_ms, left = await _measure(broker, shape, end)
                late[shape] = max(late_ms, late.get(shape, late_ms))
                survivors += left
        worst = max(late, key=lambda shape: late[shape])
        said = f"{what}: answer after deadline + grace" if end is not _kill_hard else f"{what}: answer"
        rows.append(at_most_row(f"{said}, worst of {len(SHAPES)} trees", late[worst], LATE_MS, "ms", worst))
    return [*rows, at_most_row("processes left when those calls have answered", survivors, 0.5, "processes")]


async def _measure(broker: LiveBroker, shape: str, end: Ending) -> tuple[float, int]:
    """Milliseconds past the last moment, and how many processes are left."""
    async with open_connection(broker.port) as connection, tree(shape, broker.workspace) as shaped:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        late_s = await end(connection, session, shaped)
        left = len(marked(shaped.mark))
        await connection.call("kill_session", session_id=session, force=True)
        return late_s * MS, left


async def _timeout(connection: Connection, session: str, shaped: Tree) -> float:
    start = trio.current_time()
    argv = ["sh", "-c", shaped.script]
    answer = await connection.call("execute_command", session_id=session, argv=argv, timeout_seconds=TIMEOUT_S)
    if not answer.get("timed_out"):
        raise RuntimeError(f"no timeout: {answer}")
    return trio.current_time() - start - TIMEOUT_S - GRACE_S


async def _kill(connection: Connection, session: str, shaped: Tree) -> float:
    return await _kill_after(connection, session, shaped, force=False) - GRACE_S


async def _kill_hard(connection: Connection, session: str, shaped: Tree) -> float:
    return await _kill_after(connection, session, shaped, force=True)


async def _kill_after(connection: Connection, session: str, shaped: Tree, *, force: bool) -> float:
    """Seconds from kill_session to the later of the two answers."""
    port = int(connection.host.rpartition(":")[2])
    async with open_connection(port) as other, trio.open_nursery() as nursery:
        argv = ["sh", "-c", shaped.script]
        nursery.start_soon(lambda: other.call("execute_command", session_id=session, argv=argv))
        await shaped.wait_up()
        start = trio.current_time()
        await connection.ok("kill_session", session_id=session, force=force)
    return trio.current_time() - start
