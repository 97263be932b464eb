"""A storm of sessions that are made, looked at and killed at once: each is born, and whoever comes too late is told."""

from __future__ import annotations

import attrs
import pytest
import trio

from bench.client import Connection, open_connection
from tests.support.live import running_broker

pytestmark = pytest.mark.soak

CLIENTS = 12
SESSIONS = 24  # of each client
TOO_LATE = ("SESSION_001", "SESSION_005", "PROC_001", "PROC_002")


@attrs.define
class Storm:
    """One client's two connections, and the answers that nobody should get."""

    one: Connection
    other: Connection
    odd: list[object]

    async def one_life(self) -> None:
        made = await self.one.call("create_session")
        if not made["success"]:
            self.odd.append(made)
            return
        session_id = made["session_id"]
        await self._must(self.one, "execute_command", session_id=session_id, argv=["true"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look, session_id)
            await self._must(self.one, "kill_session", *TOO_LATE, session_id=session_id, force=True)

    async def _must(self, connection: Connection, tool: str, *may_fail: str, **arguments: object) -> None:
        answer = await connection.call(tool, **arguments)
        if not answer["success"] and answer["error_code"] not in may_fail:
            self.odd.append(answer)

    async def _look(self, session_id: str) -> None:
        await self._must(self.other, "get_process_list", *TOO_LATE, session_id=session_id)
        await self._must(self.other, "kill_process", *TOO_LATE, session_id=session_id, pid=1)
        await self._must(self.other, "get_process_list")
        await self._must(self.other, "kill_session", *TOO_LATE, session_id=session_id)


@pytest.mark.bounded(300)
async def test_a_storm_of_ends_hurts_no_session_and_makes_no_incident() -> None:
    odd: list[object] = []

    async def client(port: int) -> None:
        async with open_connection(port) as one, open_connection(port) as other:
            for _ in range(SESSIONS):
                await Storm(one, other, odd).one_life()

    with running_broker({"sessions": {"max_concurrent": 2 * CLIENTS}}) as broker:
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client, broker.port)
    assert odd == []
