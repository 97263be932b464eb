"""The installed program alone, from an empty folder: started as a user would, and used by a real MCP client.

Run by the `wheel` session of nox with the Python of an environment in which nothing but the wheel is installed.
Prints `smoke: ok`.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import trio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

START_BOUND_S = 60
STOP_BOUND_S = 30
STEP_BOUND_S = 60


def main() -> int:
    """Start, use, stop; 0 when all of it went well."""
    state = Path(tempfile.mkdtemp(prefix="remote-broker-smoke-"))
    state.chmod(0o755)  # a broker of root runs its sessions as another user, whose home is in here
    try:
        for name in ("oc-broker", "-P -m broker"):
            _try(name, state)
        trio.run(_use, _stdio(state))
    finally:
        shutil.rmtree(state)
    sys.stdout.write("smoke: ok\n")
    return 0


def _try(name: str, state: Path) -> None:
    """Start it by the console script or as a module, without any configuration."""
    command = [sys.executable, *name.split()] if name.startswith("-") else [_script(name)]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=_collect, args=(process, lines))
    reader.start()
    try:
        trio.run(_use, _url(lines))
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_BOUND_S)
        reader.join()
    if status != 0:
        raise RuntimeError(f"{name} stopped with status {status}")


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _stdio(state: Path) -> StdioServerParameters:
    """How a client starts it that has a command in its configuration and no address."""
    return StdioServerParameters(command=_script("remote-mcp-exec-gateway"), env={"XDG_STATE_HOME": str(state)})


def _collect(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    assert process.stdout is not None
    with process.stdout as pipe:
        for line in pipe:
            sys.stderr.write(line)
            lines.put(line)
    lines.put("")


def _url(lines: queue.SimpleQueue[str]) -> str:
    """Where it listens: it prints that when it answers."""
    while line := lines.get(timeout=START_BOUND_S):
        if found := re.search(r"http://[^\s\"]+/mcp", line):
            return found[0]
    raise RuntimeError("it ended before it listened")


async def _use(server: str | StdioServerParameters) -> None:
    with trio.fail_after(STEP_BOUND_S):
        async with Client(server) as client:
            session = await _call(client, "create_session")
            mine = {"session_id": session["session_id"]}
            folder = session["working_dir"]
            path = f"{folder}/smoke-{os.getpid()}.txt"
            written = await _call(client, "write_file", **mine, path=path, content="hello\n")
            listed = await _call(client, "execute_command", **mine, argv=["ls", folder])
            _require(Path(written["path"]).name in listed["stdout"].split(), listed)
            read = await _call(client, "read_file", **mine, path=path)
            _require(read["content"] == "hello\n", read)
            await _call(client, "kill_session", **mine)
            Path(written["path"]).unlink()


async def _call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    structured: dict[str, Any] = result.structured_content or {}
    _require(not result.is_error and structured.get("success") is True, f"{tool}: {result}")
    return structured


def _require(held: bool, otherwise: object) -> None:  # noqa: FBT001  one condition, not an option
    if not held:
        raise RuntimeError(f"smoke: {otherwise}")


if __name__ == "__main__":
    sys.exit(main())
