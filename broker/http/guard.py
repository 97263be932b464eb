"""The thin ASGI layer between Hypercorn and the MCP SDK.

It decides what reaches the SDK at all: HTTP/1.1, an allowed Host and Origin, `/mcp`, a whole body within its
size and time, a free slot, not while draining. It answers `/healthz` itself and hands `/transfers/` to the
application for raw transfers. It knows no tool and no session; of MCP it knows the name of one header and the shape
of a JSON-RPC message, because two requests with one id on one handshake-era connection would hang the first.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import attrs
import trio

from broker.contract.urls import TRANSFERS_PATH
from broker.http.admission import Slot, Slots
from broker.http.asgi import (
    INVALID_REQUEST,
    PARSE_ERROR,
    SERVER_BUSY,
    Exchange,
    Receive,
    Reply,
    Scope,
    Send,
    Unread,
    abort_of,
    read_body,
    refusal,
)
from broker.http.body_shape import shape_of
from broker.http.bulk import BULK_KEY, Body, Bulk
from broker.http.mcp_sessions import ASGIApp, McpSessions, session_id_of
from broker.http.origins import HostRules
from broker.http.transfer_app import TransferApp
from broker.memory.answers import ANSWER_ROOM_KEY, AnswerRoom
from broker.memory.budget import SMALL_BYTES, ByteBudget, Hold

MCP_PATH = "/mcp"
HEALTH_PATH = "/healthz"
SLOT_KEY = "broker.slot"
"""Where the slot of a call is found in the ASGI scope, so that its work can hold it too."""
VERSION_HEADER = b"mcp-protocol-version"
ROOM_WAIT_S = 10.0
"""Seconds a large body waits for room, unread: longer than those that keep others waiting have."""
ROOM_RETRY_S = 5
"""When to come back after that."""
ANSWER_S = 2.0
"""Seconds that answers have to get out once the drain has ended the work."""
PARSED_COST = 16
"""Bytes that the SDK takes for one that it parses: copies, a `str` of four bytes a character, what is made of it."""
KEPT_COST = 6
"""Of those that stay until its call ends."""
NOTIFICATION_BYTES = 64 * 1024
"""A busy broker still takes notifications (one may cancel a call), if they are no larger than this."""


@attrs.frozen(kw_only=True)
class GuardLimits:
    """Limits of what one client may cost."""

    max_body_bytes: int = attrs.field(validator=attrs.validators.gt(0))
    body_timeout_s: float = attrs.field(validator=attrs.validators.gt(0))
    max_calls_in_flight: int = attrs.field(validator=attrs.validators.gt(0))
    max_mcp_sessions: int = attrs.field(validator=attrs.validators.gt(0))


@attrs.frozen(kw_only=True)
class MemoryBudgets:
    """Budgets of memory: what large bodies, and large answers, of all clients may hold together."""

    bodies: ByteBudget
    answers: ByteBudget
    parsing: ByteBudget
    """For what the SDK makes of them. Who waits here holds room for its body; who is here waits for none."""

    @classmethod
    def of(cls, *, bodies_bytes: int, answers_bytes: int) -> MemoryBudgets:
        """So large that bodies, and what is made of them, stay below twice *bodies_bytes*."""
        return cls(
            bodies=ByteBudget(bodies_bytes),
            answers=ByteBudget(answers_bytes),
            parsing=ByteBudget(bodies_bytes * 3 // 4),  # the rest is for what tools make of strings
        )

    @property
    def max_rest_bytes(self) -> int:
        """How much a body may have beside the long strings among its arguments, all of which the SDK parses."""
        return self.parsing.limit_bytes // PARSED_COST


@attrs.define(eq=False)
class _Body:
    """A whole body on its way to who needs it: a name for it on the way would keep it as long as the call."""

    _bytes: Body
    hold: Hold | None
    """The room it has, if it is not small."""

    def take(self) -> Body:
        """Return it, once."""
        body, self._bytes = self._bytes, b""
        return body


@attrs.define(eq=False, kw_only=True)
class Guard:
    """The ASGI application that Hypercorn runs; *app* is the SDK's."""

    _app: ASGIApp
    _rules: HostRules
    _limits: GuardLimits
    _budgets: MemoryBudgets
    _version: str
    _handshake_versions: Collection[str]
    """A request that names another one, of the protocol, belongs to no MCP session."""
    _transfers: TransferApp | None = None
    draining: bool = False
    calls: Slots = attrs.field(init=False)
    _bodies: dict[trio.CancelScope, None] = attrs.field(init=False, factory=dict)
    _streams: set[trio.CancelScope] = attrs.field(init=False, factory=set)
    _mcp_sessions: McpSessions = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._mcp_sessions = McpSessions(self._app, self._limits.max_mcp_sessions, self._runs_call)
        self.calls = Slots(self._limits.max_calls_in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (HTTP: `connections.py` lets nothing else through)."""
        if reply := self._reply_at_once(scope):
            await reply.send(send, rest=receive)
        elif self._transfers is not None and scope["path"].startswith(TRANSFERS_PATH):
            await self._transfers(scope, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def drain(self, end_work: Callable[[], Awaitable[None]]) -> None:
        """Refuse new work, end what runs by *end_work*, let the answers out (bounded), end the GET streams."""
        self.draining = True
        await end_work()
        for stream in self._streams:
            stream.cancel(reason="the broker is stopping")
        with trio.move_on_after(ANSWER_S):
            await self.calls.wait_empty()
            if self._transfers is not None:
                await self._transfers.streams.wait_empty()

    def _reply_at_once(self, scope: Scope) -> Reply | None:
        """Return the answer if it takes no more than the head of the request to know it."""
        if refused := self._refuse_sender(scope):
            return refused
        if scope["path"] == HEALTH_PATH:
            return self._health(scope["method"])
        is_transfer = self._transfers is not None and scope["path"].startswith(TRANSFERS_PATH)
        if scope["path"] != MCP_PATH and not is_transfer:
            return refusal(404, f"there is nothing here; MCP is at {MCP_PATH}")
        if self.draining:
            return refusal(503, "the broker is stopping", code=SERVER_BUSY, retry_after_s=5)
        return None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of a request for MCP, and hand it to the SDK if all is well."""
        with ExitStack() as held:
            match await self._read_body(scope, receive, held):
                case _Body() as body:
                    await self._pass_on(scope, receive, send, body, held)
                case Unread.TOO_LARGE:
                    reply = refusal(413, f"the body is larger than {self._limits.max_body_bytes} bytes")
                    await reply.send(send, rest=receive)
                case Unread.TOO_SLOW:
                    await refusal(408, f"the body took longer than {self._limits.body_timeout_s:g} s").send(send)
                case Unread.GONE:
                    pass  # nobody is left to answer
                case Unread.NO_ROOM:
                    await self._no_room().send(send, rest=receive)
                case None:
                    await self._busy("requests").send(send)

    async def _read_body(self, scope: Scope, receive: Receive, held: ExitStack) -> _Body | Unread | None:
        """Read the body, whose room is in *held* afterwards; None: it was slow, and others waited.

        Bodies on their way are bounded, or slow clients could fill memory. The one that began first has to go, for it
        is the slowest: refusing the next one instead would let slow clients keep calls out.
        """
        if len(self._bodies) >= self._limits.max_calls_in_flight:
            slowest = next(iter(self._bodies))
            del self._bodies[slowest]
            slowest.cancel(reason="a body that has taken long makes room for others")
        hold: Hold | None = None
        with trio.CancelScope() as mine:

            async def make_room(size: int) -> bool:
                nonlocal hold
                hold = await self._budgets.bodies.reserve(size, wait_s=ROOM_WAIT_S)
                if hold is None:
                    return False
                held.callback(hold.release)
                hold.keeps_pace(partial(mine.cancel, reason="others wait, and this body is the slowest"))
                return True

            self._bodies[mine] = None
            try:
                body = await read_body(
                    receive,
                    declared_bytes=_declared_bytes(scope),
                    max_bytes=self._limits.max_body_bytes,
                    deadline_s=self._limits.body_timeout_s,
                    make_room=make_room,
                )
            finally:
                self._bodies.pop(mine, None)
            if isinstance(body, Unread):
                return body
            if hold is not None:
                hold.at_rest()
                hold.resize(len(body))
            return _Body(body, hold)
        return None

    def _too_much_beside(self, size: int) -> str:
        return (
            f"the body has {size} bytes beside long strings that are arguments of a tool and Unicode text; at most "
            f"{self._budgets.max_rest_bytes} are taken (3/64 of server.max_bodies_bytes); send long content as one "
            "string"
        )

    def _no_room(self) -> Reply:
        limit = self._budgets.bodies.limit_bytes
        why = (
            f"large bodies of all clients together may have {limit} bytes (server.max_bodies_bytes), and for this one "
            f"there was no room in {ROOM_WAIT_S:g} s; try again"
        )
        return refusal(503, why, code=SERVER_BUSY, retry_after_s=ROOM_RETRY_S)

    def _refuse_sender(self, scope: Scope) -> Reply | None:
        """Check who asks, on which protocol and under which name; also writes the Host in its one spelling."""
        if not scope["http_version"].startswith("1"):
            # The preface of HTTP/2 arrives as a request of version 2.0.
            return refusal(505, "use HTTP/1.1")
        named = False
        for index, (name, value) in enumerate(scope["headers"]):
            if name == b"host":
                host = self._rules.canonical_host(value.decode("latin-1"))
                if host is None:
                    return refusal(421, "this Host is not allowed; the operator lists them in server.allowed_hosts")
                scope["headers"][index] = (name, host.encode())
                named = True
            elif name == b"origin" and not self._rules.origin_allowed(value.decode("latin-1")):
                return refusal(403, "this Origin is not allowed; the operator lists them in server.allowed_origins")
        return None if named else refusal(421, "the request names no Host")

    def _health(self, method: str) -> Reply:
        if method not in {"GET", "HEAD"}:
            return attrs.evolve(refusal(405, "use GET"), headers=((b"allow", b"GET, HEAD"),))
        status = "draining" if self.draining else "ok"
        body = json.dumps({"status": status, "version": self._version}).encode()
        return Reply(503 if self.draining else 200, body)

    def _busy(self, what: str) -> Reply:
        limit = self._limits.max_calls_in_flight
        return refusal(
            503, f"{limit} {what} are in flight, which is the limit; try again", code=SERVER_BUSY, retry_after_s=1
        )

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, body: _Body, held: ExitStack) -> None:
        """Hand a request to the SDK: streams (GET) can be ended, POSTs are counted, DELETEs just go through."""
        if scope["method"] == "GET":
            await self._stream(scope, Exchange(receive, send, b"", is_stream=True))
        elif scope["method"] == "POST":
            await self._call(scope, receive, send, body, held)
        else:
            exchange = Exchange(receive, send, b"")
            await self._mcp_sessions.serve(scope, exchange.receive, exchange.send)

    async def _call(self, scope: Scope, receive: Receive, send: Send, whole: _Body, held: ExitStack) -> None:
        bulk = Bulk()
        held.callback(bulk.drop)
        body = await self._taken_apart(whole, bulk, held)
        if isinstance(body, Reply):
            return await body.send(send)
        slot = self._admit(scope, body)
        if isinstance(slot, Reply):
            return await slot.send(send)
        slot.when_free = held.pop_all().close  # what the body holds is also the work's, which may outlive this
        room = AnswerRoom(self._budgets.answers, abort_of(scope))
        scope[SLOT_KEY], scope[BULK_KEY], scope[ANSWER_ROOM_KEY] = slot, bulk, room
        greets = self._greets(scope, body)
        with closing(room), ExitStack() as placed:
            placed.enter_context(slot.held())
            exchange = Exchange(receive, send, body, bulk=bulk, room=room, on_complete=placed.close)
            del body  # the exchange lets go of it when it has been asked for
            await self._mcp_sessions.serve(scope, exchange.receive, exchange.send, greets=greets)
        return None

    async def _taken_apart(self, whole: _Body, bulk: Bulk, held: ExitStack) -> bytes | Reply:
        """Return what of a body the SDK gets, when there is room for what that takes; *bulk* has the others."""
        body = whole.take()
        size, rest = len(body), bulk.take(body)
        if len(rest) == size:
            shape = await shape_of(body)
            if shape.fault:
                return refusal(400, shape.fault)
            rest = bulk.take_all(body, shape.long_strings)
        if len(rest) > self._budgets.max_rest_bytes:
            return refusal(400, self._too_much_beside(len(rest)))
        rest = bytes(rest)
        if whole.hold is not None:
            whole.hold.resize(len(rest))
            self._budgets.bodies.take_while_alive(bulk.buffers())
        if len(rest) > SMALL_BYTES:
            parsing = await self._budgets.parsing.reserve(PARSED_COST * len(rest), wait_s=ROOM_WAIT_S)
            if parsing is None:
                return self._no_room()
            held.callback(parsing.release)
            bulk.when_parsed = partial(parsing.resize, KEPT_COST * len(rest))
        return rest

    async def _stream(self, scope: Scope, exchange: Exchange) -> None:
        with trio.CancelScope() as stream:
            self._streams.add(stream)
            try:
                await self._mcp_sessions.serve(scope, exchange.receive, exchange.send)
            finally:
                self._streams.discard(stream)
        await exchange.finish()

    def _greets(self, scope: Scope, body: bytes) -> bool:
        """Whether a POST wants an MCP session; one that names a session has it already, and is not parsed for that."""
        if session_id_of(scope["headers"]) is not None:
            return False
        version = next((value.decode("latin-1") for name, value in scope["headers"] if name == VERSION_HEADER), None)
        if version is not None and version not in self._handshake_versions:
            return False
        try:
            message = _decode(body)
        except ValueError:
            return False
        return isinstance(message, dict) and message.get("method") == "initialize"

    def _runs_call(self, mcp_session: bytes) -> bool:
        """Whether a call of that MCP session is in flight, its client there or not."""
        return any(isinstance(key, tuple) and key[0] == mcp_session for key in self.calls.keys)

    def _admit(self, scope: Scope, body: bytes) -> Slot | Reply:
        """Find a slot for a POST, or say why there is none."""
        key: tuple[bytes, str] | None = None
        mcp_session = session_id_of(scope["headers"])
        if mcp_session is not None:
            request_id = _handshake_request_id(body)
            if isinstance(request_id, Reply):
                return request_id
            key = (mcp_session, request_id) if request_id is not None else None
            if key is not None and key in self.calls.keys:
                return refusal(400, "a request with this id is in flight on this MCP session")
        if self.calls.full and not _is_notification(body):
            return self._busy("calls")
        return self.calls.new(key)


def _declared_bytes(scope: Scope) -> int:
    """Return the Content-Length; h11 has refused any that is not a number, or not the only one."""
    return next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)


def _decode(body: bytes) -> Any:
    """Decode JSON; raises ValueError also for what nests too deep."""
    try:
        return json.loads(body)
    except RecursionError as exc:
        raise ValueError("nests too deep") from exc


def _handshake_request_id(body: bytes) -> str | Reply | None:
    """Return the id of a request as the SDK keys it (`1` and `"1"` are one id to it), None if it has none."""
    try:
        message = _decode(body)
    except ValueError:
        return refusal(400, "the body is not JSON", code=PARSE_ERROR)
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        return refusal(400, "the body must be one JSON-RPC 2.0 message")
    if "method" not in message or "id" not in message:
        return None
    request_id = message["id"]
    if type(request_id) not in {int, str}:
        return refusal(400, "the id of a request must be a string or an integer", code=INVALID_REQUEST)
    return str(request_id)


def _is_notification(body: bytes) -> bool:
    """Whether the body is a message that asks for no answer (a notification, or the answer to a question)."""
    if len(body) > NOTIFICATION_BYTES:
        return False
    try:
        message = _decode(body)
    except ValueError:
        return False
    return isinstance(message, dict) and ("id" not in message or "method" not in message)
