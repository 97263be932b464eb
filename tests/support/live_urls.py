"""What the tests of transfers over a URL share: opening one, asking by HTTP, and a client that leaves in the middle."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import shutil
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio
from mcp.client.client import Client

from tests.support.live import Answer, LiveBroker, call, connect, new_session, ok

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@attrs.frozen(kw_only=True)
class Said:
    """What the server answered; *is_cut* when it broke off before it was all there."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool = False

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def code(self) -> str:
        """The name of the error."""
        assert self.json["success"] is False
        return str(self.json["error_name"])


@attrs.frozen(kw_only=True)
class Desk:
    """A session of a client that opens transfers."""

    broker: LiveBroker
    client: Client
    session_id: str

    async def open(self, direction: str, path: str, **more: Any) -> Answer:
        return await ok(
            self.client, "open_transfer", session_id=self.session_id, direction=direction, path=path, **more
        )

    async def stat(self, opened: Answer) -> Answer:
        return await ok(self.client, "stat_transfer", session_id=self.session_id, transfer_id=opened["transfer_id"])

    async def until(self, opened: Answer, *states: str) -> Answer:
        """The first answer with one of these states; the test's own bound ends the waiting."""
        while (answer := await self.stat(opened))["state"] not in states:
            await trio.lowlevel.checkpoint()
        return answer

    async def until_cut_at(self, opened: Answer, offset: int) -> None:
        """Return when the broker has seen that a client left behind this byte."""
        while True:
            answer = await self.stat(opened)
            if (answer["state"], answer["next_offset"]) == ("open", offset):
                return

    def leftovers(self) -> list[str]:
        """The names in the workspace that are part files."""
        return [path.name for path in self.broker.workspace.rglob("*") if path.name.startswith(".remote-broker")]


async def ask(method: str, url: str, body: bytes | None = None, **headers: str) -> Said:
    """One request in a thread; `x_y=...` sends the header X-Y."""
    return await trio.to_thread.run_sync(lambda: _ask(method, url, body, headers), abandon_on_cancel=True)


def _ask(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Said:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, where.path, body, named)
        answer = connection.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        try:
            return Said(status=answer.status, headers=told, body=answer.read())
        except (http.client.IncompleteRead, ConnectionError) as cut:
            got = cut.partial if isinstance(cut, http.client.IncompleteRead) else b""
            return Said(status=answer.status, headers=told, body=got, is_cut=True)
    finally:
        connection.close()


def get_head(url: str) -> bytes:
    """The head of a GET, to be sent by hand."""
    where = urlsplit(url)
    return f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode()


def put_head(url: str, length: int, **headers: str) -> bytes:
    """The head of a PUT, to be sent by hand."""
    where = urlsplit(url)
    lines = [f"PUT {where.path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def dial(url: str) -> socket.socket:
    """A connection on which a test speaks by hand."""
    where = urlsplit(url)
    return socket.create_connection((where.hostname, where.port), timeout=60)


async def put_some(url: str, data: bytes, length: int, **headers: str) -> None:
    """Begin to upload *length* bytes, send *data*, and leave."""
    with dial(url) as line:
        await trio.to_thread.run_sync(line.sendall, put_head(url, length, **headers) + data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def chance(seed: int) -> random.Random:
    """The same chance every time."""
    return random.Random(seed)  # noqa: S311  nothing secret is made of it


@asynccontextmanager
async def at_desk(broker: LiveBroker) -> AsyncIterator[Desk]:
    """A session of its own in a workspace that is empty before and after."""
    async with connect(broker) as client:
        mine = await new_session(client, working_dir=str(broker.workspace))
        yield Desk(broker=broker, client=client, session_id=mine)
        await call(client, "kill_session", session_id=mine, force=True)
    for path in broker.workspace.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


async def shell(line: str, folder: Path) -> tuple[int, bytes]:
    """Paste a line into a shell."""
    done = await trio.run_process(["sh", "-c", line], cwd=folder, capture_stdout=True, check=False)
    return done.returncode, done.stdout
