"""The connections: accepted, bounded in number, HTTP/1.1 only, each behind a wall of its own.

The protocol is Hypercorn's; the loop around it is ours, because Hypercorn's own lets one client stop the server:
an exception in one connection ends them all (a WebSocket header that is not ASCII is enough), and a client that
asks for HTTP/2 leaves a task and a descriptor behind for ever. So nothing here switches protocols, and what goes
wrong in a connection ends that connection alone.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from socket import SO_LINGER, SOL_SOCKET, socket
from typing import Any, cast

import attrs
import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from broker.bodysocket import BodySocket
from broker.exchange import ABORT_KEY, BODY_SOCKET_KEY, Reply, refusal
from broker.library_logs import describe_without_text
from broker.peerwatch import PeerWatch

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
BULK_READ_BYTES = 256 * 1024
TURN_AWAY_S = 1.0
"""Seconds that who is refused has to take the answer; it holds a place meanwhile."""
RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""struct linger: what is not sent yet is dropped, and the client sees a reset."""


async def serve_connections(
    app: Any,
    config: Config,
    sockets: Sequence[socket],
    *,
    max_connections: int,
    until: Callable[[], Awaitable[None]],
    watch: PeerWatch | None = None,
) -> None:
    """Serve the ASGI *app* on listening *sockets*; when *until* returns, stop accepting and let go.

    A connection that *watch* says no to is refused before a byte of it is read; those above *max_connections* are
    closed as they come. At the end idle ones are closed; busy ones have `config.graceful_timeout` seconds to finish.

    Ownership: the sockets are closed on the way out.
    """
    house = _House(app, config, max_connections, watch)
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, house.serve, listeners, handler_nursery=connections))
            await until()
            accepting.cancel_scope.cancel(reason="the broker is stopping")
        await house.context.terminated.set()  # idle connections close, busy ones after their answer
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


@attrs.define(eq=False)
class _House:
    """What all connections share."""

    _app: Any
    _config: Config
    _max_connections: int
    _watch: PeerWatch | None
    context: WorkerContext = attrs.field(init=False, factory=lambda: WorkerContext(None))
    _open: int = attrs.field(init=False, default=0)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Speak HTTP on *stream* until it ends; whatever goes wrong in there ends this connection alone."""
        if self._open >= self._max_connections:
            log.warning("closed a connection: %d are open, which is the limit", self._open)
            await stream.aclose()
            return
        self._open += 1
        try:
            refused = self._watch and await self._watch.refuses(stream.socket)
            if refused:
                await _turn_away(stream, refused, linger=self._open <= self._max_connections // 2)
            else:
                await _Connection(self._app, self._config, self.context, stream).run()
        except Exception as exc:  # noqa: BLE001 - the wall: one client must not end the others
            log.warning("a connection ended by an error: %s", describe_without_text(exc))
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)


async def _turn_away(stream: trio.SocketStream, why: str, *, linger: bool) -> None:
    """Answer whatever would be asked; *linger* until it is taken, for a socket closed with unread data is reset."""
    body = refusal(403, why).body
    head = (
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    with trio.move_on_after(TURN_AWAY_S), suppress(trio.BrokenResourceError):
        await stream.send_all(head.encode() + body)
        await stream.send_eof()
        while linger and await stream.receive_some(READ_BYTES):
            pass


class _Connection(TCPServer):
    """Hypercorn's connection, which starts with HTTP/1.1 and stays there."""

    def __init__(self, app: Any, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        # Hypercorn's annotations name TLS streams only; it serves plain ones as well.
        super().__init__(ASGIWrapper(app), config, context, cast("Any", {}), cast("Any", stream))
        self._socket = stream.socket
        self._client_left = False

    async def run(self) -> None:
        """Serve until the client leaves, is idle too long, or the broker stops."""
        try:
            client = parse_socket_addr(self._socket.family, self._socket.getpeername())
            server = parse_socket_addr(self._socket.family, self._socket.getsockname())
            async with TaskGroup() as tasks:
                self._task_group = tasks
                self.protocol = cast(
                    "Any",
                    _Http1(
                        app=self.app,
                        config=self.config,
                        context=self.context,
                        task_group=tasks,
                        connection_state=ConnectionState(
                            {ABORT_KEY: self._abort, BODY_SOCKET_KEY: BodySocket(self._socket, self._http)}
                        ),
                        ssl=False,
                        client=client,
                        server=server,
                        send=self.protocol_send,
                    ),
                )
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
                self._client_left = True
                await self.idle_task.stop()  # else the connection would stay until the keep-alive timer fires
            await self._close()
        except OSError:
            log.debug("a client left before it was greeted")  # getpeername of a reset connection

    def _http(self) -> h11.Connection:
        return cast("h11.Connection", cast("Any", self.protocol).connection)

    def _abort(self) -> None:
        """Break the connection, whoever waits for it: an answer that was cut must not look like a whole one."""
        with suppress(OSError):  # it is closed already
            self._socket.setsockopt(SOL_SOCKET, SO_LINGER, RESET_AT_CLOSE)
        self._socket.close()

    async def _read_data(self) -> None:
        """Read until the client leaves; more at a time while it sends more at a time, which saves turns of the loop."""
        size = READ_BYTES
        while data := await self._receive(size):
            await self.protocol.handle(RawData(data))
            size = READ_BYTES if len(data) < READ_BYTES else BULK_READ_BYTES
        await self.protocol.handle(RawData(b""))
        await self.protocol.handle(Closed())

    async def _receive(self, size: int) -> bytes:
        try:
            return bytes(await self.stream.receive_some(size))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return b""  # it is gone, one way or the other

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol says; but a client that has left gets no time to ask again."""
        await super().protocol_send(Closed() if self._client_left and isinstance(event, Updated) else event)


class _Http1(H11Protocol):
    """HTTP/1.1; offers to switch to another protocol are not taken up, as the standard allows."""

    async def _check_protocol(self, event: h11.Request) -> None:
        """Do not look for HTTP/2: its preface reaches the guard as a request of version 2.0, and is refused."""

    async def _create_stream(self, request: h11.Request) -> None:
        if (fault := _framing_fault(request)) is not None:
            await self._refuse(refusal(400, fault))
            return
        headers = [header for header in request.headers if header[0] != b"upgrade"]
        if len(headers) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def _refuse(self, reply: Reply) -> None:
        """Answer at once and close: where this request ends, and the next one begins, nobody can say."""
        length = (b"content-length", b"%d" % len(reply.body))
        headers = [(b"content-type", b"application/json"), length, (b"connection", b"close")]
        await self._send_h11_event(h11.Response(status_code=reply.status, headers=headers))
        await self._send_h11_event(h11.Data(data=reply.body))
        await self._send_h11_event(h11.EndOfMessage())
        await self.send(Closed())


def _framing_fault(request: h11.Request) -> str | None:
    """Say why the end of a request is in doubt, if it is: what a proxy reads otherwise than we do smuggles requests.

    h11 has refused lengths that differ, are no number, or are combined with other codings than chunked (RFC 9112, 6).
    """
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return None
    if b"content-length" in names:
        return "a request has Content-Length or Transfer-Encoding, not both"
    if request.http_version != b"1.1":
        return "Transfer-Encoding needs HTTP/1.1"
    return None
