"""Whoever holds a place and does nothing gives it to a newcomer; whoever is busy keeps it."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, suppress

import h11
import pytest
import trio
from mcp.client import Client

from tests.support.front import (
    LEGACY_HEADERS,
    MODERN,
    Heard,
    House,
    Raw,
    legacy_call,
    legacy_session,
    modern_call,
    raw,
    serving,
    sse_messages,
)

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours
HALF = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-"
BODY, HEADERS = modern_call("echo", {"word": "x"})
LIMIT = 4


async def start(conn: Raw, body: bytes, headers: dict[str, str]) -> None:
    await conn.send_head("POST", "/mcp", {**headers, "content-length": str(len(body))})
    await conn.send_body(body)


async def healthy(house: House) -> bool:
    async with raw(house) as conn:
        return (await conn.ask("GET", "/healthz")).status == 200


# --- connections


@pytest.mark.parametrize("said", [b"", HALF], ids=["nothing", "half a request"])
async def test_silent_connections_give_way_to_newcomers_the_oldest_first(said: bytes) -> None:
    async with serving(max_connections=LIMIT) as house, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(raw(house)) for _ in range(LIMIT)]
        for conn in silent:
            await conn.stream.send_all(said)
        assert await healthy(house)
        assert await silent[0].at_end(), "closed, with no word that could be taken for an answer"
        for _ in range(LIMIT):
            assert await healthy(house)  # again and again
        if not said:
            assert (await silent[-1].ask("GET", "/healthz")).status == 200


async def test_an_idle_connection_gives_way_cleanly_after_its_answer() -> None:
    async with serving(max_connections=1) as house, raw(house) as conn:
        assert (await conn.ask("POST", "/mcp", BODY, **HEADERS)).status == 200
        assert await healthy(house)
        assert await conn.at_end()


@pytest.mark.parametrize("era", [MODERN, "legacy"])
async def test_a_real_client_does_not_notice_that_its_idle_connections_went(era: str) -> None:
    async with serving(max_connections=3) as house, Client(house.url, mode=era) as mcp:
        for word in ("a", "b", "c"):
            assert (await mcp.call_tool("echo", {"word": word})).structured_content == {"success": True, "word": word}
            async with AsyncExitStack() as stack:
                for _ in range(6):
                    await stack.enter_async_context(raw(house))
                assert await healthy(house)


async def test_busy_connections_stay_and_the_newcomer_is_told_when_to_come_back() -> None:
    body, headers = modern_call("wait", {})
    async with serving(max_connections=2) as house, raw(house) as one, raw(house) as two:
        for conn in (one, two):
            await start(conn, body, headers)
            await house.handler.waiting.acquire()
        async with raw(house) as three:
            heard = await three.ask("POST", "/mcp", BODY, **HEADERS)
            assert heard.status == 503
            assert int(heard.headers[b"retry-after"]) > 0
            assert heard.json["error"]["code"] == -32000
        await house.handler.end()
        assert [(await conn.heard()).status for conn in (one, two)] == [200, 200]
        assert await healthy(house)


async def test_who_is_refused_and_still_owes_a_body_holds_no_place() -> None:
    async with serving(max_connections=LIMIT) as house, AsyncExitStack() as stack:
        for conn in [await stack.enter_async_context(raw(house)) for _ in range(LIMIT)]:
            await conn.send_head("POST", "/nowhere", {"content-length": "100"})
            assert isinstance(head := await conn.event(), h11.Response)
            assert head.status_code == 404
        for _ in range(LIMIT):
            assert await healthy(house)


async def test_who_is_refused_while_sending_a_large_body_is_let_go() -> None:
    large, headers = modern_call("wait", {"content": "x" * 190_000})
    async with serving(max_calls_in_flight=1, max_bodies_bytes=200_000) as house, raw(house) as one, raw(house) as two:
        await start(one, large, headers)
        await house.handler.waiting.acquire()  # and has all the room that there is
        await two.send_head("POST", "/mcp", {**headers, "content-length": str(len(large))})
        await two.send_body(large[:180_000], end=False)
        async with raw(house) as three:
            while (await three.ask("POST", "/mcp", BODY, **HEADERS)).status != 503:
                await trio.lowlevel.checkpoint()
        assert (await two.heard()).status == 503
        with suppress(trio.BrokenResourceError):  # what nobody has read may be answered by a reset
            assert await two.at_end()


async def test_a_request_that_is_just_coming_in_is_answered() -> None:
    async with serving(max_connections=2) as house, raw(house) as conn:
        assert (await conn.ask("GET", "/healthz")).status == 200
        for _ in range(50):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(healthy, house)
                assert (await conn.ask("POST", "/mcp", BODY, **HEADERS)).status == 200


# --- MCP sessions of the handshake era


async def greet(house: House) -> dict[str, str]:
    async with raw(house) as conn:
        return await legacy_session(conn)


async def ask(house: House, headers: dict[str, str], tool: str = "echo") -> Heard:
    async with raw(house) as conn:
        return await conn.ask("POST", "/mcp", legacy_call(tool, {}), **headers)


async def test_mcp_sessions_that_nobody_uses_give_way_the_longest_idle_first() -> None:
    async with serving(max_mcp_sessions=LIMIT) as house:
        first, second, *_ = [await greet(house) for _ in range(LIMIT)]
        assert (await ask(house, first)).status == 200  # so the second is idle for longest
        await greet(house)
        gone = await ask(house, second)
        assert gone.status == 404, "by which its client knows that it must greet again"
        assert (await ask(house, first)).status == 200
        for _ in range(3 * LIMIT):
            assert (await ask(house, await greet(house))).status == 200


async def greeting(house: House) -> Heard:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "9"}}
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    async with raw(house) as conn:
        return await conn.ask("POST", "/mcp", json.dumps(message).encode(), **LEGACY_HEADERS)


async def require_refused(house: House) -> None:
    refused = await greeting(house)
    assert refused.status == 503
    assert int(refused.headers[b"retry-after"]) > 0
    assert refused.json["error"]["code"] == -32000


async def test_an_mcp_session_with_a_call_in_flight_stays() -> None:
    async with serving(max_mcp_sessions=1) as house, raw(house) as conn:
        headers = await greet(house)
        await start(conn, legacy_call("wait", {}), headers)
        await house.handler.waiting.acquire()
        await require_refused(house)
        await house.handler.end()
        (message,) = sse_messages((await conn.heard()).body)
        assert message["result"]["structuredContent"]["error_code"] == "SESSION_005"
        assert (await greeting(house)).status == 200


async def test_an_mcp_session_whose_call_runs_on_without_its_client_stays() -> None:
    async with serving(max_mcp_sessions=1) as house:
        headers = await greet(house)
        async with raw(house) as conn:
            await start(conn, legacy_call("wait", {}), headers)
            await house.handler.waiting.acquire()
        await require_refused(house)
        await house.handler.end()
        while (await greeting(house)).status != 200:
            await trio.lowlevel.checkpoint()


async def test_an_mcp_session_with_an_open_stream_stays_until_its_client_goes() -> None:
    async with serving(max_mcp_sessions=1) as house:
        headers = await greet(house)
        async with raw(house) as conn:
            await conn.send_head("GET", "/mcp", headers)
            await conn.send_body(b"")
            assert (await conn.event()).status_code == 200
            await require_refused(house)
        while (await greeting(house)).status != 200:
            await trio.lowlevel.checkpoint()


async def test_a_goodbye_gives_the_place_back_and_a_bad_greeting_takes_none() -> None:
    async with serving(max_mcp_sessions=2) as house, raw(house) as conn:
        kept, leaving = await greet(house), await greet(house)
        assert (await conn.ask("DELETE", "/mcp", b"", **leaving)).status == 200
        for body in (b"{}", legacy_call("echo", {}), b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":7}'):
            await conn.ask("POST", "/mcp", body, **LEGACY_HEADERS)
        await greet(house)
        assert (await ask(house, kept)).status == 200
