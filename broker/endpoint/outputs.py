"""Methods of MCP about commands, beside tools: `resources/*`, `subscriptions/listen`, `tasks/*`, as the SDK has them.

Owns who is told of what: a subscription of the handshake era lives as long as its connection, one of 2026-07-28 as
long as its request. What is told is decided in `resources.py` and `tasks.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import mcp_types as types
import trio
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY

from broker.calls import Call, Handler, Outputs
from broker.endpoint.resources import ResourceNotFound, Resources
from broker.endpoint.tasks import SINCE, TASKS, TaskNotFound, Tasks
from broker.http.admission import Places
from broker.session.outputs import parse_uri

MAX_FOLLOWED = 32
"""Resources that one connection or stream may follow."""
NAMED = "broker.named"
"""Under which a connection keeps the sessions that its client made or named."""
MAX_NAMED = 256
"""Of them; the one named longest ago is not listed any more."""
MAX_STREAMS = 16
"""Streams of all clients together: each holds a call's place."""
SILENT_S = 60.0
"""Seconds without an event after which a stream gives its place to a newcomer: nobody can tell whether it is read."""
NAME_HEADER = "mcp-name"

Context = ServerRequestContext[Any, Any]


class TaskParams(types.RequestParams):
    """Of `tasks/get` and `tasks/cancel`; `tasks/update` has answers as well, to questions that nobody asked."""

    task_id: str


@attrs.define(eq=False)
class _Stream:
    """One of `subscriptions/listen`; `told_at`: when its client was told of something last, or it began."""

    told_at: float = attrs.field(factory=trio.current_time)
    work: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def leave(self) -> None:
        """End it."""
        self.work.cancel(reason="silent for longest, and a newcomer needs the place")


@attrs.define(eq=False)
class OutputHandlers:
    """Answers those questions. `_call_of` says who asks."""

    _handler: Handler
    _outputs: Outputs
    _call_of: Callable[[Context], Call]
    _silent_s: float = SILENT_S
    tasks: Tasks = attrs.field(init=False)
    _resources: Resources = attrs.field(init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _followed: dict[int, dict[str, trio.CancelScope]] = attrs.field(factory=dict, init=False)
    _streams: Places[_Stream] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tasks = Tasks(self._handler)
        self._resources = Resources(self._handler, self._outputs)
        self._streams = Places(MAX_STREAMS, self._choose)

    def register_at(self, server: Server[Any]) -> None:
        """Have *server* ask here."""
        server.lifespan = self._lifespan
        hint = CacheHint(ttl_ms=0, scope="private")
        server.cache_hints |= {"resources/list": hint, "resources/templates/list": hint, "resources/read": hint}
        paged, named = types.PaginatedRequestParams, types.ReadResourceRequestParams
        server.add_request_handler("resources/list", paged, self._list)
        server.add_request_handler("resources/templates/list", paged, self._list_templates)
        server.add_request_handler("resources/read", named, self._read)
        server.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
        server.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)
        server.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, self._listen)
        for method in ("get", "update", "cancel"):
            server.add_request_handler(f"tasks/{method}", TaskParams, partial(self._task, method))
        server.extensions[TASKS] = {}

    @asynccontextmanager
    async def _lifespan(self, _server: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        async with trio.open_nursery() as self._nursery:
            yield {}
            self._nursery.cancel_scope.cancel(reason="the server stops")

    # --- resources

    def learn(self, context: Context, *session_ids: object) -> None:
        """Remember sessions that this connection's client made, or named in a call that was answered."""
        named = _named_by(context)
        for session_id in session_ids:
            if isinstance(session_id, str):
                named.pop(session_id, None)
                named[session_id] = None
        while len(named) > MAX_NAMED:
            del named[next(iter(named))]

    async def _list(self, context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
        """List what this client knows of already: with a session's id comes the session.

        On stdio all sessions are the one client's. Over HTTP a request of 2026-07-28 belongs to no connection, so it
        has named nothing, and gets nothing.
        """
        await trio.lowlevel.checkpoint()
        principal = self._call_of(context).principal
        return self._resources.listed(principal, None if context.request is None else frozenset(_named_by(context)))

    async def _list_templates(self, _context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return self._resources.templates()

    async def _read(self, context: Context, params: types.ReadResourceRequestParams) -> dict[str, Any]:
        try:
            answer = await self._resources.read(self._call_of(context), params.uri)
        except ResourceNotFound as error:
            raise MCPError(types.INVALID_PARAMS, str(error), {"uri": params.uri}) from error
        self.learn(context, parse_uri(params.uri).session_id)
        return answer

    async def _subscribe(self, context: Context, params: types.SubscribeRequestParams) -> dict[str, Any]:
        """Follow a resource until the connection ends (handshake era)."""
        await trio.lowlevel.checkpoint()
        principal = self._call_of(context).principal
        if not self._resources.known(principal, [params.uri]):
            raise MCPError(types.INVALID_PARAMS, "there is no such resource", {"uri": params.uri})
        mine = self._followed_by(context)
        if len(mine) >= MAX_FOLLOWED and params.uri not in mine:
            raise MCPError(types.INVALID_PARAMS, f"{MAX_FOLLOWED} resources are followed on this connection already")
        if params.uri not in mine and self._nursery is not None:
            mine[params.uri] = trio.CancelScope()
            tell = partial(context.session.send_resource_updated, params.uri)
            self._nursery.start_soon(self._follow, principal, params.uri, tell, mine)
        return {}

    async def _unsubscribe(self, context: Context, params: types.UnsubscribeRequestParams) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        scope = self._followed_by(context).pop(params.uri, None)
        if scope is not None:
            scope.cancel(reason="unsubscribed")
        return {}

    def _followed_by(self, context: Context) -> dict[str, trio.CancelScope]:
        """Return what the connection follows; forgotten when it ends."""
        connection = context.session._connection  # noqa: SLF001  the SDK has no other way to its exit stack here
        key = id(connection)
        if key not in self._followed:
            self._followed[key] = {}
            connection.exit_stack.callback(self._forget, key)
        return self._followed[key]

    def _forget(self, key: int) -> None:
        for scope in self._followed.pop(key, {}).values():
            scope.cancel(reason="the connection ended")

    async def _follow(
        self, principal: str, uri: str, tell: Callable[[], Awaitable[None]], mine: dict[str, trio.CancelScope]
    ) -> None:
        with mine[uri] as scope:
            await self._resources.follow(principal, uri, tell)
        if mine.get(uri) is scope:  # complete; it may also have been unsubscribed, and subscribed again
            del mine[uri]

    async def _listen(self, context: Context, params: types.SubscriptionsListenRequestParams) -> dict[str, Any]:
        """Follow resources on the stream of this request, until all of them are complete or the client leaves."""
        asked = params.notifications
        if (asked.model_extra or {}).get("taskIds") and not declares_tasks(context):
            raise _missing_tasks()
        stream = _Stream()
        if not self._streams.admit(stream):
            why = (
                f"{MAX_STREAMS} streams are open, which is the limit, and all had news in the last {self._silent_s:g} s"
            )
            raise MCPError(types.INTERNAL_ERROR, f"{why}; try again", {"retry_after_s": self._silent_s})
        principal = self._call_of(context).principal
        uris = self._resources.known(principal, list(asked.resource_subscriptions or ()))[:MAX_FOLLOWED]
        meta = {SUBSCRIPTION_ID_META_KEY: context.request_id}

        async def tell(uri: str) -> None:
            await _updated(context, uri, meta)
            stream.told_at = trio.current_time()
            self._streams.idle(stream)

        try:
            with stream.work:
                await _acknowledge(context, uris, meta)
                async with trio.open_nursery() as nursery:
                    for uri in uris:
                        nursery.start_soon(self._resources.follow, principal, uri, partial(tell, uri))
        finally:
            self._streams.remove(stream)
        if stream.work.cancelled_caught:
            why = f"of {MAX_STREAMS} streams, this one had been silent for longest when a newcomer came; listen again"
            raise MCPError(types.INTERNAL_ERROR, why)
        return {"resultType": "complete", "_meta": meta}

    def _choose(self, silent: Iterable[_Stream]) -> _Stream | None:
        latest = trio.current_time() - self._silent_s
        return next((stream for stream in silent if stream.told_at <= latest), None)

    # --- tasks

    async def _task(self, method: str, context: Context, params: TaskParams) -> dict[str, Any]:
        if not declares_tasks(context):
            raise _missing_tasks()
        _require_name(context, params.task_id)
        call = self._call_of(context)
        try:
            match method:
                case "get":
                    return await self.tasks.get(call, params.task_id, context.protocol_version)
                case "cancel":
                    return await self.tasks.cancel(call, params.task_id)
                case _:
                    return self.tasks.update(call.principal, params.task_id)
        except TaskNotFound as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from error


def _named_by(context: Context) -> dict[str, None]:
    """The sessions that the client of this connection made or named, the latest last."""
    connection = context.session._connection  # noqa: SLF001  the SDK has no other way to a connection's state
    named: dict[str, None] = connection.state.setdefault(NAMED, {})
    return named


def declares_tasks(context: Context) -> bool:
    """Whether this request's client knows tasks; nobody else ever sees one."""
    capabilities = context.session.client_capabilities
    extensions = None if capabilities is None else capabilities.extensions
    return context.protocol_version >= SINCE and extensions is not None and TASKS in extensions


def _missing_tasks() -> MCPError:
    needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
    return MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "Missing required client capability", needed)


def _require_name(context: Context, task_id: str) -> None:
    """Over HTTP the header must name the task, since whatever lies between may route by it."""
    if context.request is not None and context.request.headers.get(NAME_HEADER) != task_id:
        raise MCPError(types.HEADER_MISMATCH, f"the {NAME_HEADER} header must be the taskId of the body")


async def _acknowledge(context: Context, uris: tuple[str, ...], meta: dict[str, Any]) -> None:
    honored = types.SubscriptionFilter(resource_subscriptions=list(uris) or None)
    told = types.SubscriptionsAcknowledgedNotificationParams(notifications=honored, _meta=meta)
    await context.session.send_notification(
        types.SubscriptionsAcknowledgedNotification(params=told), related_request_id=context.request_id
    )


async def _updated(context: Context, uri: str, meta: dict[str, Any]) -> None:
    told = types.ResourceUpdatedNotificationParams(uri=uri, _meta=meta)
    await context.session.send_notification(
        types.ResourceUpdatedNotification(params=told), related_request_id=context.request_id
    )
