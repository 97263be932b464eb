"""MCP over the standard input and output of a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.support.front import LEGACY, MODERN

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[3]
SERVER = ROOT / "tests" / "support" / "front.py"
ENV = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
COMMAND = [sys.executable, str(SERVER)]
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}


def call(tool: str, request_id: object, **arguments: object) -> bytes:
    params = {"name": tool, "arguments": arguments, "_meta": META}
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}).encode() + b"\n"


def run(stdin: bytes) -> list[Any]:
    """Pipe *stdin* in; return the messages that came out."""
    said = subprocess.run(COMMAND, input=stdin, capture_output=True, env=ENV, check=True, timeout=20)
    return [json.loads(line) for line in said.stdout.splitlines()]


class Talk:
    """A running server and its pipes."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._buffer = b""

    async def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(data)

    async def hear(self) -> Any:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            data = await self.process.stdout.receive_some()
            assert data, "end of file"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


@asynccontextmanager
async def talking() -> AsyncIterator[Talk]:
    pipe = subprocess.PIPE
    async with trio.open_nursery() as nursery:
        process = await nursery.start(lambda *, task_status: run_process(task_status, pipe))
        yield Talk(process)
        if process.returncode is None:
            process.terminate()  # it ends by itself, and what measures it has time to save
            with trio.fail_after(20):
                await process.wait()


async def run_process(task_status: trio.TaskStatus[trio.Process], pipe: int) -> None:
    await trio.run_process(COMMAND, env=ENV, stdin=pipe, stdout=pipe, stderr=pipe, check=False, task_status=task_status)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
async def test_a_client_lists_and_calls(era: Any) -> None:
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=ENV)
    async with Client(stdio_client(server), mode=era) as mcp:
        assert "echo" in [tool.name for tool in (await mcp.list_tools()).tools]
        result = await mcp.call_tool("echo", {"word": "ü" * 30_000})
        assert result.structured_content == {"success": True, "word": "ü" * 30_000}
        assert (await mcp.call_tool("fail", {})).is_error


def test_what_was_piped_in_is_answered_before_the_end() -> None:
    answers = run(b"".join(call("echo", n, n=n) for n in range(1, 3)))
    assert sorted(answer["result"]["structuredContent"]["n"] for answer in answers) == [1, 2]


def test_stray_output_goes_to_standard_error() -> None:
    said = subprocess.run(COMMAND, input=call("print", 1), capture_output=True, env=ENV, check=True, timeout=20)
    (line,) = said.stdout.splitlines()
    assert json.loads(line)["result"]["structuredContent"] == {"success": True}
    assert b"stray output" in said.stderr


def test_files_work_as_well_as_pipes(tmp_path: Path) -> None:
    asked, told = tmp_path / "requests", tmp_path / "answers"
    asked.write_bytes(call("echo", 1, n=1))
    with asked.open("rb") as stdin, told.open("wb") as stdout:
        subprocess.run(COMMAND, stdin=stdin, stdout=stdout, env=ENV, check=True, timeout=20)
    assert json.loads(told.read_bytes())["id"] == 1


async def test_bad_lines_are_answered_and_the_conversation_goes_on() -> None:
    async with talking() as talk:
        for bad, code in (
            (b"{\n", -32700),
            (b"\xff\n", -32700),
            (b"[" * 50_000 + b"\n", -32700),
            (b"[]\n", -32600),
            (b'{"jsonrpc":"2.0","id":true,"method":"ping"}\n', -32600),
            (b" " * 99_999 + b"x" * 250_000 + b"\n", -32600),
        ):
            await talk.say(bad)
            assert (await talk.hear())["error"]["code"] == code, bad[:40]
        await talk.say(b"\n \n" + call("echo", "a", n=1))
        assert (await talk.hear())["id"] == "a"


async def test_too_many_calls_are_refused_by_their_id() -> None:
    async with talking() as talk:
        await talk.say(call("wait", 1) + call("wait", 2) + call("echo", 3))
        answer = await talk.hear()
        assert (answer["id"], answer["error"]["code"]) == (3, -32000)
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        await talk.say(json.dumps(cancel).encode() + b"\n" + call("echo", 4))
        assert (await talk.hear())["id"] == 4


async def test_a_stop_answers_what_is_in_flight_though_the_client_keeps_the_pipe_open() -> None:
    async with talking() as talk:
        await talk.say(call("wait", 1) + call("echo", 2))
        assert (await talk.hear())["id"] == 2
        talk.process.send_signal(signal.SIGTERM)
        answer = await talk.hear()
        assert answer["id"] == 1
        assert answer["result"]["structuredContent"]["error_code"] == "SESSION_005"
        assert await talk.process.wait() == 0


async def test_end_of_file_ends_it() -> None:
    async with talking() as talk:
        assert talk.process.stdin is not None
        await talk.process.stdin.aclose()
        assert await talk.process.wait() == 0


async def test_a_client_that_stops_reading_ends_it() -> None:
    async with talking() as talk:
        assert talk.process.stdout is not None
        await talk.process.stdout.aclose()
        await talk.say(call("echo", 1))
        assert await talk.process.wait() == 0
