"""The MCP sessions of the handshake era (2025), counted; the longest idle one goes when a newcomer needs its place.

The SDK refuses the newcomer instead, so that a few greetings without a goodbye keep the whole era out. A session is in
use while a request of it is served, its stream is open, or a call of it runs whose client has left. One that had to
go is ended as if its client had said goodbye: the client's next request gets 404, which says that it must greet again.
Knows nothing of our own sessions, which live on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

import attrs
import trio

from broker.http.admission import Places
from broker.http.asgi import SERVER_BUSY, Message, Receive, Scope, Send, refusal

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

MCP_SESSION_HEADER = b"mcp-session-id"
END_S = 5.0
"""Seconds that the SDK has to end one."""
RETRY_AFTER_S = 5
"""When to come back while all are in use."""


@attrs.define(eq=False)
class McpSession:
    """One of them; `id` is what the SDK calls it, empty until it has."""

    _ending: list[bytes]
    id: bytes = b""
    uses: int = 0

    def leave(self) -> None:
        """Have it ended before the newcomer is served."""
        self._ending.append(self.id)


@attrs.define(eq=False)
class McpSessions:
    """Stands before the SDK's entry, `_app`. `_runs_call` says whether a call of a session runs on by itself."""

    _app: ASGIApp
    _limit: int
    _runs_call: Callable[[bytes], bool]
    _places: Places[McpSession] = attrs.field(init=False)
    _known: dict[bytes, McpSession] = attrs.field(factory=dict, init=False)
    _ending: list[bytes] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._places = Places(self._limit, self._choose)

    async def serve(self, scope: Scope, receive: Receive, send: Send, *, greets: bool = False) -> None:
        """Serve one request; *greets*: it names no session and wants one."""
        session_id = session_id_of(scope["headers"])
        session = None if session_id is None else self._known.get(session_id)
        if session is not None:
            await self._serve_in(session, scope, receive, send)
        elif greets:
            await self._greet(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve_in(self, session: McpSession, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                ended = message["status"] == 404 or (scope["method"] == "DELETE" and message["status"] < 400)
                if ended and self._known.pop(session.id, None):
                    self._places.remove(session)
            await send(message)

        with self._used(session):
            await self._app(scope, receive, watch)

    async def _greet(self, scope: Scope, receive: Receive, send: Send) -> None:
        newcomer = McpSession(self._ending)
        if not self._places.admit(newcomer):
            why = f"{self._limit} MCP sessions are in use, which is server.max_mcp_sessions; try again, or end one"
            await refusal(503, why, code=SERVER_BUSY, retry_after_s=RETRY_AFTER_S).send(send)
            return

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                newcomer.id = session_id_of(message["headers"]) or b""
                if newcomer.id:
                    self._known[newcomer.id] = newcomer
            await send(message)

        try:
            with self._used(newcomer):
                await self._end_those_that_leave(scope)
                await self._app(scope, receive, watch)
        finally:
            if not newcomer.id:  # there is none
                self._places.remove(newcomer)

    @contextmanager
    def _used(self, session: McpSession) -> Iterator[None]:
        session.uses += 1
        self._places.busy(session)
        try:
            yield
        finally:
            session.uses -= 1
            if not session.uses:
                self._places.idle(session)

    def _choose(self, idle: Iterable[McpSession]) -> McpSession | None:
        return next((session for session in idle if not self._runs_call(session.id)), None)

    async def _end_those_that_leave(self, scope: Scope) -> None:
        """Say goodbye for them, by the name of the host that the newcomer has used."""
        while self._ending:
            session_id = self._ending.pop()
            self._known.pop(session_id, None)
            host = [(name, value) for name, value in scope["headers"] if name == b"host"]
            goodbye = {**scope, "method": "DELETE", "headers": [*host, (MCP_SESSION_HEADER, session_id)]}
            with trio.move_on_after(END_S, shield=True):
                await self._app(goodbye, _nothing, _unheard)


def session_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the MCP session that *headers* name."""
    return next((value for name, value in headers if name == MCP_SESSION_HEADER), None)


async def _nothing() -> Message:
    await trio.lowlevel.checkpoint()
    return {"type": "http.request", "body": b"", "more_body": False}


async def _unheard(_message: Message) -> None:
    await trio.lowlevel.checkpoint()
