"""The audit log tells the story: one begin and one end record for each call, with all fields, and no secrets."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

from broker.audit.refusals import IN_FULL
from tests.support.live import ERAS, LiveBroker, call, connect, new_session, ok, run, running_broker

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours

HIDDEN = "hunter2-and-more"
COMMON = {"timestamp", "event_type", "session_id", "tool_name", "arguments", "request_id", "principal", "client"}
BEGUN = {"TOOL_CALLED", "COMMAND_STARTED"}


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


async def one_of_each(broker: LiveBroker, client: Client) -> str:
    """Every tool once, each with a secret where a secret can be; the session's id."""
    session_id = await new_session(client, working_dir=str(broker.workspace), environment={"API_TOKEN": HIDDEN})
    mine = {"session_id": session_id}
    chunk = base64.b64encode(HIDDEN.encode()).decode()
    await run(client, session_id, "cat", stdin_input=HIDDEN)
    await ok(client, "write_file", **mine, path="secret", content=HIDDEN)
    await ok(client, "upload_file", **mine, path="secret2", chunk_data=chunk, is_last=True)
    await ok(client, "read_file", **mine, path="secret")
    await ok(client, "download_file", **mine, path="secret")
    await ok(client, "list_directory", **mine)
    await ok(client, "get_system_info")
    await ok(client, "get_process_list", **mine)
    await call(client, "kill_process", **mine, pid=4_194_304)
    await call(client, "read_file", **mine, path="/etc/shadow")
    await ok(client, "kill_session", **mine)
    return session_id


def stories(broker: LiveBroker) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The records of calls, those of one call together: a request id is unique within one client's connection."""
    calls: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in broker.audit():
        if "tool_name" in record:
            calls[record["client"], record["request_id"], record["tool_name"]].append(record)
    return calls


@pytest.mark.parametrize("era", ERAS)
async def test_each_call_has_one_begin_and_one_end_record(era: str) -> None:
    with running_broker() as broker:
        async with connect(broker, era) as client:
            await one_of_each(broker, client)
        told = stories(broker)
        assert len(told) == 12
        for (_client, _id, tool), records in told.items():
            kinds = [record["event_type"] in BEGUN for record in records]
            refused = records[-1].get("error_code", "").startswith("POLICY")
            assert kinds == ([False] if refused else [True, False]), (tool, records)


async def test_an_end_record_has_every_field(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        await run(client, session_id, "false")
        record = broker.audit()[-1]
        assert record["event_type"] == "COMMAND_COMPLETED"
        assert set(record) >= COMMON | {"exit_code", "duration_ms", "rule"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["timestamp"])
        assert (record["session_id"], record["exit_code"]) == (session_id, 1)
        assert record["arguments"]["argv"] == ["false"]
        assert record["rule"].startswith("allowed_commands.false")
        assert "mcp" in record["client"]


async def test_a_refused_command_is_told_as_the_customer_wants_it(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        await run(client, session_id, "curl", "example.com")
        for log in ("audit.log", "audit-errors.log"):
            record = broker.audit(log)[-1]
            assert record["event_type"] == "COMMAND_FAILED"
            assert (record["tool_name"], record["error_code"]) == ("execute_command", "POLICY_001")
            assert "curl" in record["error"]
            assert record["arguments"]["argv"] == ["curl", "example.com"]


async def test_contents_and_secrets_are_never_logged() -> None:
    with running_broker() as broker:
        async with connect(broker) as client:
            await one_of_each(broker, client)
        logged = "".join((broker.base / "log" / name).read_text() for name in ("audit.log", "audit-errors.log"))
        assert HIDDEN not in logged
        assert base64.b64encode(HIDDEN.encode()).decode() not in logged
        assert hashlib.sha256(HIDDEN.encode()).hexdigest() in logged, "a digest stands for the content"


async def test_bytes_and_digests_are_recorded(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        await ok(client, "write_file", session_id=session_id, path="f", content="12345")
        assert broker.audit()[-1]["bytes"] == 5
        chunk = base64.b64encode(b"123456").decode()
        await ok(client, "upload_file", session_id=session_id, path="g", chunk_data=chunk, is_last=True)
        assert broker.audit()[-1]["bytes"] == 6
        assert broker.audit()[-1]["sha256"] == hashlib.sha256(b"123456").hexdigest()


async def test_refused_arguments_and_unknown_tools_are_recorded(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        with pytest.raises(MCPError, match="no_such_tool"):  # the protocol's own error, as its specification has it
            await call(client, "no_such_tool", x=1)
        assert (broker.audit()[-1]["tool_name"], broker.audit()[-1]["error_code"]) == ("no_such_tool", "ARG_001")
        await call(client, "read_file", session_id="x")
        assert (broker.audit()[-1]["tool_name"], broker.audit()[-1]["error_code"]) == ("read_file", "ARG_001")


async def test_a_line_break_in_an_argument_stays_on_its_line(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        forged = 'x"}\n{"timestamp": "2026-01-01T00:00:00Z", "event_type": "FORGED"}\u202e\x7f'
        await run(client, session_id, "echo", forged)
        assert broker.audit()[-1]["arguments"]["argv"] == ["echo", forged]
        assert "FORGED" not in {record["event_type"] for record in broker.audit()}


def test_the_logs_are_private_and_say_when_the_server_started(broker: LiveBroker) -> None:
    for name in ("audit.log", "audit-errors.log"):
        assert (broker.base / "log" / name).stat().st_mode & 0o777 == 0o600
    assert broker.audit()[0]["event_type"] == "SERVER_START"


@pytest.mark.parametrize("what", ["argv", "transfers"])
async def test_a_flood_of_refusals_leaves_the_log_small(what: str) -> None:
    calls = 200
    with running_broker() as broker:
        async with connect(broker) as client:
            session = await new_session(client)
            for _number in range(calls):
                if what == "argv":
                    assert (await run(client, session, "curl", *["x" * 512] * 64)).is_error
                else:
                    assert (await trio.to_thread.run_sync(broker.request, "GET", "/transfers/x"))[0] == 404
        broker.stop()
        counted = [record for record in broker.audit() if record["event_type"] == "REFUSALS_COUNTED"]
        assert [record["details"]["refused"] for record in counted] == [calls - IN_FULL]
        assert (broker.base / "log" / "audit.log").stat().st_size < 100_000
