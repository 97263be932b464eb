"""Each entry of audit-errors.log has a code, also of what nobody waited for; what was asked for is not in it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psutil
import pytest
import trio

from broker.contract.errors import ErrorCode
from tests.support.live import LiveBroker, call, connect, new_session, ok, run, running_broker
from tests.support.live_urls import ask, at_desk, digest, put_some

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.long,
    pytest.mark.once,
]
CHUNK = base64.b64encode(b"some").decode()


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


async def until_told(broker: LiveBroker, log: str, **facts: Any) -> dict[str, Any]:
    """The first record of a log with these facts; the test's own bound ends the waiting."""
    while True:
        for record in broker.audit(log):
            if facts.items() <= record.items():
                return record
        await trio.sleep(0.01)


async def test_a_call_whose_client_left_is_told_with_its_code(broker: LiveBroker) -> None:
    async with connect(broker) as client, trio.open_nursery() as nursery:
        mine = await new_session(client)
        nursery.start_soon(run, client, mine, "sleep", "30")
        await until_told(broker, "audit.log", event_type="COMMAND_STARTED", session_id=mine)
        nursery.cancel_scope.cancel()
    record = await until_told(broker, "audit-errors.log", session_id=mine)
    assert (record["event_type"], record["error_code"]) == ("COMMAND_FAILED", ErrorCode.CALL_CANCELLED.code)


async def test_a_request_on_a_url_that_was_cut_is_told_with_its_code(broker: LiveBroker) -> None:
    (broker.workspace / "f").write_bytes(b"content")
    async with at_desk(broker) as desk:
        up, down = await desk.open("upload", "g"), await desk.open("download", "f")
        await put_some(up["url"], b"some", 100)
        record = await until_told(broker, "audit-errors.log", session_id=desk.session_id)
        assert (record["error"], record["error_code"]) == ("the client left before the end", "CALL_001")
        assert (await ask("GET", down["url"], Range="bytes=100-")).status == 416
        record = await until_told(broker, "audit-errors.log", session_id=desk.session_id, error_code="ARG_001")
        assert "behind the end" in record["error"]


async def test_an_upload_that_ends_as_it_was_asked_to_is_no_failure(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        named = {"session_id": desk.session_id}
        cancelled, kept = await desk.open("upload", "f"), await desk.open("upload", "g")
        chunked = await ok(desk.client, "upload_file", **named, path="h", chunk_data=CHUNK)
        await ok(desk.client, "cancel_transfer", **named, transfer_id=cancelled["transfer_id"])
        await ok(desk.client, "kill_session", **named)
        told = [
            r for r in broker.audit() if r["event_type"] == "UPLOAD_DISCARDED" and r["session_id"] in named.values()
        ]
        assert {(r["details"]["transfer_id"], r["details"]["why"]) for r in told} == {
            (cancelled["transfer_id"], "it was cancelled"),
            (kept["transfer_id"], "its session ended"),
            (chunked["transfer_id"], "its session ended"),
        }
        assert [r for r in broker.audit("audit-errors.log") if r.get("session_id") in named.values()] == []


async def test_an_upload_of_other_bytes_than_declared_is_a_failure_twice(broker: LiveBroker) -> None:
    """The request failed, and what was received is gone; both are told with the same code."""
    async with at_desk(broker) as desk:
        up = await desk.open("upload", "f", sha256=digest(b"meant"))
        assert (await ask("PUT", up["url"], b"other")).code == "TRANSFER_MISMATCH"
        told = [r for r in broker.audit("audit-errors.log") if r.get("session_id") == desk.session_id]
        assert [r["error_code"] for r in told] == ["TRANSFER_005", "TRANSFER_005"]
        assert "was discarded" in told[0]["error"]


async def test_a_session_whose_first_process_is_killed_is_told_with_its_code(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        mine = await new_session(client)
        pid = (await ok(client, "execute_command", session_id=mine, argv=["sleep", "30"], background=True))["pid"]
        above = psutil.Process(pid).parents()
        init = next(each for each, parent in pairwise(above) if parent.pid == broker.process.pid)
        init.kill()
        record = await until_told(broker, "audit-errors.log", event_type="SESSION_FAILED", session_id=mine)
        assert (record["error_code"], record["details"]["reason"]) == ("SESSION_005", "its init process ended")
        assert (await call(client, "list_commands", session_id=mine)).error[
            0
        ] == "SESSION_005"  # a client is told it too
