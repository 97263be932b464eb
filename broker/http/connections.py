"""The connections: accepted, bounded in number, HTTP/1.1 only, each behind a wall of its own.

The protocol is Hypercorn's; the loop around it is ours, because Hypercorn's own lets one client stop the server:
an exception in one connection ends them all (a WebSocket header that is not ASCII is enough), and a client that
asks for HTTP/2 leaves a task and a descriptor behind for ever. So nothing here switches protocols, and what goes
wrong in a connection ends that connection alone.
"""

from __future__ import annotations

import logging
import select
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET, socket
from typing import Any, cast

import attrs
import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup, _handle
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from broker.access.peerwatch import PeerWatch
from broker.http.admission import Places, longest_idle
from broker.http.asgi import ABORT_KEY, BODY_SOCKET_KEY, SERVER_BUSY, Reply, refusal
from broker.http.bodysocket import BodySocket
from broker.logs import describe_without_text
from sandbox.threads import run_in_thread

log = logging.getLogger("broker.connections")

READ_BYTES = 64 * 1024
BULK_READ_BYTES = 256 * 1024
TURN_AWAY_S = 1.0
"""Seconds that who is refused has to take the answer."""
MAX_LINGERING = 32
"""Of those; to others the answer is sent and no more."""
RETRY_AFTER_S = 2
"""When to come back while all connections are busy."""
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

    A connection that *watch* says no to is refused before a byte of it is read. Above *max_connections* the one that
    has been idle for longest is closed, or, where all are busy, the newcomer told to come back. At the end idle ones
    are closed; busy ones have `config.graceful_timeout` seconds to finish.

    Ownership: the sockets are closed on the way out.
    """
    server = _ConnectionServer(app, config, Places(max_connections, _choose), watch)
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, server.serve, listeners, handler_nursery=connections))
            await until()
            accepting.cancel_scope.cancel(reason="the broker is stopping")
        await server.context.terminated.set()  # idle connections close, busy ones after their answer
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout


@attrs.define(eq=False)
class _Client:
    """One connection as the server sees it."""

    stream: trio.SocketStream
    _wait: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def leave(self) -> None:
        """Stop waiting for the client."""
        self._wait.cancel(reason="idle for longest, and a newcomer needs the place")

    @contextmanager
    def waiting(self) -> Iterator[trio.CancelScope]:
        """Wait for the client in the block; it ends at once when the place is needed."""
        with trio.CancelScope() as self._wait:
            yield self._wait

    @property
    def has_spoken(self) -> bool:
        """Whether there is something that nobody has read yet: it is no longer idle, or gone."""
        readable = select.poll()
        readable.register(self.stream.socket.fileno(), select.POLLIN)
        return bool(readable.poll(0))


def _choose(idle: Iterable[_Client]) -> _Client | None:
    """The longest idle; one whose request is just coming in only where those of all others are, too."""
    clients = tuple(idle)
    return next((client for client in clients if not client.has_spoken), longest_idle(clients))


@attrs.define(eq=False)
class _ConnectionServer:
    """State that all connections share."""

    _app: Any
    _config: Config
    places: Places[_Client]
    _watch: PeerWatch | None
    context: WorkerContext = attrs.field(init=False, factory=lambda: WorkerContext(None))
    _lingering: int = attrs.field(init=False, default=0)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Speak HTTP on *stream* until it ends; whatever goes wrong in there ends this connection alone."""
        client = _Client(stream)
        try:
            if self.places.admit(client):
                await self._serve_allowed(client)
            else:
                log.warning("refused a connection: %d are busy, which is the limit", self.places.limit)
                why = f"{self.places.limit} connections are busy, which is server.max_connections; try again"
                await self._turn_away(stream, refusal(503, why, code=SERVER_BUSY, retry_after_s=RETRY_AFTER_S))
        except Exception as exc:  # noqa: BLE001 - the wall: one client must not end the others
            log.warning("a connection ended by an error: %s", describe_without_text(exc))
        finally:
            self.places.remove(client)
            await trio.aclose_forcefully(stream)

    async def _serve_allowed(self, client: _Client) -> None:
        refused = ""
        with client.waiting() as looked_at:
            refused = await self._watch.refuses(client.stream.socket) if self._watch else ""
        if looked_at.cancelled_caught:
            return
        if refused:
            self.places.remove(client)  # else a session could cost others their places by trying again and again
            await self._turn_away(client.stream, refusal(403, refused))
        else:
            await _Connection(self._app, self._config, self, client).run()

    async def _turn_away(self, stream: trio.SocketStream, reply: Reply) -> None:
        """Answer whatever would be asked; linger until it is taken, for a socket closed with unread data is reset."""
        with trio.move_on_after(TURN_AWAY_S), suppress(trio.BrokenResourceError):
            await stream.send_all(_whole(reply))
            await stream.send_eof()
            if self._lingering < MAX_LINGERING:
                self._lingering += 1
                try:
                    while await stream.receive_some(READ_BYTES):
                        pass
                finally:
                    self._lingering -= 1


def _whole(reply: Reply) -> bytes:
    """The answer as it goes over the wire of a connection that is closed behind it."""
    length = (b"content-length", b"%d" % len(reply.body))
    headers = [(b"content-type", b"application/json"), length, (b"connection", b"close"), *reply.headers]
    status = b"HTTP/1.1 %d %s" % (reply.status, HTTPStatus(reply.status).phrase.encode())
    return b"\r\n".join([status, *(b"%s: %s" % header for header in headers), b"", reply.body])


class _Connection(TCPServer):
    """Hypercorn's connection, which starts with HTTP/1.1 and stays there."""

    def __init__(self, app: Any, config: Config, server: _ConnectionServer, client: _Client) -> None:
        # Hypercorn's annotations name TLS streams only; it serves plain ones as well.
        super().__init__(ASGIWrapper(app), config, server.context, cast("Any", {}), cast("Any", client.stream))
        self._socket = client.stream.socket
        self._places = server.places
        self._client = client
        self._client_left = False

    async def run(self) -> None:
        """Serve until the client leaves, is idle too long, or the broker stops."""
        try:
            client = parse_socket_addr(self._socket.family, self._socket.getpeername())
            server = parse_socket_addr(self._socket.family, self._socket.getsockname())
            async with _Tasks() as tasks:
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
            size = READ_BYTES if len(data) < READ_BYTES else min(2 * len(data), BULK_READ_BYTES)
            if not self._places.holds(self._client):
                break  # it has to go, and no request has come
        if self._places.holds(self._client):  # else half a request may be there, of which nobody has to hear
            await self.protocol.handle(RawData(b""))
        await self.protocol.handle(Closed())

    async def _receive(self, size: int) -> bytes:
        try:
            with self._client.waiting():
                return bytes(await self.stream.receive_some(size))
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        return b""  # it is gone, one way or the other, or has to go

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol says; but a client that has left gets no time to ask again."""
        if isinstance(event, Updated):
            (self._places.idle if event.idle else self._places.busy)(self._client)
        await super().protocol_send(Closed() if self._client_left and isinstance(event, Updated) else event)


class _Tasks(TaskGroup):
    """Hypercorn's, but a request's end is told without waiting, and nobody waits to tell an app that has ended.

    It is told by the app's own task, in the middle of a send: with a full queue that task would wait for itself.
    """

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """Start *app* on a request; return what hands it the events of that."""
        events, heard = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def to_its_end(*arguments: Any) -> None:
            with heard:
                await app(*arguments)

        async def receive() -> Any:
            try:
                return await heard.receive()
            except trio.EndOfChannel:
                return {"type": "http.disconnect"}

        async def hand_on(event: Any) -> None:
            if event["type"] == "http.disconnect":
                events.close()
            else:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await events.send(event)

        self.spawn(_handle, to_its_end, config, scope, receive, send, run_in_thread, trio.from_thread.run)
        return hand_on


class _Http1(H11Protocol):
    """HTTP/1.1; offers to switch to another protocol are not taken up, as the standard allows."""

    async def stream_send(self, event: Any) -> None:
        """Pass an answer on; who is answered and still sends does nothing that others must make room for."""
        await super().stream_send(event)
        if isinstance(event, Response) and self.connection.their_state is h11.SEND_BODY:
            await self.send(Updated(idle=True))

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
