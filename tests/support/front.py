"""A small house for the tests of the front door: our HTTP layer on a free loopback port, with a real little handler.

`serving` is the server in this process; `Raw` speaks HTTP/1.1 by hand where a real client is too polite. Run as a
program, it is the same server on standard input and output.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import attrs
import h11
import trio

from broker.calls import Answer, Call
from broker.contract.long_text import LongText
from broker.endpoint.adapter import build_server
from broker.endpoint.http import Patience, serve_http
from broker.endpoint.stdio import serve_stdio
from config.settings import HttpSettings

MODERN, LEGACY = "2026-07-28", "legacy"
ANY_OBJECT = MappingProxyType({"type": "object"})
BULK = "QUJD" * 1000


@attrs.frozen(kw_only=True)
class Face:
    """A tool as the endpoint sees it."""

    name: str
    title: str = "A tool"
    description: str = "Does what its name says."
    annotations: Mapping[str, Any] = MappingProxyType({"readOnlyHint": True})
    input_schema: Mapping[str, Any] = ANY_OBJECT
    output_schema: Mapping[str, Any] = ANY_OBJECT
    bulk_fields: frozenset[str] = frozenset()


FACES = MappingProxyType(
    {
        face.name: face
        for face in (
            Face(name="echo"),
            Face(name="fail"),
            Face(name="wait"),
            Face(name="boom"),
            Face(name="print"),
            Face(name="bulk", bulk_fields=frozenset({"chunk_data"})),
        )
    }
)


def plain(arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments as JSON has them; long ones are taken away when the call is over."""
    return {name: str(value) if isinstance(value, LongText) else value for name, value in arguments.items()}


@attrs.define(eq=False)
class EchoHandler:
    """Answers like a gateway: results, errors, work that lasts until it is ended or cancelled."""

    calls: list[Call] = attrs.field(factory=list)
    waiting: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(0))
    cancelled: trio.Event = attrs.field(factory=trio.Event)
    let_go: trio.Event = attrs.field(factory=trio.Event)
    ending: trio.Event = attrs.field(factory=trio.Event)
    may_end: trio.Event = attrs.field(factory=trio.Event)

    async def handle(self, call: Call) -> Answer:
        call = attrs.evolve(call, arguments=plain(call.arguments))
        self.calls.append(call)
        match call.tool:
            case "echo":
                return Answer(structured={"success": True, **call.arguments}, is_error=False)
            case "bulk":
                chunk = call.arguments.get("chunk_data", BULK)
                return Answer(structured={"success": True, "name": "é", "chunk_data": chunk}, is_error=False)
            case "wait":
                return await self._wait()
            case "print":
                print("stray output", flush=True)  # noqa: T201
                return Answer(structured={"success": True}, is_error=False)
            case "boom":
                raise RuntimeError("the secret is 1234")
            case _:
                return failed("ARG_001", f"no tool is called {call.tool}")

    async def _wait(self) -> Answer:
        self.waiting.release()
        try:
            await self.let_go.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return failed("SESSION_005", "the session was closed")

    async def end(self) -> None:
        """End all work, as killing the sessions does."""
        self.ending.set()
        await self.may_end.wait()
        self.let_go.set()


def failed(code: str, message: str) -> Answer:
    return Answer(structured={"success": False, "error_code": code, "error_message": message}, is_error=True)


@attrs.frozen(kw_only=True)
class House:
    """A running server."""

    urls: tuple[str, ...]
    handler: EchoHandler
    stop: trio.Event

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port


@asynccontextmanager
async def serving(*, slow_end: bool = False, **changes: Any) -> AsyncIterator[House]:
    """Serve until the block is left; *changes* to settings or patience by name. A *slow_end* waits for `may_end`."""
    waits = {field.name for field in attrs.fields(Patience)} & changes.keys()
    patience = Patience(**{name: changes.pop(name) for name in waits})
    settings = HttpSettings(
        **{
            "host": "127.0.0.1",
            "port": 0,
            "max_body_bytes": 200_000,
            "body_timeout_s": 20,
            "max_calls_in_flight": 8,
            **changes,
        }
    )
    handler, stop = EchoHandler(), trio.Event()
    if not slow_end:
        handler.may_end.set()
    server = build_server(handler, FACES, version="1.2.3", instructions="Say hello.")
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
            serve = partial(serve_http, settings, server, stop=stop, end_work=handler.end, patience=patience)
            await serve(task_status=task_status)

        urls = await nursery.start(run)
        try:
            yield House(urls=urls, handler=handler, stop=stop)
        finally:
            nursery.cancel_scope.cancel()


@attrs.frozen
class Heard:
    """A response as it came over the wire."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """One HTTP/1.1 connection, driven by hand."""

    def __init__(self, stream: trio.SocketStream, host: str) -> None:
        self.stream = stream
        self.host = host
        self._h11 = h11.Connection(h11.CLIENT)

    async def send_head(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        head = {"host": self.host, **headers}
        event = h11.Request(method=method, target=path, headers=list(head.items()))
        await self.stream.send_all(self._h11.send(event) or b"")

    async def send_body(self, data: bytes, *, end: bool = True) -> None:
        out = self._h11.send(h11.Data(data=data)) or b"" if data else b""
        if end:
            out += self._h11.send(h11.EndOfMessage()) or b""
        await self.stream.send_all(out)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Heard:
        """Send a whole request, read the whole response."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body:
            named.setdefault("content-length", str(len(body)))
        await self.send_head(method, path, named)
        await self.send_body(body)
        return await self.heard()

    async def event(self) -> Any:
        """Wait for the next piece of a response."""
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self.stream.receive_some())
        return event

    async def heard(self) -> Heard:
        head, body = await self.event(), b""
        while isinstance(head, h11.InformationalResponse):
            head = await self.event()
        assert isinstance(head, h11.Response), head
        while not isinstance(piece := await self.event(), h11.EndOfMessage):
            assert isinstance(piece, h11.Data), piece
            body += bytes(piece.data)
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return Heard(head.status_code, dict(head.headers), body)

    async def at_end(self) -> bool:
        """Wait until the server closes the connection."""
        return await self.stream.receive_some() == b""


@asynccontextmanager
async def raw(house: House) -> AsyncIterator[Raw]:
    async with await trio.open_tcp_stream("127.0.0.1", house.port) as stream:
        yield Raw(stream, f"127.0.0.1:{house.port}")


def modern_headers(method: str, name: str | None = None) -> dict[str, str]:
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": MODERN,
        "mcp-method": method,
    }
    return headers | ({"mcp-name": name} if name else {})


def modern_call(tool: str, arguments: Mapping[str, Any], request_id: object = 1) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a `tools/call` of the 2026 era."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "9"},
    }
    message = {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tools/call",
        "params": {"name": tool, "arguments": dict(arguments), "_meta": meta},
    }
    return json.dumps(message).encode(), modern_headers("tools/call", tool)


LEGACY_HEADERS = MappingProxyType(
    {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": "2025-11-25",
    }
)


async def legacy_session(conn: Raw, version: str = "2025-11-25") -> dict[str, str]:
    """Shake hands; return the headers that every further request of this MCP session carries."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "raw", "version": "9"}}
    message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    headers = {**LEGACY_HEADERS, "mcp-protocol-version": version}
    heard = await conn.ask("POST", "/mcp", json.dumps(message).encode(), **headers)
    assert heard.status == 200, heard
    return {**headers, "mcp-session-id": heard.headers[b"mcp-session-id"].decode()}


def legacy_call(tool: str, arguments: Mapping[str, Any], request_id: object = 1) -> bytes:
    params = {"name": tool, "arguments": dict(arguments)}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}).encode()


def sse_messages(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]


async def main() -> None:
    """Serve over stdio; SIGTERM stops it."""
    handler, stop = EchoHandler(), trio.Event()
    handler.may_end.set()
    server = build_server(handler, FACES, version="1.2.3", instructions="Say hello.")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_at_signal() -> None:
                async for _ in signals:
                    stop.set()

            nursery.start_soon(stop_at_signal)
            await serve_stdio(server, stop=stop, end_work=handler.end, max_line_bytes=100_000, max_calls_in_flight=2)
            nursery.cancel_scope.cancel()
    print("over", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    trio.run(main)
