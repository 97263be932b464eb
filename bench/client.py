"""An MCP client that costs almost nothing, so that what is measured is the server.

Speaks protocol 2026-07-28 over one keep-alive connection: POST a request, read the answer, plain JSON or an event
stream. The real client of the SDK, which the tests use, spends more processor time per call than the server does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

VERSION = "2026-07-28"
READ_BYTES = 256 * 1024


class ToolFailed(Exception):
    """The answer was an error where the measurement needs a success."""


class ConnectionLost(Exception):
    """The server closed the connection in the middle of an answer."""


@attrs.define(eq=False)
class Connection:
    """One keep-alive connection; one request at a time."""

    host: str
    _stream: trio.SocketStream
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)
    _id: int = attrs.field(default=0, init=False)

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """Send *body*, return the body of the answer.

        Raises:
            ToolFailed: the status is not 200.
        """
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self._stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
        status, answer = await self._read_answer()
        if status != 200:
            raise ToolFailed(f"HTTP {status}: {answer[:500]!r}")
        return answer

    async def call(self, tool: str, known: bytes = b"", **arguments: object) -> dict[str, Any]:
        """The structured result of a tool call, error or not; bytes among the arguments are put in as they are.

        Raises:
            ToolFailed: there is no *known* in the answer; its place in the result is empty.
        """
        self._id += 1
        meta = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": tool, "arguments": arguments, "_meta": meta}
        body = _encoded({"jsonrpc": "2.0", "id": self._id, "method": "tools/call", "params": params})
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": VERSION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
        }
        answer = _message(_without(known, await self.post("/mcp", headers, body)))
        if "result" not in answer:
            raise ToolFailed(f"{tool}: {json.dumps(answer)[:500]}")
        structured: dict[str, Any] = answer["result"].get("structuredContent") or {}
        return structured

    async def ok(self, tool: str, known: bytes = b"", **arguments: object) -> dict[str, Any]:
        """The structured result of a call that must succeed.

        Raises:
            ToolFailed: it did not, or there is no *known* in it.
        """
        result = await self.call(tool, known, **arguments)
        if result.get("success") is False:
            raise ToolFailed(f"{tool}: {json.dumps(result)[:500]}")
        return result

    async def _read_answer(self) -> tuple[int, bytes]:
        head = (await self._read_until(b"\r\n\r\n")).decode("latin-1").lower()
        status_line, _, rest = head.partition("\r\n")
        fields = dict(line.split(": ", 1) for line in rest.split("\r\n") if ": " in line)
        status = int(status_line.split()[1])
        if "content-length" in fields:
            return status, await self._read_exactly(int(fields["content-length"]))
        return status, await self._read_chunks()

    async def _read_chunks(self) -> bytes:
        parts = []
        while size := int(await self._read_until(b"\r\n"), 16):
            parts.append(await self._read_exactly(size))
            await self._read_exactly(2)
        await self._read_exactly(2)
        return b"".join(parts)

    async def _read_until(self, end: bytes) -> bytes:
        searched = 0
        while (found := self._buffer.find(end, max(0, searched - len(end)))) < 0:
            searched = len(self._buffer)
            await self._fill()
        line = bytes(self._buffer[:found])
        del self._buffer[: found + len(end)]
        return line

    async def _read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return body

    async def _fill(self) -> None:
        received = await self._stream.receive_some(READ_BYTES)
        if not received:
            raise ConnectionLost(f"{self.host} closed the connection")
        self._buffer += received


def _encoded(message: dict[str, Any]) -> bytes:
    """*message* as JSON, with large pieces of plain ASCII (bytes) put in unread: escaping them costs more than HTTP."""
    pieces: list[bytes] = []

    def leave_out(piece: bytes) -> str:
        pieces.append(piece)
        return "\0"

    head, *tails = json.dumps(message, default=leave_out).encode().split(b"\\u0000")
    return head + b"".join(piece + tail for piece, tail in zip(pieces, tails, strict=True))


def _without(known: bytes, body: bytes) -> bytes:
    """An answer with bulk that must be in it taken out: comparing costs a tenth of what parsing does."""
    start = body.find(known[:64])  # searching for a megabyte is slow
    end = start + len(known)
    if body[start:end] != known:
        raise ToolFailed(f"other bytes than were expected: {body[:500]!r}")
    return body[:start] + body[end:]


def _message(body: bytes) -> dict[str, Any]:
    """The JSON-RPC answer, in plain JSON or as the last event of a stream."""
    if not body.lstrip().startswith(b"{"):
        events = [line[5:] for line in body.splitlines() if line.startswith(b"data:") and line[5:].strip()]
        body = events[-1]
    message: dict[str, Any] = json.loads(body)
    return message


@asynccontextmanager
async def open_connection(port: int) -> AsyncIterator[Connection]:
    """A connection to a server on loopback."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        yield Connection(host=f"127.0.0.1:{port}", stream=stream)
