"""One HTTP request between Hypercorn and what answers it: the ASGI words the guard speaks.

Holds the pieces that act on a single request: reading its body within limits, the guard's own short
replies, and the pair of functions the MCP SDK receives and sends through. Knows no MCP beyond the shape of
a JSON-RPC error, and no other request.

A large answer on an event stream goes out as plain JSON instead. A handshake-era POST is answered on an event stream,
and the SDK's Python client refuses an event above 1 MiB: a chunk of a download in its default size would never arrive.
The protocol lets a server answer any POST with plain JSON, for which clients have no such limit. So an answer that is
large, and the first thing on its stream, goes out as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from typing import Any

import attrs
import trio

from broker.contract.long_text import Buffer
from broker.http.bulk import Bulk
from broker.memory.answers import AnswerRoom
from broker.memory.budget import SMALL_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# JSON-RPC 2.0: the request is at fault, or (first of the range left to servers) the server cannot now.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
SERVER_BUSY = -32000

ABORT_KEY = "broker.abort"
"""Where the way to break the connection is found in the `state` of an ASGI scope."""

BODY_SOCKET_KEY = "broker.body_socket"
"""Where a `BodySocket` is found in it, under our own connections."""

PART_BYTES = 2 * 1024 * 1024
"""Of a body that are sent at once: the answer with a chunk of the default size goes as it is."""
LINGER_S = 5.0
"""How long a refused body is still read: a socket closed with unread data is reset, and the reset can overtake the
refusal on its way to the client, or break what it sends before it looks. However much that is: the megabytes pass
faster than a busy machine lets the client look."""
LARGE_EVENT_BYTES = 512 * 1024
"""Half of what the client takes, so that whatever it counts beside the data is within."""
EVENT_HEAD = b"event: message\r\ndata: "
EVENT_END = b"\r\n\r\n"
ANSWER_HEAD_BYTES = 512
"""Where an answer shows its "result" or "error": behind the version and the id."""
REPLACED_HEADERS = frozenset({b"content-type", b"content-length", b"cache-control", b"x-accel-buffering"})


def abort_of(scope: Scope) -> Callable[[], None]:
    """Return what breaks the connection of a request; under a server that has none to break, it does nothing."""
    abort: Callable[[], None] = scope["state"].get(ABORT_KEY, lambda: None)
    return abort


def rpc_error(code: int, message: str, request_id: str | int | None = None) -> bytes:
    """Return a JSON-RPC error; without *request_id* it answers no particular request."""
    body = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    return json.dumps(body, separators=(",", ":")).encode()


@attrs.frozen
class Reply:
    """A short answer of the guard's own."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send, *, rest: Receive | None = None) -> None:
        """Send it at once; where a *rest* of the request may be unread, read it (at most LINGER_S) before the end."""
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self.body)),
            (b"cache-control", b"no-store"),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        if rest is not None:
            with trio.move_on_after(LINGER_S):
                await _discard(rest)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal(status: int, message: str, *, code: int = INVALID_REQUEST, retry_after_s: int = 0) -> Reply:
    """Return a refusal as a JSON-RPC error; *retry_after_s* other than 0 says when to come back."""
    headers = ((b"retry-after", b"%d" % retry_after_s),) if retry_after_s else ()
    return Reply(status, rpc_error(code, message), headers)


async def _discard(receive: Receive) -> None:
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)


class Unread(Enum):
    """Why a body could not be had."""

    TOO_LARGE = "too large"
    TOO_SLOW = "too slow"
    GONE = "the client left"
    NO_ROOM = "too many large bodies before it"


MakeRoom = Callable[[int], Awaitable[bool]]


@attrs.define(eq=False)
class _Pieces:
    """The part of a body that came. A large one is put where it stays: joining pieces would take its size again."""

    _large: Buffer
    """As long as is known that the body will be, or empty."""
    _small: list[bytes] = attrs.field(factory=list, init=False)
    size: int = attrs.field(default=0, init=False)

    def add(self, part: bytes) -> None:
        """Take the next piece."""
        begin, self.size = self.size, self.size + len(part)
        if self.size <= SMALL_BYTES and not self._large:
            self._small.append(part)
            return
        if self._small:
            self._large += b"".join(self._small)
            self._small.clear()
        self._large[begin : self.size] = part

    def whole(self) -> bytes | Buffer:
        """Return the body."""
        if not self._large:
            return b"".join(self._small)
        del self._large[self.size :]
        return self._large


async def read_body(
    receive: Receive, *, declared_bytes: int, max_bytes: int, deadline_s: float, make_room: MakeRoom
) -> bytes | Buffer | Unread:
    """Read the whole body, or say why not; one that is not small is a Buffer.

    A body that declares itself too large is refused before it is sent (*declared_bytes* is 0 if it does not);
    all of it must have arrived *deadline_s* seconds after *make_room* has let it in, which is asked, with the most
    bytes there can be, of a body that is not small.
    """
    has_room = declared_bytes > SMALL_BYTES
    if declared_bytes > max_bytes or (has_room and not await make_room(declared_bytes)):
        return Unread.TOO_LARGE if declared_bytes > max_bytes else Unread.NO_ROOM
    body = _Pieces(Buffer(declared_bytes if has_room else 0))
    with trio.move_on_after(deadline_s):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return Unread.GONE
            part = message.get("body", b"")
            if body.size + len(part) > max_bytes:
                return Unread.TOO_LARGE
            if not has_room and body.size + len(part) > SMALL_BYTES:
                has_room = await make_room(max_bytes)
                if not has_room:
                    return Unread.NO_ROOM
            body.add(part)
            if not message.get("more_body", False):
                return body.whole()
    return Unread.TOO_SLOW


@attrs.define(eq=False)
class Exchange:
    """The way in which the SDK receives and sends: the body in one piece, and no disconnect after the answer.

    Hypercorn reports a disconnect after *every* response, from inside the last `send`. The SDK answers that
    by cancelling its task, which then never gets back to Hypercorn to arm the keep-alive timer: the
    connection would stay open for ever. So the disconnect is only passed on while the answer is not complete.

    The start of an event stream is held back until there is a first event to go with it, which may turn out to be a
    large answer (`as_json`); not so if *is_stream*, since a GET stream may stay silent for long. So is
    the start of an answer that *bulk* goes into, which is longer than the SDK knows.
    """

    _receive: Receive
    _send: Send
    _body: bytes | None
    _bulk: Bulk = attrs.field(factory=Bulk)
    _room: AnswerRoom | None = None
    _on_complete: Callable[[], None] = lambda: None
    _is_stream: bool = False
    _held_start: Message | None = attrs.field(default=None, init=False)
    started: bool = attrs.field(default=False, init=False)
    complete: bool = attrs.field(default=False, init=False)

    async def receive(self) -> Message:
        """Give the body once, then wait until the client leaves."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        message = await self._receive()
        if self.complete:
            await trio.sleep_forever()  # the SDK cancels its watcher when it has finished
        return message

    async def send(self, message: Message) -> None:
        """Pass one message on; what comes after the end is dropped (the SDK may report an error too late)."""
        if self.complete:
            return
        if message["type"] == "http.response.start":
            self.started = True
            if self._bulk.holds or (is_event_stream(message) and not self._is_stream):
                self._held_start = message
            else:
                await self._send(message)
        else:
            await self._send_body(message)

    async def _send_body(self, message: Message) -> None:
        growth = self._bulk.growth(message.get("body", b""))
        if self._room is not None:
            self._room.sends(len(message.get("body", b"")) + self._bulk.held_bytes)
        if self._held_start is not None:
            held, self._held_start = self._held_start, None
            start, message = as_json(held, message, growth) or (held, message)
            await self._send(lengthened(start, growth))
        last = b""
        for piece in self._bulk.fill(message.get("body", b"")):
            if last:
                await self._send({**message, "body": await self._send_parts(message, last), "more_body": True})
            last = piece
        last = await self._send_parts(message, last)
        if not message.get("more_body", False):
            self.complete = True  # before the send: the false disconnect arrives during it
            self._on_complete()  # and so may the next request on this connection
        await self._send({**message, "body": last})

    async def _send_parts(self, message: Message, piece: bytes) -> bytes:
        """Send *piece* but for its end, which is returned: of what is sent at once a copy is made below."""
        at = 0
        while len(piece) - at > PART_BYTES:
            await self._send({**message, "body": piece[at : at + PART_BYTES], "more_body": True})
            at += PART_BYTES
        return piece[at:]

    async def finish(self) -> None:
        """End a response that was cut short, properly: a last empty part instead of a broken connection."""
        if self.started and not self.complete:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def is_event_stream(start: Message) -> bool:
    """Whether a response that starts so is an event stream."""
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in start["headers"])


def lengthened(start: Message, growth: int) -> Message:
    """The same start of a response whose body is *growth* bytes longer; an event stream never says how long it is."""
    if not growth:
        return start
    length = b"content-length"
    headers = [(name, b"%d" % (int(value) + growth) if name == length else value) for name, value in start["headers"]]
    return {**start, "headers": headers}


def as_json(start: Message, first: Message, growth: int = 0) -> tuple[Message, Message] | None:
    """The same response as JSON: its start and its only body; None where it must stay an event stream.

    Args:
        start: the `http.response.start` of an event stream.
        first: the first `http.response.body` of it.
        growth: bytes that it is longer when it goes out.
    """
    event = first.get("body", b"")
    if len(event) + growth < LARGE_EVENT_BYTES or not (event.startswith(EVENT_HEAD) and event.endswith(EVENT_END)):
        return None
    answer = event[len(EVENT_HEAD) : -len(EVENT_END)]
    beginning = answer[:ANSWER_HEAD_BYTES]
    if b"\n" in answer or not (b'"result":' in beginning or b'"error":' in beginning):
        return None  # several data lines, or no answer: a notification or a question of the server's
    kept = [(name, value) for name, value in start["headers"] if name not in REPLACED_HEADERS]
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer)), *kept]
    return {**start, "headers": head}, {**first, "body": answer, "more_body": False}
