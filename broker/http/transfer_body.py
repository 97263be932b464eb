"""The bodies of transfers on the wire: pieces in and out, at the pace of the slower side.

Back-pressure is the socket's: a piece is asked for when the one before it was taken, so that a transfer holds a few
pieces whatever its size. Knows neither tokens nor files.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from typing import Any

import attrs
import trio

from broker.http.asgi import BODY_SOCKET_KEY, Message, Receive, Reply, Scope, Send, abort_of
from broker.http.bodysocket import BodySocket, ConnectionGone
from broker.session.urls import CLIENT_LEFT, EarlyEnd, stalled
from transfers.disk import Stop
from transfers.filestreams import FileSource
from transfers.refusals import TransferError
from transfers.streams import PIECE_BYTES, Source

QUICK_S = 0.005
"""A client that takes longer than this for what the socket holds leaves time to hash."""
MAX_FRAGMENTS = 512
"""Of a piece that arrives crumb by crumb: each costs more memory than its bytes."""
Head = tuple[int, Iterable[tuple[bytes, bytes]]]


@attrs.define(eq=False)
class TransferExchange:
    """One HTTP request and its answer."""

    scope: Scope
    _receive: Receive
    _send: Send
    started: bool = attrs.field(default=False, init=False)
    left: bool = attrs.field(default=False, init=False)
    complete: bool = attrs.field(default=False, init=False)
    """Whether no byte of the answer is missing."""
    _body_read: bool = attrs.field(default=False, init=False)

    @property
    def method(self) -> str:
        """GET, PUT, ..."""
        method: str = self.scope["method"]
        return method

    @property
    def headers(self) -> Iterable[tuple[bytes, bytes]]:
        """As they came."""
        headers: Iterable[tuple[bytes, bytes]] = self.scope["headers"]
        return headers

    async def receive(self) -> Message:
        """The next message of the client's."""
        message = await self._receive()
        self.left = self.left or message["type"] == "http.disconnect"
        self._body_read = self._body_read or not message.get("more_body", False)
        return message

    async def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Begin the answer."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, piece: bytes) -> None:
        """Send some of its body; returns when the kernel has it all."""
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self) -> None:
        """End the answer. Not where `mind_client` runs: Hypercorn says that the client left from inside this send."""
        self.complete = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def reply(self, reply: Reply) -> None:
        """Give a short answer, unless one has begun or nobody would hear it."""
        if not (self.started or self.left):
            self.started = self.complete = True
            await reply.send(self._send, rest=None if self._body_read else self._receive)

    def abort(self) -> None:
        """Break the connection if the answer has begun and is not complete: a client must see that bytes are missing.

        It also frees who waits in `send` for a client that does not read.
        """
        if self.started and not self.complete:
            abort_of(self.scope)()

    async def mind_client(self, flow: trio.CancelScope) -> None:
        """Cancel *flow* when the client leaves; whatever ends this first breaks an answer that is not complete."""
        try:
            while not self.left:
                await self.receive()
            flow.cancel(reason=CLIENT_LEFT.why)
        finally:
            self.abort()


async def receive_body(
    exchange: TransferExchange, write: Callable[[bytes], Awaitable[None]], idle_s: float
) -> EarlyEnd | None:
    """Give the body of a request to *write* in pieces; return why it was cut, None when it is complete.

    What came before a cut was given, too.

    Args:
        idle_s: seconds that the client may say nothing.
    Raises: what *write* raises.
    """
    fragments: list[bytes] = []
    size, cut, more = 0, None, True
    while more and cut is None:
        message: Any = {}
        with trio.move_on_after(idle_s) as patience:
            message = await exchange.receive()
        if patience.cancelled_caught:
            cut = stalled(idle_s)
        elif exchange.left:
            cut = CLIENT_LEFT
        more = message.get("more_body", False)
        fragments.append(message.get("body", b""))
        size += len(fragments[-1])
        if size >= PIECE_BYTES or len(fragments) >= MAX_FRAGMENTS or (size and (cut or not more)):
            await write(b"".join(fragments))
            fragments, size = [], 0
    return cut


def _body_socket(exchange: TransferExchange) -> BodySocket | None:
    found: BodySocket | None = exchange.scope["state"].get(BODY_SOCKET_KEY)
    return found


@attrs.frozen(kw_only=True)
class Flow:
    """How a download's body went: *error* of its source, or its *early_end*, or neither."""

    error: TransferError | None = None
    early_end: EarlyEnd | None = None


async def send_pieces(
    exchange: TransferExchange,
    source: Source,
    span: tuple[int, int | None],
    head: Head,
    sent: Callable[[int], None],
    idle_s: float,
) -> Flow:
    """Send the *span* of a source behind *head* (status and headers), and tell *sent* how much of it went out.

    The head goes out with the first piece, so that a source that fails at once can be told of in words. After it
    only breaking the connection is left. A client that has not taken a piece in *idle_s* seconds is cut off.
    Cancellation: breaks the connection.
    """
    error: TransferError | None = None
    socket = _body_socket(exchange)
    with nullcontext() if socket is None else socket.patient(idle_s):
        async with trio.open_nursery() as nursery:
            flow = nursery.cancel_scope
            nursery.start_soon(exchange.mind_client, flow)

            def moved(length: int) -> None:
                sent(length)
                flow.deadline = trio.current_time() + idle_s

            try:
                if isinstance(source, FileSource) and socket is not None:
                    await _send_file(exchange, socket, source, span, head, moved)
                else:
                    await _send_read(exchange, source, span, head, moved)
            except TransferError as failed:  # told outside: in here it would become a group
                error = failed
            except ConnectionGone:
                exchange.left = exchange.left or not flow.cancel_called  # else it is gone because it was broken here
            flow.cancel(reason="there is nothing more to mind")
    if error is None and exchange.complete:
        await exchange.end()
        return Flow()
    return Flow(error=error, early_end=CLIENT_LEFT if exchange.left else stalled(idle_s))


async def _send_read(
    exchange: TransferExchange, source: Source, span: tuple[int, int | None], head: Head, moved: Callable[[int], None]
) -> None:
    """Send what is read piece by piece, through the server as any body."""
    error: TransferError | None = None
    async with source.pieces(*span) as pieces:
        try:
            piece = await pieces.next()
            await exchange.start(*head)
            while piece:
                moved(0)
                await exchange.send(piece)
                moved(len(piece))
                piece = await pieces.next()
            exchange.complete = True
        except TransferError as failed:
            error = failed
    if error is not None:
        raise error


async def _send_file(
    exchange: TransferExchange,
    socket: BodySocket,
    source: FileSource,
    span: tuple[int, int | None],
    head: Head,
    moved: Callable[[int], None],
) -> None:
    """Send a file as fast as the socket takes it.

    It is hashed while the client is slow, and for a fast one afterwards (`settle`): its digest then costs no time here.
    """
    offset, stop = span[0], source.size_bytes if span[1] is None else span[1]
    await source.read(offset, min(1, stop - offset))  # a file that has changed can be told of in words yet
    await exchange.start(*head)
    if offset < stop:
        socket.announce(stop - offset)
    moved(0)
    while offset < stop:
        burst = await source.burst(socket, offset, stop)
        if burst.offset > offset:
            moved(burst.offset - offset)
        offset = burst.offset
        if burst.stop is Stop.GONE:
            raise ConnectionGone
        if burst.stop is Stop.FULL:
            await _wait_writable(socket, source)
    exchange.complete = True


async def _wait_writable(socket: BodySocket, source: FileSource) -> None:
    while True:
        with trio.move_on_after(QUICK_S):
            await socket.wait_writable()
            return
        if not await source.hash_some():
            await socket.wait_writable()
            return
