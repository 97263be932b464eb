"""A real broker for tests and measurements: a process of its own, a folder of its own, a free port on loopback.

`running_broker` starts it, waits until /healthz answers, collects what it prints, and stops it; `connect` is the
SDK's own client in either era. Nothing waits on time: the broker's own lines are the events.
The folder is beneath /tmp and may be entered by everybody, because a broker of root runs its sessions as another user.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import yaml
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import CallToolResult, TextContent

ROOT = Path(__file__).resolve().parents[2]
MODERN, LEGACY = "2026-07-28", "legacy"
ERAS = (MODERN, LEGACY)
START_BOUND_S = 30
STOP_BOUND_S = 20
GRACE_S = 0.3
"""kill_grace of the brokers here: long enough to be seen, short enough for many tests."""

SERVER: Mapping[str, Any] = {
    "logging": {"audit_log": "log/audit.log", "level": "INFO"},
    "sessions": {"max_concurrent": 64},
    "timeouts": {"command_default": 20, "command_max": 60, "kill_grace": GRACE_S, "output_drain": 0.1},
}
SHELL_MAY_RUN = ["/bin/sleep", "/usr/bin/setsid", "/bin/cat", "/usr/bin/head", "/bin/true", "/bin/ls", "/usr/bin/env"]
COMMANDS: Mapping[str, Any] = {
    "true": {"executable": "/bin/true"},
    "false": {"executable": "/bin/false"},
    "echo": {"executable": "/bin/echo"},
    "cat": {"executable": "/bin/cat"},
    "ls": {"executable": "/bin/ls"},
    "head": {"executable": "/usr/bin/head"},
    "env": {"executable": "/usr/bin/env", "max_args": 1},
    "pwd": {"executable": "/bin/pwd"},
    "sleep": {"executable": "/bin/sleep"},
    "rm": {"executable": "/bin/rm", "requires_confirmation": True},
    # No policy for an agent: a test needs trees of every shape, and a shell makes them without any other interpreter.
    "sh": {"executable": "/bin/sh", "may_run": SHELL_MAY_RUN},
}
FILE_LIMITS: Mapping[str, Any] = {
    "max_read_size": 10_485_760,
    "max_write_size": 1_073_741_824,
    "blocked_extensions": [".exe"],
}
RESOURCE_LIMITS: Mapping[str, Any] = {
    "memory_max": 2_147_483_648,
    "pids_max": 256,
    "file_size_max": 2_147_483_648,
    "open_files_max": 256,
}


class BrokerFailed(Exception):
    """The broker did not start, or did not stop; carries what it printed."""


@attrs.frozen(kw_only=True)
class Answer:
    """What a client got: `data` is the structured content, `text` the text beside it."""

    is_error: bool
    data: dict[str, Any]
    text: str

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    @property
    def error(self) -> tuple[str, str]:
        """Its code and name; fails the test when it is no error."""
        assert self.is_error, self.data
        return self.data["error_code"], self.data["error_name"]


@attrs.define(eq=False)
class Printed:
    """Every line that the broker printed, kept by a thread so that its pipe never fills."""

    lines: list[str] = attrs.field(factory=list)
    fresh: queue.SimpleQueue[str | None] = attrs.field(factory=queue.SimpleQueue)

    def collect(self, process: subprocess.Popen[bytes]) -> None:
        """Read to the end; None says that there is no more."""
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self.fresh.put(self.lines[-1])
        self.fresh.put(None)

    def wait_for_line(self, deadline: float) -> str | None:
        """The next line; None at the end of the output."""
        try:
            return self.fresh.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise BrokerFailed("nothing printed in time:\n" + "\n".join(self.lines)) from None


@attrs.frozen(kw_only=True)
class LiveBroker:
    """A running broker; `workspace` is an allowed folder that its sessions may write."""

    base: Path
    host: str
    port: int
    process: subprocess.Popen[bytes]
    printed: Printed

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/mcp"

    @property
    def workspace(self) -> Path:
        return self.base / "ws"

    def audit(self, name: str = "audit.log") -> list[dict[str, Any]]:
        """The records of a log so far; every line must be a JSON object."""
        text = (self.base / "log" / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """One plain HTTP request; `x_y=...` sends the header X-Y."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def healthy(self) -> bool:
        """Whether /healthz answers."""
        try:
            return self.request("GET", "/healthz")[0] == 200
        except ConnectionError:
            return False

    def family(self) -> tuple[psutil.Process, ...]:
        """The processes that descend from the broker now."""
        try:
            return tuple(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return ()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End it and return its exit status.

        Raises:
            BrokerFailed: it did not end by itself; it has been killed.
        """
        self.process.send_signal(signum)
        return self.wait_ended()

    def wait_ended(self) -> int:
        """Its exit status; see `stop`."""
        try:
            return self.process.wait(STOP_BOUND_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise BrokerFailed("it did not stop:\n" + "\n".join(self.printed.lines)) from None


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*under* with what *over* says; sections are merged, anything else replaced."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@contextmanager
def live_folder() -> Iterator[Path]:
    """A folder with config/, ws/ and outside/ that the session user can reach, gone afterwards."""
    base = Path(tempfile.mkdtemp(prefix="remote-broker-"))
    try:
        base.chmod(0o755)
        for name, mode in (("config", 0o755), ("ws", 0o777), ("outside", 0o777)):
            (base / name).mkdir()
            (base / name).chmod(mode)
        yield base
    finally:
        shutil.rmtree(base)


def write_config(base: Path, server: Mapping[str, Any] | None = None, policy: Mapping[str, Any] | None = None) -> None:
    """server.yaml and policy.yaml of the tests, changed by *server* and *policy*."""
    rules = {
        "allowed_commands": COMMANDS,
        "allowed_paths": ["~/**", f"{base}/ws/**"],
        "blocked_paths": ["**/.ssh/**", "**/.env"],
        "file_limits": FILE_LIMITS,
        "resource_limits": RESOURCE_LIMITS,
    }
    for name, section in (("server", merged(SERVER, server or {})), ("policy", merged(rules, policy or {}))):
        (base / "config" / f"{name}.yaml").write_text(yaml.safe_dump({name: section}), encoding="utf-8")


@contextmanager
def running_broker(
    server: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    *,
    args: Sequence[str] = (),
    at: tuple[str, int] | None = None,
) -> Iterator[LiveBroker]:
    """A broker with the configuration of the tests, changed by *server* and *policy*; see `broker_in`."""
    with live_folder() as base:
        write_config(base, server, policy)
        with broker_in(base, args=args, at=at) as broker:
            yield broker
        require_codes(base / "log/audit-errors.log")


def require_codes(error_log: Path) -> None:
    """Whatever a broker of any test wrote into its error log has a message and a code."""
    if error_log.exists():
        for line in error_log.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            assert record.get("error"), record
            assert record.get("error_code"), record


def refused_start(server: Mapping[str, Any] | None = None, policy: Mapping[str, Any] | None = None) -> str:
    """What a broker says that must not start with this configuration."""
    try:
        with running_broker(server, policy):
            raise AssertionError("it started")
    except BrokerFailed as failed:
        return str(failed)


@contextmanager
def broker_in(
    base: Path,
    *,
    args: Sequence[str] = (),
    python: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
    at: tuple[str, int] | None = None,
    cwd: Path = ROOT,
) -> Iterator[LiveBroker]:
    """A broker on `base/config`, from its first answer on /healthz to its end.

    Args:
        base: the folder.
        args: more of the command line.
        python: the words before `-m`.
        environment: of the broker; ours by default.
        at: where its configuration makes it listen; by default `--port` gives it a free one on loopback.
        cwd: where it is started.
    """
    host, port = at or ("127.0.0.1", free_port())
    listen = () if at else ("--port", str(port))
    command = [*python, "-m", "broker", "--config-dir", str(base / "config"), *listen, *args]
    process = subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    printed = Printed()
    reader = threading.Thread(target=printed.collect, args=(process,))
    reader.start()
    broker = LiveBroker(base=base, host=host, port=port, process=process, printed=printed)
    try:
        _wait_ready(broker)
        yield broker
    finally:
        if process.poll() is None:
            broker.stop()
        reader.join()


def _wait_ready(broker: LiveBroker) -> None:
    """Ask /healthz each time the broker says something: one of its lines says that it listens."""
    deadline = time.monotonic() + START_BOUND_S
    while (line := broker.printed.wait_for_line(deadline)) is not None:
        if broker.healthy():
            return
        del line
    status = broker.process.wait()
    raise BrokerFailed(f"it ended with status {status}:\n" + "\n".join(broker.printed.lines))


@asynccontextmanager
async def connect(broker: LiveBroker, era: str = MODERN, **headers: str) -> AsyncIterator[Client]:
    """The SDK's client, connected; it validates every result against the tool's output schema."""
    async with (
        create_mcp_http_client(headers=headers) as http_client,
        Client(streamable_http_client(broker.url, http_client=http_client), mode=era) as client,
    ):
        yield client


async def call(client: Client, tool: str, **arguments: Any) -> Answer:
    """Call a tool and take the answer apart."""
    return answer_of(await client.call_tool(tool, arguments))


def answer_of(result: CallToolResult) -> Answer:
    """The parts of a result; the text and the structured content must both be there."""
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert isinstance(result.structured_content, dict)
    return Answer(is_error=bool(result.is_error), data=result.structured_content, text=block.text)


async def ok(client: Client, tool: str, **arguments: Any) -> Answer:
    """Call a tool that must do its work."""
    answer = await call(client, tool, **arguments)
    assert not answer.is_error, answer.data
    return answer


async def new_session(client: Client, **arguments: Any) -> str:
    """A new session's id."""
    session_id: str = (await ok(client, "create_session", **arguments))["session_id"]
    return session_id


async def run(client: Client, session_id: str, *argv: str, **arguments: Any) -> Answer:
    """execute_command, whatever its outcome."""
    return await call(client, "execute_command", session_id=session_id, argv=list(argv), **arguments)


def marked(mark: str) -> list[int]:
    """The live processes (not zombies) that carry *mark* among their arguments."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if mark.encode() in words:  # a zombie has no arguments any more
            found.append(pid)
    return found


def marked_processes(mark: str) -> list[psutil.Process]:
    """The processes that carry *mark*, without those that end while we look."""
    found = []
    for pid in marked(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def lives(process: psutil.Process) -> bool:
    """Whether it runs and is no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
