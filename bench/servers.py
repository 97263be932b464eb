"""The yardsticks: an ASGI echo and an SDK echo tool on bare Hypercorn-trio, each in a process of its own.

`python -m bench.servers bare|sdk` serves on a free port and prints it. Nothing of ours is imported here.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from mcp.server.lowlevel import Server
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool

STOP_BOUND_S = 10


async def bare_echo(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer every request with its own body."""
    if scope["type"] == "lifespan":
        await _be_alive(receive, send)
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def _be_alive(receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


def sdk_echo() -> Any:
    """The SDK's own HTTP application around a tool that returns its arguments."""
    tool = Tool(name="echo", input_schema={"type": "object"}, output_schema={"type": "object"})

    async def list_tools(_context: Any, _params: Any) -> ListToolsResult:
        await trio.lowlevel.checkpoint()
        return ListToolsResult(tools=[tool])

    async def call_tool(_context: Any, params: CallToolRequestParams) -> CallToolResult:
        await trio.lowlevel.checkpoint()
        structured = {"success": True, **(params.arguments or {})}
        return CallToolResult(content=[TextContent(type="text", text=str(structured))], structured_content=structured)

    return Server("echo", on_list_tools=list_tools, on_call_tool=call_tool).streamable_http_app()


async def _serve(name: str) -> None:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.loglevel = "ERROR"

    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(_set_on_sigterm, stop)
        application: Any = bare_echo if name == "bare" else sdk_echo()
        run = functools.partial(serve, application, config, shutdown_trigger=stop.wait)
        (bound,) = await nursery.start(run)
        print(bound.rpartition(":")[2], flush=True)


async def _set_on_sigterm(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _signal in signals:
            stop.set()
            return


@asynccontextmanager
async def yardstick(name: str) -> AsyncIterator[int]:
    """Run one of these servers; gives its port."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "bench.servers", name], stdout=subprocess.PIPE, env=environment
    )
    if process.stdout is None:
        raise RuntimeError("asked for a pipe and got none")
    try:
        yield int(await process.stdout.receive_some(16))
    finally:
        process.terminate()
        with trio.move_on_after(STOP_BOUND_S, shield=True):
            await process.wait()
        await process.stdout.aclose()


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1])
