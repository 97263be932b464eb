"""Sessions belong to the broker, not to a connection: who comes and goes leaves those of others alone."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

import pytest

from tests.support.live import ERAS, LEGACY, MODERN, LiveBroker, call, connect, new_session, ok, run, running_broker

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker({"sessions": {"max_concurrent": 64}}) as running:
        yield running


@pytest.mark.parametrize("second", ERAS)
@pytest.mark.parametrize("first", ERAS)
async def test_a_client_that_comes_and_goes_leaves_the_sessions_of_others_alone(
    broker: LiveBroker, first: str, second: str
) -> None:
    async with connect(broker, first) as client:
        session_id = await new_session(client)
        for _visit in range(3):
            async with connect(broker, second) as visitor:  # a legacy client says DELETE when it leaves
                await ok(visitor, "get_system_info")
        assert (await run(client, session_id, "echo", "still here"))["stdout"] == "still here\n"
        assert broker.audit()[-1]["session_id"] == session_id


async def test_a_request_that_is_refused_leaves_the_sessions_alone(broker: LiveBroker) -> None:
    async with connect(broker, LEGACY) as client:
        session_id = await new_session(client)
        assert broker.request("POST", "/mcp", b"{}", Host="evil.example", Content_Type="application/json")[0] in (
            403,
            421,
        )
        assert broker.request("POST", "/mcp", b"{}", Origin="http://evil.example")[0] == 403
        assert broker.request("DELETE", "/mcp", Mcp_Session_Id="0" * 32)[0] in (400, 404, 405)
        assert (await run(client, session_id, "echo", "still here"))["stdout"] == "still here\n"


async def test_a_session_outlives_the_connection_that_made_it(broker: LiveBroker) -> None:
    async with connect(broker, LEGACY) as client:
        session_id = await new_session(client)
    async with connect(broker, MODERN) as client:
        assert (await run(client, session_id, "echo", "found again"))["stdout"] == "found again\n"


async def test_an_id_is_the_clients_own_or_too_random_to_guess(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        own = await new_session(client, id="my.own_id-1")
        assert own == "my.own_id-1"
        minted = {await new_session(client) for _ in range(5)}
        assert len(minted) == 5
        assert all(re.fullmatch(r"[A-Za-z0-9._-]{22,64}", each) for each in minted)
        for bad in ("a/../../x", "", "x" * 65, "a b", "ä", "a\n"):
            assert (await call(client, "create_session", id=bad)).error[0] == "ARG_001"
        await ok(client, "kill_session", session_id=own)
        assert await new_session(client, id=own) == own, "an id is free again after its session"


async def test_killing_a_session_drops_its_unfinished_upload_and_leaves_the_destination(broker: LiveBroker) -> None:
    (broker.workspace / "kept").write_text("as it was")
    (broker.workspace / "kept").chmod(0o666)
    before = sorted(path.name for path in broker.workspace.iterdir())
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        chunk = base64.b64encode(b"half").decode()
        await ok(client, "upload_file", session_id=session_id, path="kept", chunk_data=chunk)
        await ok(client, "kill_session", session_id=session_id)
    assert (broker.workspace / "kept").read_text() == "as it was"
    assert sorted(path.name for path in broker.workspace.iterdir()) == before


async def test_a_transfer_of_one_session_does_not_exist_for_another(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        mine, yours = [await new_session(client, working_dir=str(broker.workspace)) for _ in range(2)]
        chunk = base64.b64encode(b"half").decode()
        begun = await ok(client, "upload_file", session_id=mine, path="t", chunk_data=chunk)
        stolen = {"path": "t", "chunk_data": chunk, "transfer_id": begun["transfer_id"], "chunk_offset": 4}
        assert (await call(client, "upload_file", session_id=yours, **stolen, is_last=True)).error[0] == "TRANSFER_001"
        assert (await ok(client, "upload_file", session_id=mine, **stolen, is_last=True))["is_complete"]
    assert (broker.workspace / "t").read_bytes() == b"halfhalf"


async def test_sessions_see_and_signal_only_their_own_processes(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        mine, yours = [await new_session(client) for _ in range(2)]
        started = await run(client, mine, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
        pid = int(started["stdout"])
        seen = await ok(client, "get_process_list", session_id=yours)
        assert pid not in [each["pid"] for each in seen["processes"]]
        assert (await call(client, "kill_process", session_id=yours, pid=pid)).error[0] in ("PROC_001", "PROC_002")
        asked = await ok(client, "kill_process", session_id=mine, pid=pid, signal=0)
        assert asked["was_running"] is True, "a signal 0 does not forget the process"
        assert (await ok(client, "kill_process", session_id=mine, pid=pid, signal=9))["was_running"] is True
        assert (await call(client, "kill_process", session_id=mine, pid=pid, signal=999)).error[0] == "ARG_001"
