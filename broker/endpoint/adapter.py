"""MCP: what the SDK is told, and what it asks.

Turns a `tools/call` into a `Call` and an `Answer` into a result; knows no session, no policy, no audit, and
no transport (those are `http.py` and `stdio.py`). What clients ask of running commands beside the tools
(`resources/*`, `tasks/*`) is `outputs.py`. One of the code base's few
broad catches is here, because the SDK's own ones put the text of an exception on the wire.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, TypeAlias

import attrs
import mcp_types as types
import trio
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError

from broker.calls import Answer, Call, Handler, Outputs, Report, ToolInfo
from broker.endpoint.outputs import SILENT_S, OutputHandlers, declares_tasks
from broker.endpoint.tool_result import tool_result
from broker.failures import failure_of
from broker.http.bulk import BULK_KEY, Bulk
from broker.http.guard import SLOT_KEY
from broker.memory.answers import ANSWER_ROOM_KEY, AnswerRoom

log = logging.getLogger("broker.endpoint")

PRINCIPAL = "local"
"""The caller, until broker/access knows better (authentication is a room of its own)."""
TOOLS_FRESH_MS = 300_000
"""How long a client may keep the tool list. It changes only with the broker's version."""
CLIENT_CHARS = 128
"""What a client says of itself goes into every audit record, so it is cut."""

NONE: Mapping[str, object] = MappingProxyType({})

Context = ServerRequestContext[Any, Any]
McpServer: TypeAlias = Server[Any]


def build_server(
    handler: Handler,
    tools: Mapping[str, ToolInfo],
    *,
    version: str,
    instructions: str,
    outputs: Outputs | None = None,
    silent_s: float = SILENT_S,
) -> McpServer:
    """Build the MCP server that announces *tools* and gives every call to *handler*.

    With *outputs* it serves what commands say as resources, and commands as tasks, too; a stream of news of them that
    has been silent for *silent_s* seconds gives its place to a newcomer.
    """
    output_handlers = None if outputs is None else OutputHandlers(handler, outputs, call_of, silent_s)
    adapter = _Adapter(handler, tools, output_handlers)
    server: Server[Any] = Server(
        "remote-broker",
        title="Remote Broker",
        version=version,
        instructions=instructions,
        cache_hints={"tools/list": CacheHint(ttl_ms=TOOLS_FRESH_MS, scope="public")},
        # Without it the SDK lists all tools at every call, to find out that no argument is twinned in a header.
        get_tool_input_schema=lambda _name: None,
        on_list_tools=adapter.on_list_tools,
    )
    server.add_request_handler("tools/call", types.CallToolRequestParams, adapter.on_call_tool)
    if output_handlers is not None:
        output_handlers.register_at(server)
    return server


@attrs.define(eq=False)
class _Adapter:
    """Answers the two questions that a client asks of our tools."""

    _handler: Handler
    _tools: Mapping[str, ToolInfo]
    _outputs: OutputHandlers | None
    _listed: types.ListToolsResult = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._listed = types.ListToolsResult(tools=[_announced(tool) for tool in self._tools.values()])

    async def on_list_tools(
        self, _context: Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """Give all tools on one page."""
        await trio.lowlevel.checkpoint()
        return self._listed

    async def on_call_tool(self, context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
        """Ask the handler; what it should never raise becomes an incident, not a text on the wire.

        A name that is no tool's goes to the handler too, so that it is audited; the handler's error result then
        goes out as the protocol's own error (-32602), with the result as `data`.
        """
        bulk: Bulk | None = None if context.request is None else context.request.scope.get(BULK_KEY)
        arguments = params.arguments or {} if bulk is None else bulk.give_back(params.arguments or {})
        call = call_of(context, params.name, arguments, _report(context))
        with _slot(context.request):
            try:
                answer = await self._handler.handle(call)
            except Exception as exc:
                incident_id = secrets.token_hex(8)
                log.exception("incident %s: the gateway raised on %.64r", incident_id, params.name)
                answer = Answer(structured=failure_of(exc, incident_id).to_structured(), is_error=True)
        if self._outputs is not None and not answer.is_error:
            self._outputs.learn(context, call.arguments.get("session_id"), answer.structured.get("session_id"))
        tool = self._tools.get(params.name)
        if tool is None and answer.is_error:
            raise MCPError(types.INVALID_PARAMS, f"Unknown tool: {params.name[:CLIENT_CHARS]!r}", answer.structured)
        if (
            self._outputs is not None
            and declares_tasks(context)
            and (task := self._outputs.tasks.instead_of(call, answer))
        ):
            return task
        fields = tool.bulk_fields if tool else ()
        if bulk is not None:
            held = bulk.hold(answer.structured, fields) if fields else bulk.hold_told(answer.structured)
            answer = attrs.evolve(answer, structured=held)
            del held
        return tool_result(answer, bulk=fields, version=context.protocol_version)


def _announced(tool: ToolInfo) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=dict(tool.input_schema),
        output_schema=dict(tool.output_schema),
        annotations=types.ToolAnnotations.model_validate(dict(tool.annotations)),
    )


def _slot(request: Any) -> AbstractContextManager[None]:
    """Hold the HTTP request's slot while the work goes on; on stdio there is no request."""
    slot = None if request is None else request.scope.get(SLOT_KEY)
    return nullcontext() if slot is None else slot.held()


def call_of(
    context: Context, tool: str = "", arguments: Mapping[str, object] = NONE, report: Report | None = None
) -> Call:
    """Return the call of a request; without *tool* it only says who asks."""
    told = context.session.client_params
    room: AnswerRoom | None = None if context.request is None else context.request.scope.get(ANSWER_ROOM_KEY)
    client = f"{told.client_info.name} {told.client_info.version}" if told else ""
    return Call(
        tool=tool,
        arguments=arguments,
        principal=PRINCIPAL,
        client=client[:CLIENT_CHARS],
        request_id=str(context.request_id)[:CLIENT_CHARS],
        base_url=_base_url(context.request),
        report=report,
        reserve=None if room is None else room.reserve,
    )


def _base_url(request: Any) -> str:
    """How the client reaches this server: the Host it named, which the guard has allowed; on stdio nothing."""
    if request is None:
        return ""
    host = next((value.decode("latin-1") for name, value in request.scope["headers"] if name == b"host"), "")
    return f"{request.scope['scheme']}://{host}" if host else ""


def _report(context: Context) -> Report | None:
    """The way to report progress on this request, if its client asked for it by a token."""
    if context.meta is None or context.meta.get("progress_token") is None:
        return None

    async def report(progress: float, message: str) -> None:
        await context.session.report_progress(progress, None, message)

    return report
