"""Jobs as an MCP client sees them, over real HTTP: long builds in short calls, progress, resources, tasks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs
import mcp_types as types
import pytest
import trio
from mcp.client import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourceUpdated

from broker.contract.table import TOOLS
from broker.endpoint.adapter import build_server
from broker.endpoint.http import serve_http
from broker.endpoint.outputs import MAX_STREAMS
from config.settings import HttpSettings
from tests.broker.tools.test_jobs import SERVER
from tests.support.front import LEGACY, MODERN, Heard, Raw, modern_headers, raw
from tests.support.whole import Whole, open_whole

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours
ERAS = pytest.mark.parametrize("era", [MODERN, LEGACY])
TASKS = "io.modelcontextprotocol/tasks"
LIMIT_S = 5.0
"""After which the client gives a call up; a build here lasts for many calls, each far shorter."""
STAGES = 12
BUILD = f"""
for stage in range({STAGES}):
    print('stage', stage, flush=True)
    input()
print('built')
"""


@attrs.frozen(kw_only=True)
class Front:
    """A whole broker behind HTTP."""

    urls: tuple[str, ...]
    whole: Whole

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


@asynccontextmanager
async def front(base: Path, silent_s: float = 60) -> AsyncIterator[Front]:
    settings = HttpSettings(host="127.0.0.1", port=0, max_body_bytes=10**6, body_timeout_s=20, max_calls_in_flight=32)
    async with open_whole(base, server=SERVER.replace("max_session_age: 1", "max_session_age: 60")) as whole:
        server = build_server(
            whole.gateway, TOOLS, version="1", instructions="", outputs=whole.gateway, silent_s=silent_s
        )
        stop = trio.Event()
        async with trio.open_nursery() as nursery:

            async def run(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
                await serve_http(
                    settings, server, stop=stop, end_work=trio.lowlevel.checkpoint, task_status=task_status
                )

            yield Front(urls=await nursery.start(run), whole=whole)
            nursery.cancel_scope.cancel()


def client(house: Front, era: Any, **fields: Any) -> Client:
    return Client(house.url, mode=era, read_timeout_seconds=LIMIT_S, **fields)


async def ok(mcp: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await mcp.call_tool(tool, arguments)
    assert not result.is_error, result.structured_content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def session_of(mcp: Client) -> str:
    return str((await ok(mcp, "create_session"))["session_id"])


# --- a client with a limit drives a long build


@ERAS
async def test_a_client_with_a_limit_drives_a_long_build(era: str, tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, era) as mcp:
        named = {"session_id": await session_of(mcp)}
        begun = await ok(mcp, "execute_command", argv=["python3", "-c", BUILD], wait_seconds=0.1, **named)
        assert begun["running"] is True
        named["command_id"] = begun["command_id"]
        log, cursor, running, calls = "", 0, True, 0
        while running:
            page = await ok(mcp, "read_output", cursor=cursor, wait_seconds=4, **named)
            calls += 1
            log, cursor, running = log + page["data"], page["next_cursor"], page["running"]
            if page["data"].startswith("stage"):
                await ok(mcp, "write_stdin", data="\n", **named)
        assert calls > STAGES
        assert log.splitlines() == [*(f"stage {n}" for n in range(STAGES)), "built"]
        assert (await ok(mcp, "wait_command", wait_seconds=1, **named))["exit_code"] == 0


class Handle(types.Result):
    """What a server answers instead of a result."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str


class GetTask(types.Request[dict[str, Any], Literal["tasks/get"]]):
    """tasks/get."""

    method: Literal["tasks/get"] = "tasks/get"
    params: dict[str, Any]
    name_param = "taskId"


class TaskState(types.Result):
    """A task, as tasks/get tells it."""

    status: str
    status_message: str | None = None
    result: dict[str, Any] | None = None


class TasksExtension(ClientExtension):
    """A client of the tasks extension: polls, and does what its user does meanwhile."""

    identifier = TASKS

    def __init__(self, meanwhile: Any) -> None:
        self.meanwhile = meanwhile
        self.statuses: list[str] = []

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Handle, resolve=self.poll)]

    async def poll(self, handle: Handle, context: ClaimContext) -> types.CallToolResult:
        self.statuses.append(handle.status)
        while True:
            request = GetTask(params={"taskId": handle.task_id})
            state = await context.session.send_request(request, TaskState)
            self.statuses.append(state.status)
            if state.status != "working":
                return types.CallToolResult.model_validate(state.result)
            await self.meanwhile()


async def test_a_client_with_a_limit_drives_a_long_build_as_a_task(tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, MODERN) as helper:
        session_id = await session_of(helper)

        async def press_enter() -> None:
            """It may have ended since it was asked about, and then takes no input."""
            named = {"session_id": session_id, "command_id": "c1"}
            await helper.call_tool("write_stdin", {**named, "data": "\n"})

        extension = TasksExtension(press_enter)
        async with client(house, MODERN, extensions=[extension]) as mcp:
            argv = ["python3", "-c", BUILD]
            result = await mcp.call_tool(
                "execute_command", {"session_id": session_id, "argv": argv, "wait_seconds": 0.1}
            )
        assert result.structured_content is not None
        assert result.structured_content["stdout"].endswith("built\n")
        assert result.structured_content["exit_code"] == 0
        assert extension.statuses[-1] == "completed"
        assert extension.statuses.count("working") > STAGES // 2


# --- tasks on the wire


@asynccontextmanager
async def wire(house: Front) -> AsyncIterator[Wire]:
    async with raw(house) as connection:  # type: ignore[arg-type]
        yield Wire(connection)


@attrs.define(eq=False)
class Wire:
    """Requests of the 2026 era by hand, with and without the extension declared."""

    connection: Raw

    async def ask(
        self, method: str, params: Mapping[str, Any], *, name: str | None = None, declare: bool = True
    ) -> dict[str, Any]:
        capabilities = {"extensions": {TASKS: {}}} if declare else {}
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": capabilities,
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "9"},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
        headers = modern_headers(method, name)
        heard: Heard = await self.connection.ask("POST", "/mcp", json.dumps(message).encode(), **headers)
        answer: dict[str, Any] = heard.json
        return answer

    async def tool(self, tool: str, *, declare: bool = True, **arguments: Any) -> dict[str, Any]:
        answer = await self.ask("tools/call", {"name": tool, "arguments": arguments}, name=tool, declare=declare)
        result: dict[str, Any] = answer["result"]
        return result

    async def task(self, method: str, task_id: str, **options: Any) -> dict[str, Any]:
        options.setdefault("name", task_id)
        return await self.ask(f"tasks/{method}", {"taskId": task_id, "inputResponses": {}}, **options)


WAITING = ["python3", "-c", "input(); print('done'); raise SystemExit(3)"]


async def new_wire_session(line: Wire) -> str:
    return str((await line.tool("create_session"))["structuredContent"]["session_id"])


async def test_only_a_client_that_declares_tasks_sees_one(tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        session_id = await new_wire_session(line)
        asked = {"session_id": session_id, "argv": WAITING, "wait_seconds": 0}
        plain = await line.tool("execute_command", declare=False, **asked)
        assert plain["resultType"] == "complete"
        assert plain["structuredContent"]["running"] is True
        task = await line.tool("execute_command", **asked)
        assert {name: task[name] for name in ("resultType", "status", "ttlMs")} == {
            "resultType": "task",
            "status": "working",
            "ttlMs": None,
        }
        assert "command c2 has been running" in task["statusMessage"]
        assert len(task["taskId"]) >= 32
        assert task["createdAt"].endswith("Z")
        assert task["pollIntervalMs"] > 0
        done = await line.tool("execute_command", session_id=session_id, argv=["true"], wait_seconds=20)
        assert (done["resultType"], done["structuredContent"]["exit_code"]) == ("complete", 0)
        background = await line.tool("execute_command", session_id=session_id, argv=WAITING, background=True)
        assert background["resultType"] == "complete"


async def test_a_task_ends_with_what_the_call_would_have_answered(tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        session_id = await new_wire_session(line)
        task = await line.tool("execute_command", session_id=session_id, argv=WAITING, wait_seconds=0)
        working = (await line.task("get", task["taskId"]))["result"]
        assert (working["status"], working["resultType"], "result" in working) == ("working", "complete", False)
        assert (await line.task("update", task["taskId"]))["result"]["resultType"] == "complete"
        await line.tool("write_stdin", session_id=session_id, command_id="c1", data="\n")
        await line.tool("wait_command", session_id=session_id, command_id="c1")
        completed = (await line.task("get", task["taskId"]))["result"]
        assert (completed["status"], completed["result"]["isError"]) == ("completed", False)
        assert completed["result"]["structuredContent"]["stdout"] == "done\n"
        assert completed["result"]["structuredContent"]["exit_code"] == 3


async def test_a_cancelled_task_ends_its_command(tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        session_id = await new_wire_session(line)
        task = await line.tool("execute_command", session_id=session_id, argv=WAITING, wait_seconds=0)
        assert set((await line.task("cancel", task["taskId"]))["result"]) <= {"resultType", "_meta"}
        await line.tool("wait_command", session_id=session_id, command_id="c1")
        assert (await line.task("get", task["taskId"]))["result"]["status"] == "cancelled"
        listed = await line.tool("list_commands", session_id=session_id)
        assert listed["structuredContent"]["running_count"] == 0


async def test_a_task_whose_session_is_gone_is_completed_with_the_error(tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        session_id = await new_wire_session(line)
        task = await line.tool("execute_command", session_id=session_id, argv=WAITING, wait_seconds=0)
        await line.tool("kill_session", session_id=session_id)
        completed = (await line.task("get", task["taskId"]))["result"]
        assert (completed["status"], completed["result"]["isError"]) == ("completed", True)
        assert completed["result"]["structuredContent"]["error_code"] == "SESSION_005"


@pytest.mark.parametrize("method", ["get", "update", "cancel"])
async def test_tasks_are_refused_as_the_extension_says(method: str, tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        session_id = await new_wire_session(line)
        task_id = (await line.tool("execute_command", session_id=session_id, argv=WAITING, wait_seconds=0))["taskId"]
        assert (await line.task(method, "no-such-task"))["error"]["code"] == -32602
        undeclared = (await line.task(method, task_id, declare=False))["error"]
        assert undeclared["code"] == -32021
        assert undeclared["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        assert (await line.task(method, task_id, name="another"))["error"]["code"] == -32020
        assert (await line.task(method, task_id, name=None))["error"]["code"] == -32020
        listen = {"notifications": {"taskIds": [task_id]}}
        assert (await line.ask("subscriptions/listen", listen, declare=False))["error"]["code"] == -32021


async def test_the_extension_is_announced(tmp_path: Path) -> None:
    async with front(tmp_path) as house, wire(house) as line:
        capabilities = (await line.ask("server/discover", {}))["result"]["capabilities"]
        assert capabilities["extensions"] == {TASKS: {}}
        assert capabilities["resources"]["subscribe"] is True


# --- progress


@ERAS
async def test_progress_comes_while_a_call_waits(era: str, tmp_path: Path) -> None:
    heard: list[tuple[float, str | None]] = []
    first = trio.Event()

    async def on_progress(progress: float, _total: float | None, message: str | None) -> None:
        await trio.lowlevel.checkpoint()
        heard.append((progress, message))
        first.set()

    async with front(tmp_path) as house, client(house, era) as mcp, client(house, era) as other:
        session_id = await session_of(mcp)
        script = "print('compiling', flush=True); input(); print('linked')"
        answers: list[Any] = []

        async def build() -> None:
            arguments = {"session_id": session_id, "argv": ["python3", "-c", script], "wait_seconds": 20}
            answers.append(await mcp.call_tool("execute_command", arguments, progress_callback=on_progress))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(build)
            await first.wait()
            await ok(other, "write_stdin", session_id=session_id, command_id="c1", data="\n")
    assert heard[0][1] == "compiling"
    assert answers[0].structured_content["stdout"] == "compiling\nlinked\n"


# --- resources


@ERAS
async def test_output_is_a_resource(era: str, tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, era) as mcp:
        session_id = await session_of(mcp)
        await ok(mcp, "execute_command", session_id=session_id, argv=["python3", "-c", "print('hällo')"])
        listed = (await mcp.list_resources()).resources
        base = f"command://{session_id}/c1"
        if era == LEGACY:
            assert [str(resource.uri) for resource in listed] == [f"{base}/stdout", f"{base}/stderr", f"{base}/both"]
            assert (listed[0].size, listed[0].mime_type) == (7, "text/plain")
        else:  # a request of 2026 belongs to no connection: whose sessions these are is not to be known
            assert listed == []
        (template,) = (await mcp.list_resource_templates()).resource_templates
        assert template.uri_template == "command://{session_id}/{command_id}/{stream}"
        (contents,) = (await mcp.read_resource(f"{base}/both")).contents
        assert isinstance(contents, types.TextResourceContents)
        assert contents.text == "hällo\n"
        for uri in (f"{base}/nothing", f"command://{session_id}/c9/stdout", "command://other/c1/stdout", "file:///x"):
            with pytest.raises(MCPError) as caught:
                await mcp.read_resource(uri)
            assert caught.value.error.code == -32602
        reads = [r for r in house.whole.records() if r.get("tool_name") == "read_output"]
        assert reads, "reading a resource is audited"


async def listed_ids(mcp: Client) -> set[str]:
    return {urlsplit(str(resource.uri)).netloc for resource in (await mcp.list_resources()).resources}


async def test_outputs_are_listed_to_who_made_or_named_their_session(tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, LEGACY) as maker, client(house, LEGACY) as other:
        session_ids = [await session_of(maker), (await ok(maker, "create_session", id="chosen"))["session_id"]]
        for session_id in session_ids:
            await ok(maker, "execute_command", session_id=session_id, argv=["true"])
        assert await listed_ids(maker) == set(session_ids)
        assert await listed_ids(other) == set()
        refused = await other.call_tool("list_commands", {"session_id": "not-there"})
        assert refused.is_error
        with pytest.raises(MCPError):
            await other.read_resource(f"command://{session_ids[0]}/c9/stdout")
        assert await listed_ids(other) == set(), "a wrong name tells nothing"
        await other.read_resource(f"command://{session_ids[0]}/c1/stdout")
        assert await listed_ids(other) == {session_ids[0]}
        await ok(other, "list_commands", session_id="chosen")
        assert await listed_ids(other) == set(session_ids)
        async with client(house, LEGACY) as third, client(house, MODERN) as fourth:
            assert await listed_ids(third) == set()
            assert await listed_ids(fourth) == set()


async def test_what_is_listed_shows_no_secret(tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, LEGACY) as mcp:
        session_id = await session_of(mcp)
        argv = ["python3", "-c", "pass", "--password", "hunter22", "--token=hunter23"]
        await ok(mcp, "execute_command", session_id=session_id, argv=argv)
        descriptions = [resource.description for resource in (await mcp.list_resources()).resources]
        assert descriptions[0] == "stdout of: python3 -c pass --password [redacted] --token=[redacted]"
        assert "hunter2" not in str(descriptions)


SAY = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


async def test_a_subscriber_of_2026_hears_of_more_and_of_the_end(tmp_path: Path) -> None:
    async with front(tmp_path) as house, client(house, MODERN) as mcp:
        named = {"session_id": await session_of(mcp)}
        begun = await ok(mcp, "execute_command", argv=["python3", "-c", SAY], background=True, **named)
        uri = f"command://{named['session_id']}/{begun['command_id']}/stdout"
        named["command_id"] = begun["command_id"]
        async with mcp.listen(resource_subscriptions=[uri, "command://x/c1/stdout"]) as changes:
            await ok(mcp, "write_stdin", data="one\n", close=True, **named)
            events = [event async for event in changes]  # the stream ends when nothing more can come
        assert set(events) == {ResourceUpdated(uri=uri)}


@pytest.mark.filterwarnings("ignore:resources/:mcp.shared.exceptions.MCPDeprecationWarning")
async def test_a_subscriber_of_the_handshake_era_hears_of_more(tmp_path: Path) -> None:
    heard: list[str] = []
    updated = trio.Event()

    async def on_message(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(message, types.ResourceUpdatedNotification):
            heard.append(message.params.uri)
            updated.set()

    async with front(tmp_path) as house, client(house, LEGACY, message_handler=on_message) as mcp:
        named = {"session_id": await session_of(mcp)}
        begun = await ok(mcp, "execute_command", argv=["python3", "-c", SAY], background=True, **named)
        uri = f"command://{named['session_id']}/{begun['command_id']}/stdout"
        named["command_id"] = begun["command_id"]
        with pytest.raises(MCPError):
            await mcp.session.subscribe_resource("command://x/c1/stdout")
        await mcp.session.subscribe_resource(uri)
        await ok(mcp, "write_stdin", data="one\n", **named)
        await updated.wait()
        await mcp.session.unsubscribe_resource(uri)
        assert heard[0] == uri


@pytest.mark.parametrize("silent_s", [0, 60])
async def test_a_listener_gives_its_place_to_a_newcomer_when_it_has_been_silent_for_long(
    silent_s: float, tmp_path: Path
) -> None:
    async with front(tmp_path, silent_s) as house, wire(house) as line, AsyncExitStack() as stack:
        session_id = await new_wire_session(line)
        await line.tool("execute_command", session_id=session_id, argv=WAITING, background=True)
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "9"},
        }
        followed = {"notifications": {"resourceSubscriptions": [f"command://{session_id}/c1/both"]}, "_meta": meta}
        message = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": followed}
        body = json.dumps(message).encode()

        async def listen() -> Raw:
            conn = await stack.enter_async_context(raw(house))  # type: ignore[arg-type]  # its port is asked for alone
            headers = {**modern_headers("subscriptions/listen"), "content-length": str(len(body))}
            await conn.send_head("POST", "/mcp", headers)
            await conn.send_body(body)
            assert (await conn.event()).status_code == 200
            return conn

        first, *_ = [await listen() for _ in range(MAX_STREAMS)]
        newcomer = await listen()
        ended = first if silent_s == 0 else newcomer  # nobody has been silent for a minute
        heard = b""
        while b'"error"' not in heard:
            heard += bytes((await ended.event()).data)
        assert str(MAX_STREAMS).encode() in heard
