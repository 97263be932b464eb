"""Clients that break the rules of HTTP: none may end the broker, hold it up, or leave anything behind in it."""

from __future__ import annotations

import os
import re
import socket
import struct

import pytest
import trio

from tests.support.front import House, modern_call, raw, serving

HEAD = b"Host: localhost\r\n"
UPGRADE = b"GET /mcp HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: "
WEBSOCKET = UPGRADE + b"websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
RUDE = {
    "a WebSocket header that is not ASCII": WEBSOCKET + b"Sec-WebSocket-Extensions: \xff\r\n\r\n",
    "an offer of HTTP/2": UPGRADE + b"h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a broken offer of HTTP/2": UPGRADE + b"h2c\r\nHTTP2-Settings: !!!!\r\n\r\n",
    "the preface of HTTP/2": PREFACE + b"\0\0\0\4\0\0\0\0\0\0\0\4\x08" + bytes(9),
    "an endless length": b"POST /mcp HTTP/1.1\r\n" + HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "two lengths": b"POST /mcp HTTP/1.1\r\n" + HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
    "a length and chunks": b"POST /mcp HTTP/1.1\r\n"
    + HEAD
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n"
    + HEAD
    + b"\r\n",
    "a broken chunk": b"POST /mcp HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc",
    "a body that stops": b"POST /mcp HTTP/1.1\r\n" + HEAD + b"Content-Length: 50\r\n\r\nabc",
    "no Host": b"GET /healthz HTTP/1.0\r\n\r\n",
    "a path that is no text": b"GET /%ff%fe/%00 HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a greeting of TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64),
    "a head without end": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 12_000,
    "a line without end": b"A" * 70_000,
    "a refused body in many pieces": b"POST /nowhere HTTP/1.1\r\n"
    + HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"1\r\nx\r\n" * 4000
    + b"0\r\n\r\n",
    "many requests in a row": (b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n") * 50,
}
WAYS_TO_LEAVE = ("close", "reset", "half-close", "wait")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until_descriptors(count: int) -> None:
    """Wait until no more than *count* are open; the test's own bound ends a wait for nothing."""
    while descriptors() > count:
        await trio.sleep(0.01)


async def insult(house: House, data: bytes, leaving: str) -> None:
    try:
        async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
            if leaving == "reset":
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.send_all(data)
            if leaving == "half-close":
                await stream.send_eof()
            while leaving in {"half-close", "wait"} and await stream.receive_some():
                pass
    except (trio.BrokenResourceError, OSError):
        return  # the server may well have hung up first


@pytest.mark.parametrize("data", RUDE.values(), ids=RUDE.keys())
async def test_no_request_ends_the_broker_or_stays_behind(data: bytes) -> None:
    async with serving(body_timeout_s=0.2, keep_alive_s=0.2) as house:
        before = descriptors()
        async with trio.open_nursery() as nursery:
            for leaving in WAYS_TO_LEAVE:
                nursery.start_soon(insult, house, data, leaving)
        async with raw(house) as conn:
            assert (await conn.ask("GET", "/healthz")).status == 200
        await until_descriptors(before)


async def test_a_client_that_leaves_frees_its_connection_at_once() -> None:
    async with serving(keep_alive_s=1000) as house:
        before = descriptors()
        for leaving in ("close", "reset", "half-close"):
            await insult(house, b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n", leaving)
        await until_descriptors(before)


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    """Hypercorn shields its writes: without our own limit this connection would hold a stop for ever."""
    async with serving(stall_s=0.5, max_body_bytes=1 << 25) as house:
        before = descriptors()
        async with raw(house) as conn:
            body, headers = modern_call("echo", {"word": "x" * (1 << 24)})
            await conn.send_head("POST", "/mcp", {**headers, "content-length": str(len(body))})
            await conn.send_body(body)
            await until_descriptors(before + 1)  # only our end is left


CHUNKED, FIVE = b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"
SMUGGLED = b"0\r\n\r\nGET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"
IN_DOUBT = {
    "length, then chunks": (b"HTTP/1.1", FIVE + CHUNKED),
    "chunks, then length": (b"HTTP/1.1", CHUNKED + FIVE),
    "in other letters": (b"HTTP/1.1", b"content-LENGTH: 5\r\ntransfer-ENCODING: Chunked\r\n"),
    "two lengths": (b"HTTP/1.1", FIVE + b"Content-Length: 6\r\n"),
    "two lengths in a line": (b"HTTP/1.1", b"Content-Length: 5, 6\r\n"),
    "a signed length": (b"HTTP/1.1", b"Content-Length: +5\r\n"),
    "a space before the colon": (b"HTTP/1.1", FIVE + b"Transfer-Encoding : chunked\r\n"),
    "a folded line": (b"HTTP/1.1", FIVE + b"Transfer-Encoding:\r\n chunked\r\n"),
    "chunks before they were known": (b"HTTP/1.0", CHUNKED),
}


async def statuses(house: House, data: bytes) -> tuple[list[bytes], bytes]:
    """Send *data*; return the status of every answer until the connection ends, and all that was heard."""
    async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
        await stream.send_all(data)
        heard = b""
        while part := await stream.receive_some():
            heard += part
    return re.findall(rb"HTTP/1\.1 (\d+) ", heard), heard


@pytest.mark.parametrize("earlier", [b"", b"GET /healthz HTTP/1.1\r\n" + HEAD + b"\r\n"], ids=["first", "second"])
@pytest.mark.parametrize(("version", "framing"), IN_DOUBT.values(), ids=IN_DOUBT.keys())
async def test_a_request_whose_end_is_in_doubt_is_refused_with_what_follows(
    version: bytes, framing: bytes, earlier: bytes
) -> None:
    async with serving() as house:
        data = earlier + b"POST /mcp " + version + b"\r\n" + HEAD + framing + b"\r\n" + SMUGGLED
        answers, heard = await statuses(house, data)
        assert answers == ([b"200", b"400"] if earlier else [b"400"])
        assert b"connection: close" in heard.lower()


@pytest.mark.parametrize("framing", [CHUNKED, FIVE], ids=["chunks", "length"])
async def test_a_request_whose_end_is_clear_is_followed_by_another(framing: bytes) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n" if framing == CHUNKED else b"hello"
    async with serving(keep_alive_s=0.2) as house:
        data = b"POST /healthz HTTP/1.1\r\n" + HEAD + framing + b"\r\n" + body + SMUGGLED.removeprefix(b"0\r\n\r\n")
        assert (await statuses(house, data))[0] == [b"405", b"200"]
