"""The tools, resources and prompts that the official conformance suite asks for, behind our own HTTP layer.

Our eleven tools give the suite little to hold on to. So what is tested here is the way in and out: the guard, the
listener and the SDK beneath them, with every kind of message that MCP sends over HTTP, in both protocol eras.
Prints the URL and serves until standard input ends.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

import mcp_types as types
import trio
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata

from broker.endpoint.http import serve_http
from config.settings import HttpSettings

Context = ServerRequestContext[Any, Any]
Tool = Callable[[Context, types.CallToolRequestParams], Awaitable[dict[str, Any]]]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = "UklGRigAAABXQVZFZm10IBAAAAABAAEARKwAAIhYAQACABAAZGF0YQQAAAAAAAAA"
STEP_S = 0.05
"""The suite asks for this pause between two notifications."""


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def resource(uri: str, mime_type: str, words: str) -> dict[str, Any]:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": words}}


IMAGE = MappingProxyType({"type": "image", "data": PNG, "mimeType": "image/png"})
STATIC: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "test_simple_text": [text("This is a simple text response for testing.")],
        "test_image_content": [dict(IMAGE)],
        "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
        "test_embedded_resource": [
            resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")
        ],
        "test_multiple_content_types": [
            text("Multiple content types test:"),
            dict(IMAGE),
            resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ],
    }
)


def result(*content: dict[str, Any], is_error: bool = False) -> dict[str, Any]:
    return {"content": list(content), "isError": is_error, "resultType": "complete"}


def ask(requests: dict[str, Any], state: str | None = None) -> dict[str, Any]:
    """The answer that asks the client for more before there is a result."""
    asked: dict[str, Any] = {"resultType": "input_required", "inputRequests": requests}
    return asked | ({"requestState": state} if state is not None else {})


def form(message: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    params = {"mode": "form", "message": message, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}


def sample(words: str) -> dict[str, Any]:
    message = {"role": "user", "content": text(words)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}}


ROOTS = MappingProxyType({"method": "roots/list", "params": {}})
WORD = MappingProxyType({"type": "string"})


# -- tools that send messages while they run


async def log(context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    for words in ("started", "processing data", "completed"):
        note = types.LoggingMessageNotification(
            params=types.LoggingMessageNotificationParams(level="info", data=f"Tool execution {words}")
        )
        if context.protocol_version < "2026" or (context.meta or {}).get("io.modelcontextprotocol/logLevel"):
            await context.session.send_notification(note, related_request_id=context.request_id)
        await trio.sleep(STEP_S)
    return result(text(f"{params.name} executed"))


async def progress(context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    for done in (0, 50, 100):
        await context.session.report_progress(done, 100, f"Completed step {done} of 100")
        await trio.sleep(STEP_S)
    return result(text("done"))


# -- tools that ask the client (2025: by a request of their own)


async def sampling(context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    request = types.CreateMessageRequest.model_validate(sample((params.arguments or {}).get("prompt", "")))
    answer = await context.session.send_request(
        request, types.CreateMessageResult, metadata=ServerMessageMetadata(related_request_id=context.request_id)
    )
    return result(text(f"LLM response: {answer.content.text if answer.content.type == 'text' else ''}"))


async def elicit(context: Context, message: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": required}
    answer = await context.session.elicit_form(message, schema, related_request_id=context.request_id)
    return result(text(f"User response: action={answer.action}, content={json.dumps(answer.content or {})}"))


async def elicitation(context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    message = (params.arguments or {}).get("message", "")
    return await elicit(context, message, {"response": {"type": "string"}}, ["response"])


async def defaults(context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    properties = {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    }
    return await elicit(context, "Please review", properties, [])


async def enums(context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    plain = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)]
    properties = {
        "untitledSingle": {"type": "string", "enum": plain},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": plain, "enumNames": ["One", "Two", "Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": plain}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    return await elicit(context, "Please choose", properties, [])


# -- tools that ask the client (2026: by an answer that wants input)


def said(params: types.CallToolRequestParams | types.GetPromptRequestParams) -> dict[str, Any]:
    """What the client answered, by name, as plain values."""
    return {name: answer.model_dump(by_alias=True) for name, answer in (params.input_responses or {}).items()}


async def need_name(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    answer = said(params).get("user_name", {})
    if "name" not in (answer.get("content") or {}):
        return ask({"user_name": form("What is your name?", name=dict(WORD))})
    return result(text(f"Hello, {answer['content']['name']}!"))


async def need_sample(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    if "capital_question" not in said(params):
        return ask({"capital_question": sample("What is the capital of France?")})
    return result(text("The model has answered."))


async def need_roots(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    if "client_roots" not in said(params):
        return ask({"client_roots": dict(ROOTS)})
    return result(text("The roots are known."))


async def need_state(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    if params.request_state is None or "confirm" not in said(params):
        return ask({"confirm": form("Please confirm", ok={"type": "boolean"})}, "first round")
    return result(text("state-ok: confirmed"))


async def need_three(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    wanted = {
        "user_name": form("What is your name?", name=dict(WORD)),
        "greeting": sample("Generate a greeting"),
        "client_roots": dict(ROOTS),
    }
    return result(text("All is known.")) if wanted.keys() <= said(params).keys() else ask(wanted, "three")


async def need_rounds(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    done, answers = int(params.request_state or 0), said(params)
    if done == 2 and "step2" in answers:
        return result(text("Both steps are done."))
    if done == 1 and "step1" in answers:
        return ask({"step2": form("Step 2: What is your favorite color?", color=dict(WORD))}, "2")
    return ask({"step1": form("Step 1: What is your name?", name=dict(WORD))}, "1")


async def need_allowed(context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    able = context.session.client_capabilities
    wanted = {}
    if able is not None and able.sampling is not None:
        wanted["sample"] = sample("Say hello")
    if able is not None and able.elicitation is not None:
        wanted["ask"] = form("What is your name?", name=dict(WORD))
    return ask(wanted, "what the client can")


# -- the others


async def fail(_context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    return result(text("This tool intentionally returns an error for testing"), is_error=True)


async def need_sampling_capability(context: Context, _params: types.CallToolRequestParams) -> dict[str, Any]:
    able = context.session.client_capabilities
    if able is None or able.sampling is None:
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            "this tool needs the client's sampling",
            {"requiredCapabilities": {"sampling": {}}},
        )
    return result(text("the client can sample"))


async def echo(_context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
    return result(text(json.dumps(params.arguments or {})))


NEEDED: Mapping[str, Tool] = MappingProxyType(
    {
        "test_tool_with_logging": log,
        "test_logging_tool": log,
        "test_tool_with_progress": progress,
        "test_streaming_elicitation": progress,
        "test_sampling": sampling,
        "test_elicitation": elicitation,
        "test_elicitation_sep1034_defaults": defaults,
        "test_elicitation_sep1330_enums": enums,
        "test_input_required_result_elicitation": need_name,
        "test_input_required_result_sampling": need_sample,
        "test_input_required_result_list_roots": need_roots,
        "test_input_required_result_request_state": need_state,
        "test_input_required_result_tampered_state": need_state,
        "test_input_required_result_multiple_inputs": need_three,
        "test_input_required_result_multi_round": need_rounds,
        "test_input_required_result_capabilities": need_allowed,
        "test_error_handling": fail,
        "test_missing_capability": need_sampling_capability,
        "test_x_mcp_header": echo,
        "json_schema_2020_12_tool": echo,
    }
)
ARGUMENTS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "test_sampling": {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
        "test_elicitation": {"properties": {"message": {"type": "string"}}, "required": ["message"]},
        "test_x_mcp_header": {"properties": {"region": {"type": "string", "x-mcp-header": "Region"}}},
        "json_schema_2020_12_tool": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$defs": {
                "address": {
                    "$anchor": "addressDef",
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                }
            },
            "properties": {
                "name": {"type": "string"},
                "address": {"$ref": "#/$defs/address"},
                "contactMethod": {"type": "string", "enum": ["phone", "email"]},
                "phone": {"type": "string"},
                "email": {"type": "string"},
            },
            "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
            "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
            "then": {"required": ["phone"]},
            "else": {"required": ["email"]},
            "additionalProperties": False,
        },
    }
)
RESOURCES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
        "test://static-binary": {"mimeType": "image/png", "blob": PNG},
        "test://watched-resource": {"mimeType": "text/plain", "text": "Watched resource content"},
    }
)
PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "test_simple_prompt": (),
        "test_prompt_with_arguments": ("arg1", "arg2"),
        "test_prompt_with_embedded_resource": ("resourceUri",),
        "test_prompt_with_image": (),
        "test_input_required_result_prompt": (),
    }
)


def schema_of(name: str) -> dict[str, Any]:
    return {"type": "object", **ARGUMENTS.get(name, {"properties": {}})}


def build_fixture() -> Server[Any]:
    bus = InMemorySubscriptionBus()
    server: Server[Any] = Server(
        "conformance-fixture",
        version="1",
        get_tool_input_schema=schema_of,
        on_subscriptions_listen=ListenHandler(bus),
        cache_hints={
            method: CacheHint(ttl_ms=1000, scope="public")
            for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
        },
    )
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name))
    changes: Mapping[str, Any] = {
        "test_trigger_tool_change": ToolsListChanged,
        "test_trigger_prompt_change": PromptsListChanged,
    }

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> dict[str, Any]:
        if params.name in STATIC:
            return result(*STATIC[params.name])
        if params.name in changes:
            await bus.publish(changes[params.name]())
            return result(text("changed"))
        if params.name not in NEEDED:
            raise MCPError(types.INVALID_PARAMS, "Unknown tool")
        return await NEEDED[params.name](context, params)

    async def list_tools(_context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
        names = (*STATIC, *NEEDED, *changes)
        tools = [{"name": name, "description": f"Fixture {name}", "inputSchema": schema_of(name)} for name in names]
        return {"tools": tools, "resultType": "complete"}

    page, some = types.PaginatedRequestParams, server.add_request_handler
    some("tools/call", types.CallToolRequestParams, call_tool)
    some("tools/list", page, list_tools)
    some("resources/list", page, list_resources)
    some("resources/templates/list", page, list_templates)
    some("resources/read", types.ReadResourceRequestParams, read_resource)
    some("prompts/list", page, list_prompts)
    some("prompts/get", types.GetPromptRequestParams, get_prompt)
    some("completion/complete", types.CompleteRequestParams, complete)
    for method in ("logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        some(method, types.RequestParams, nothing)
    return server


async def nothing(_context: Context, _params: types.RequestParams) -> dict[str, Any]:
    return {}


async def list_resources(_context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
    listed = [{"uri": uri, "name": uri, "mimeType": held["mimeType"]} for uri, held in RESOURCES.items()]
    return {"resources": listed, "resultType": "complete"}


async def list_templates(_context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
    template = {"uriTemplate": "test://template/{id}/data", "name": "template", "mimeType": "application/json"}
    return {"resourceTemplates": [template], "resultType": "complete"}


async def read_resource(_context: Context, params: types.ReadResourceRequestParams) -> dict[str, Any]:
    uri = str(params.uri)
    held = RESOURCES.get(uri)
    if held is None and uri.startswith("test://template/") and uri.endswith("/data"):
        given = uri.removeprefix("test://template/").removesuffix("/data")
        data = {"id": given, "templateTest": True, "data": f"Data for ID: {given}"}
        held = {"mimeType": "application/json", "text": json.dumps(data)}
    if held is None:
        raise MCPError(types.INVALID_PARAMS, "Resource not found", {"uri": uri})
    return {"contents": [{"uri": uri, **held}], "resultType": "complete"}


async def list_prompts(_context: Context, _params: types.PaginatedRequestParams) -> dict[str, Any]:
    prompts = [
        {
            "name": name,
            "description": f"Fixture {name}",
            "arguments": [{"name": argument, "required": True} for argument in arguments],
        }
        for name, arguments in PROMPTS.items()
    ]
    return {"prompts": prompts, "resultType": "complete"}


async def get_prompt(_context: Context, params: types.GetPromptRequestParams) -> dict[str, Any]:
    given = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            content = [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            content = [
                resource(given["resourceUri"], "text/plain", "Embedded resource content for testing."),
                text("Please process the embedded resource above."),
            ]
        case "test_prompt_with_image":
            content = [dict(IMAGE), text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if "user_context" not in said(params):
                return ask({"user_context": form("What context should the prompt use?", context=dict(WORD))})
            content = [text("The context is known.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, "Unknown prompt")
    messages = [{"role": "user", "content": part} for part in content]
    return {"messages": messages, "resultType": "complete"}


async def complete(_context: Context, _params: types.CompleteRequestParams) -> dict[str, Any]:
    return {"completion": {"values": [], "total": 0, "hasMore": False}, "resultType": "complete"}


async def serve_until_eof(server: Server[Any]) -> None:
    """Serve *server* on a free port of loopback, print its URL, stop when standard input ends."""
    settings = HttpSettings(host="127.0.0.1", port=0, max_body_bytes=1 << 20, body_timeout_s=10, max_calls_in_flight=64)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
            await serve_http(settings, server, stop=stop, end_work=trio.lowlevel.checkpoint, task_status=task_status)

        urls = await nursery.start(run)
        print(urls[0], flush=True)  # noqa: T201 - the test reads it
        async with trio.lowlevel.FdStream(0) as stdin:
            while await stdin.receive_some():
                pass
        stop.set()


if __name__ == "__main__":
    trio.run(serve_until_eof, build_fixture())
