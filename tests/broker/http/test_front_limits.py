"""What the front door refuses, bounds and survives: requests by hand, over a real socket."""

from __future__ import annotations

import json
import socket
from contextlib import AsyncExitStack

import pytest
import trio

from broker.http.sockets import ListenFailed, open_listeners
from tests.support.front import (
    LEGACY_HEADERS,
    Heard,
    House,
    Raw,
    legacy_call,
    legacy_session,
    modern_call,
    modern_headers,
    raw,
    serving,
    sse_messages,
)


async def test_health_says_who_it_is_and_nothing_else() -> None:
    async with serving() as house, raw(house) as conn:
        heard = await conn.ask("GET", "/healthz")
        assert heard.status == 200
        assert heard.json == {"status": "ok", "version": "1.2.3"}
        assert b"server" not in heard.headers
        assert (await conn.ask("POST", "/healthz")).status == 405


async def test_other_paths_are_not_there() -> None:
    async with serving() as house, raw(house) as conn:
        for path in ("/", "/mcp/", "/mcp/x", "/healthz/", "/favicon.ico"):
            assert (await conn.ask("GET", path)).status == 404


@pytest.mark.parametrize("path", ["/mcp", "/healthz", "/"])
async def test_a_foreign_host_or_origin_is_refused_everywhere(path: str) -> None:
    async with serving() as house, raw(house) as conn:
        for host in ("evil.example", f"evil.example:{house.port}", "127.0.0.1.evil.example", "[::]"):
            conn.host = host
            assert (await conn.ask("GET", path)).status == 421, host
        conn.host = f"127.0.0.1:{house.port}"
        for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://localhost:80@evil"):
            assert (await conn.ask("GET", path, origin=origin)).status == 403, origin
        assert house.handler.calls == []


async def test_allowed_hosts_and_origins_get_in() -> None:
    body, headers = modern_call("echo", {})
    allowed = serving(allowed_hosts=("Box.example",), allowed_origins=("https://app.example",))
    async with allowed as house, raw(house) as conn:
        for host, origin in (
            ("BOX.example", "https://app.example"),
            ("box.example:9", "http://localhost:3000"),
            ("localhost", "http://[::1]:5"),
        ):
            conn.host = host
            assert (await conn.ask("POST", "/mcp", body, origin=origin, **headers)).status == 200, host


async def test_a_body_too_large_is_refused_whether_declared_or_not() -> None:
    async with serving(max_body_bytes=100_000) as house:
        async with raw(house) as conn:
            heard = await conn.ask("POST", "/mcp", b"x" * 100_001, **LEGACY_HEADERS)
            assert heard.status == 413
            assert "100000 bytes" in heard.json["error"]["message"]
        async with raw(house) as conn:
            await conn.send_head("POST", "/mcp", {**LEGACY_HEADERS, "transfer-encoding": "chunked"})
            for _ in range(11):
                await conn.send_body(b"x" * 10_000, end=False)
            assert (await conn.heard()).status == 413


async def test_a_huge_declared_body_is_refused_before_it_is_sent() -> None:
    async with serving() as house, raw(house) as conn:
        await conn.send_head("POST", "/mcp", {**LEGACY_HEADERS, "content-length": str(10**15)})
        head = await conn.event()
        assert head.status_code == 413


async def test_a_client_that_looks_only_after_its_whole_body_hears_why_it_is_refused() -> None:
    async with serving(max_body_bytes=100_000) as house, raw(house) as conn:
        assert (await conn.ask("POST", "/mcp", bytes(32 << 20), **LEGACY_HEADERS)).status == 413


async def test_a_slow_body_is_given_up() -> None:
    async with serving(body_timeout_s=0.2) as house, raw(house) as conn:
        await conn.send_head("POST", "/mcp", {**LEGACY_HEADERS, "content-length": "10"})
        await conn.send_body(b"{", end=False)
        heard = await conn.heard()
        assert heard.status == 408
        assert await conn.at_end()


async def test_slow_bodies_make_room_for_calls_and_keep_none_out() -> None:
    async with serving(max_calls_in_flight=2) as house, AsyncExitStack() as stack, trio.open_nursery() as nursery:
        given_up, hear = trio.open_memory_channel[int](4)

        async def wait_for_answer(conn: Raw) -> None:
            await given_up.send((await conn.heard()).status)

        for _ in range(4):
            conn = await stack.enter_async_context(raw(house))
            await conn.send_head("POST", "/mcp", {**LEGACY_HEADERS, "content-length": "10"})
            await conn.send_body(b"{", end=False)
            nursery.start_soon(wait_for_answer, conn)
        assert [await hear.receive() for _ in range(2)] == [503, 503]  # and two are as many as there may be
        body, headers = modern_call("echo", {})
        async with raw(house) as quick:
            assert (await quick.ask("POST", "/mcp", body, **headers)).status == 200
        assert await hear.receive() == 503
        nursery.cancel_scope.cancel()


async def test_calls_beyond_the_bound_are_told_to_come_back() -> None:
    async with serving(max_calls_in_flight=2) as house, raw(house) as one, raw(house) as two, raw(house) as three:
        body, headers = modern_call("wait", {})
        for conn in (one, two):
            await conn.send_head("POST", "/mcp", {**headers, "content-length": str(len(body))})
            await conn.send_body(body)
            await house.handler.waiting.acquire()
        heard = await three.ask("POST", "/mcp", body, **headers)
        assert heard.status == 503
        assert heard.headers[b"retry-after"] == b"1"
        assert heard.json["error"]["code"] == -32000
        assert (await three.ask("GET", "/healthz")).status == 200
        await house.handler.end()
        assert [(await conn.heard()).status for conn in (one, two)] == [200, 200]
        assert (await three.ask("POST", "/mcp", body, **headers)).status == 200


async def test_leaving_a_legacy_call_does_not_free_its_place_while_it_runs() -> None:
    async with serving(max_calls_in_flight=1) as house, raw(house) as conn:
        headers = await legacy_session(conn)
        async with raw(house) as leaver:
            await start(leaver, legacy_call("wait", {}, 5), headers)
            await house.handler.waiting.acquire()
        assert (await until_status(house, headers, legacy_call("echo", {}, 6), 503)).status == 503
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        heard = await conn.ask("POST", "/mcp", json.dumps(cancel).encode(), **headers)
        assert heard.status == 202  # a busy broker still takes what makes it less busy
        await house.handler.cancelled.wait()
        assert (await until_status(house, headers, legacy_call("echo", {}, 7), 200)).status == 200


async def start(conn: Raw, body: bytes, headers: dict[str, str]) -> None:
    await conn.send_head("POST", "/mcp", {**headers, "content-length": str(len(body))})
    await conn.send_body(body)


async def until_status(house: House, headers: dict[str, str], body: bytes, status: int) -> Heard:
    """Ask again until the server has noticed what happened on another connection."""
    while True:
        async with raw(house) as conn:
            heard = await conn.ask("POST", "/mcp", body, **headers)
        if heard.status == status:
            return heard
        await trio.lowlevel.checkpoint()


async def test_one_id_twice_in_flight_is_refused_and_the_first_still_answers() -> None:
    """`1` and `"1"` are one id to the SDK; unguarded, the second call takes the first one's stream."""
    async with serving() as house, raw(house) as first, raw(house) as second:
        headers = await legacy_session(first)
        await start(first, legacy_call("wait", {}, 1), headers)
        await house.handler.waiting.acquire()
        for request_id in (1, "1"):
            heard = await second.ask("POST", "/mcp", legacy_call("echo", {}, request_id), **headers)
            assert heard.status == 400
            assert heard.json["error"]["code"] == -32600
        await house.handler.end()
        (message,) = sse_messages((await first.heard()).body)
        assert message["id"] == 1
        assert message["result"]["structuredContent"]["error_code"] == "SESSION_005"
        assert (await second.ask("POST", "/mcp", legacy_call("echo", {}, 1), **headers)).status == 200


BAD_BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    "deep": b"[" * 100_000,
    "deep inside": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "a number": b"1",
    "a batch": b"[]",
    "no version": b'{"id":1,"method":"ping"}',
    "an id that is none": b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
    "a null id": b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
    "an object as id": b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
    "a number as method": b'{"jsonrpc":"2.0","id":1,"method":7}',
    "a list as params": b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}',
    "a huge integer": b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_bad_messages_get_a_clean_answer_in_both_eras(body: bytes) -> None:
    async with serving() as house, raw(house) as conn:
        for headers in (modern_headers("ping"), await legacy_session(conn)):
            heard = await conn.ask("POST", "/mcp", body, **headers)
            assert heard.status in {400, 200}
            answer = heard.json if heard.status == 400 else sse_messages(heard.body)[0]
            assert answer["error"]["code"] in {-32700, -32600, -32602}
            assert b"Traceback" not in heard.body
        assert (await conn.ask("GET", "/healthz")).status == 200
        assert house.handler.calls == []


@pytest.mark.parametrize("arguments", [b"[]", b"7", b'"x"', b"true"])
async def test_arguments_that_are_no_object_are_the_protocols_error(arguments: bytes) -> None:
    body, headers = modern_call("echo", {})
    body = body.replace(b'"arguments": {}', b'"arguments": ' + arguments)
    async with serving() as house, raw(house) as conn:
        heard = await conn.ask("POST", "/mcp", body, **headers)
        assert heard.json["error"]["code"] == -32602
        assert house.handler.calls == []


async def test_an_idle_connection_closes_also_after_a_stream() -> None:
    """Hypercorn reports a disconnect after every response; unhidden it kills the keep-alive timer."""
    async with serving(keep_alive_s=0.2) as house, raw(house) as conn:
        headers = await legacy_session(conn)
        heard = await conn.ask("POST", "/mcp", legacy_call("echo", {}), **headers)
        assert heard.headers[b"content-type"].startswith(b"text/event-stream")
        assert await conn.at_end()
        async with raw(house) as again:
            body, modern = modern_call("echo", {})
            assert (await again.ask("POST", "/mcp", body, **modern)).status == 200
            assert await again.at_end()


async def test_a_connection_serves_many_requests() -> None:
    body, headers = modern_call("echo", {})
    async with serving() as house, raw(house) as conn:
        for _ in range(20):
            assert (await conn.ask("POST", "/mcp", body, **headers)).status == 200


async def test_http2_and_websockets_are_not_spoken() -> None:
    async with serving() as house, raw(house) as conn:
        heard = await conn.ask(
            "GET",
            "/healthz",
            connection="upgrade",
            upgrade="websocket",
            sec_websocket_version="13",
            sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert heard.status == 200  # an answer to the request itself: the offer is not taken up
    async with serving() as house, raw(house) as conn:
        await conn.stream.send_all(b"PRI * HTTP/2.0\r\nHost: localhost\r\n\r\nSM\r\n\r\n")
        assert (await conn.stream.receive_some()).startswith(b"HTTP/1.1 505 ")


async def test_a_drain_ends_streams_and_refuses_what_comes_after() -> None:
    async with serving() as house, raw(house) as stream, raw(house) as call, raw(house) as late:
        headers = await legacy_session(stream)
        await stream.send_head("GET", "/mcp", {**headers, "accept": "text/event-stream"})
        await stream.send_body(b"")
        assert (await stream.event()).status_code == 200
        body, modern = modern_call("wait", {})
        await start(call, body, modern)
        await house.handler.waiting.acquire()
        house.stop.set()
        assert (await call.heard()).json["result"]["isError"]
        piece = await stream.event()
        assert type(piece).__name__ == "EndOfMessage"
        assert await late.at_end()


async def test_while_draining_new_calls_are_refused_and_health_says_so() -> None:
    async with serving(slow_end=True) as house, raw(house) as conn:
        house.stop.set()
        await house.handler.ending.wait()
        heard = await conn.ask("GET", "/healthz")
        assert (heard.status, heard.json["status"]) == (503, "draining")
        body, headers = modern_call("echo", {})
        heard = await conn.ask("POST", "/mcp", body, **headers)
        assert heard.status == 503
        assert heard.headers[b"retry-after"]
        assert house.handler.calls == []
        house.handler.may_end.set()
        assert await conn.at_end()


async def test_an_idle_legacy_session_is_forgotten() -> None:
    async with serving(mcp_session_idle_s=0.05) as house, raw(house) as conn:
        headers = await legacy_session(conn)
        while (heard := await conn.ask("POST", "/mcp", legacy_call("echo", {}), **headers)).status == 200:
            await trio.sleep(0.06)  # idle time is what is tested
        assert heard.status == 404


async def test_localhost_listens_on_every_family_and_one_port() -> None:
    sockets = await open_listeners("localhost", 0, stall_s=5)
    try:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert all(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000 for sock in sockets)
        assert not any(sock.get_inheritable() for sock in sockets)
        with pytest.raises(ListenFailed, match="in use"):
            await open_listeners("127.0.0.1", sockets[0].getsockname()[1], stall_s=5)
    finally:
        for sock in sockets:
            sock.close()


async def test_a_name_without_an_address_is_a_clear_failure() -> None:
    with pytest.raises(ListenFailed, match=r"no-such-host\.invalid"):
        await open_listeners("no-such-host.invalid", 0, stall_s=5)
