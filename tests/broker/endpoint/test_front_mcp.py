"""What an MCP client gets from the front door, in both protocol eras, over real HTTP."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import trio
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Implementation, TextContent

from broker.http.asgi import LARGE_EVENT_BYTES, as_json
from tests.support.front import BULK, LEGACY, MODERN, House, legacy_call, legacy_session, raw, serving, sse_messages

# The SDK's client leaves the generators of a stream that it stops reading to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY])


def client(house: House, era: Any) -> Client:
    return Client(house.url, mode=era, client_info=Implementation(name="prober", version="7"))


def text_of(result: CallToolResult) -> Any:
    assert isinstance(result.content[0], TextContent)
    return json.loads(result.content[0].text)


@ERAS
async def test_tools_are_listed_with_all_that_a_client_needs(era: str) -> None:
    async with serving() as house, client(house, era) as mcp:
        tools = (await mcp.list_tools()).tools
        assert [tool.name for tool in tools] == ["echo", "fail", "wait", "boom", "print", "bulk"]
        first = tools[0]
        assert first.title
        assert first.description
        assert first.annotations is not None
        assert first.annotations.read_only_hint
        assert first.input_schema == first.output_schema == {"type": "object"}


@ERAS
async def test_a_call_carries_who_asks_and_answers_twice(era: str) -> None:
    async with serving() as house, client(house, era) as mcp:
        result = await mcp.call_tool("echo", {"word": "ü", "n": [1, None]})
        assert result.structured_content == {"success": True, "word": "ü", "n": [1, None]}
        assert text_of(result) == result.structured_content
        assert not result.is_error
        (call,) = house.handler.calls
        assert (call.tool, call.principal, call.client) == ("echo", "local", "prober 7")
        assert call.arguments == {"word": "ü", "n": [1, None]}
        assert call.request_id


@ERAS
async def test_a_failure_is_a_result_with_its_code(era: str) -> None:
    async with serving() as house, client(house, era) as mcp:
        result = await mcp.call_tool("fail", {})
        assert result.is_error
        assert result.structured_content["error_code"] == text_of(result)["error_code"] == "ARG_001"


@ERAS
async def test_an_unknown_tool_is_the_protocols_error_and_still_seen_by_the_handler(era: str) -> None:
    async with serving() as house, client(house, era) as mcp:
        with pytest.raises(MCPError) as caught:
            await mcp.call_tool("rm_rf", {})
        assert caught.value.error.code == -32602
        assert caught.value.error.data["error_code"] == "ARG_001"
        assert [call.tool for call in house.handler.calls] == ["rm_rf"]


@ERAS
async def test_an_exception_becomes_an_incident_and_its_text_stays_here(
    era: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as house, client(house, era) as mcp:
        result = await mcp.call_tool("boom", {})
        assert result.is_error
        assert "1234" not in result.model_dump_json()
        assert result.structured_content["error_code"] == "SYS_999"
        incident_id = result.structured_content["error_details"]["incident_id"]
        record = next(record for record in caplog.records if record.levelno == logging.ERROR)
        assert incident_id in record.getMessage()
        assert record.exc_info


@ERAS
async def test_bulk_is_not_repeated_in_the_text(era: str) -> None:
    async with serving() as house, client(house, era) as mcp:
        result = await mcp.call_tool("bulk", {})
        assert result.structured_content["chunk_data"] == BULK
        assert text_of(result) == {"success": True, "name": "é"}


async def test_clients_without_structured_content_get_all_as_text() -> None:
    async with serving() as house, raw(house) as conn:
        headers = await legacy_session(conn, "2025-03-26")
        heard = await conn.ask("POST", "/mcp", legacy_call("bulk", {}), **headers)
        (message,) = sse_messages(heard.body)
        assert "structuredContent" not in message["result"]
        assert json.loads(message["result"]["content"][0]["text"])["chunk_data"] == BULK


async def test_cancelling_a_legacy_call_reaches_the_handler() -> None:
    """The client sends `notifications/cancelled` when its caller gives up."""
    async with serving() as house, client(house, LEGACY) as mcp, trio.open_nursery() as nursery:
        nursery.start_soon(mcp.call_tool, "wait", {})
        await house.handler.waiting.acquire()
        nursery.cancel_scope.cancel()
    assert house.handler.cancelled.is_set()


async def test_leaving_a_modern_call_cancels_it() -> None:
    async with serving() as house:
        async with client(house, MODERN) as mcp, trio.open_nursery() as nursery:
            nursery.start_soon(mcp.call_tool, "wait", {})
            await house.handler.waiting.acquire()
            nursery.cancel_scope.cancel()
        await house.handler.cancelled.wait()


@ERAS
async def test_a_drain_answers_calls_in_flight_and_then_ends(era: str) -> None:
    answers: list[CallToolResult] = []
    async with serving() as house, client(house, era) as mcp, trio.open_nursery() as nursery:

        async def wait() -> None:
            answers.append(await mcp.call_tool("wait", {}))

        nursery.start_soon(wait)
        await house.handler.waiting.acquire()
        house.stop.set()
    (answer,) = answers
    assert answer.structured_content["error_code"] == "SESSION_005"


async def test_many_clients_at_once_each_get_their_own_answer() -> None:
    async def ask(house: House, era: str, n: int) -> None:
        async with client(house, era) as mcp:
            for i in range(5):
                result = await mcp.call_tool("echo", {"n": n, "i": i})
                assert result.structured_content == {"success": True, "n": n, "i": i}

    async with serving() as house, trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(ask, house, (MODERN, LEGACY)[n % 2], n)


@ERAS
async def test_an_answer_larger_than_a_client_takes_as_an_event_arrives_all_the_same(era: str) -> None:
    """The SDK's client refuses an event above 1 MiB, and a default chunk of a download is larger."""
    text = "x" * (2 * 1024 * 1024)
    async with serving(max_body_bytes=8 * 1024 * 1024) as house, client(house, era) as prober:
        result = await prober.call_tool("echo", {"text": text})
        assert text_of(result)["text"] == text
        assert text_of(await prober.call_tool("echo", {"text": "and"}))["text"] == "and", "the connection lives"


def test_only_a_whole_large_answer_becomes_json() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"text":"' + b"x" * LARGE_EVENT_BYTES + b'"}}'
    question = answer.replace(b'"result"', b'"params"')

    def event(data: bytes) -> dict[str, object]:
        return {
            "type": "http.response.body",
            "body": b"event: message\r\ndata: " + data + b"\r\n\r\n",
            "more_body": True,
        }

    whole = as_json(start, event(answer))
    assert whole is not None
    assert whole[1]["body"] == answer
    assert dict(whole[0]["headers"]) == {b"content-type": b"application/json", b"content-length": b"%d" % len(answer)}
    for other in (answer[:1000], question, answer + b"\r\ndata: more"):
        assert as_json(start, event(other)) is None
