"""How long a client may take nothing of a download is `transfers.idle_s`, whatever the kernel would allow."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import trio

from broker.app import build_mcp
from broker.endpoint.http import Patience, serve_http
from broker.http.transfer_app import TransferApp
from tests.support.live_urls import dial, get_head
from tests.support.whole import URL, Whole, open_whole

pytestmark = [pytest.mark.long, pytest.mark.once]

MIB = 1024 * 1024
KERNELS_S = 0.5
"""How long the connections of these brokers may stall where nobody else decides; it is 20 s in the program."""
SIZE_BYTES = 24 * MIB
"""More than the sockets between us hold."""
SMALL_BYTES = 12 * 1024
"""What the kernel takes at once, and a narrow receiver does not."""
KINDS = {"a file": {}, "an archive": {"archive": "tar"}}


@attrs.frozen(kw_only=True)
class Served:
    """A whole broker, and a session of it with a directory that holds one large file."""

    whole: Whole
    url: str
    session_id: str

    async def open(self, **more: str) -> tuple[str, str]:
        """The id and the URL of a download."""
        path = "d" if more else "d/f"
        told = await self.whole.ok("open_transfer", session_id=self.session_id, direction="download", path=path, **more)
        return told["transfer_id"], told["url"].replace(URL, self.url)

    async def stat(self, transfer_id: str) -> dict[str, Any]:
        return await self.whole.ok("stat_transfer", session_id=self.session_id, transfer_id=transfer_id)


@asynccontextmanager
async def served(base: Path, idle_s: float) -> AsyncIterator[Served]:
    """Serve over HTTP in this process, where the kernel's own patience can be shorter than in the program."""
    async with open_whole(base, server=f"server: {{transfers: {{idle_s: {idle_s}}}}}") as whole:
        (whole.work / "d").mkdir()
        with (whole.work / "d/f").open("wb") as sparse:
            sparse.truncate(SIZE_BYTES)
        shutil.chown(whole.work / "d", user=whole.foundation.user.uid)
        settings = attrs.evolve(whole.config.server, port=0)
        transfers = TransferApp(whole.broker.transfer_registry, whole.broker.audit)
        async with trio.open_nursery() as nursery:

            async def serve(*, task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
                await serve_http(
                    settings,
                    build_mcp(whole.broker),
                    stop=whole.broker.stop,
                    end_work=whole.broker.end_work,
                    transfers=transfers,
                    patience=Patience(stall_s=KERNELS_S),
                    task_status=task_status,
                )

            urls = await nursery.start(serve)
            session_id = (await whole.ok("create_session", working_dir=str(whole.work)))["session_id"]
            yield Served(whole=whole, url=urls[0].removesuffix("/mcp"), session_id=session_id)
            nursery.cancel_scope.cancel()


def read_all(line: socket.socket) -> int:
    """How many bytes come until the connection ends."""
    return sum(len(data) for data in iter(lambda: line.recv(MIB), b""))


def ask_and_read_one(line: socket.socket, url: str) -> None:
    """Begin a download and take next to nothing of it."""
    line.sendall(get_head(url).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert line.recv(1) == b"H"


def narrow(url: str) -> socket.socket:
    """A connection whose receiver has room for next to nothing."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    line.settimeout(60)
    where = urlsplit(url)
    line.connect((where.hostname, where.port))
    return line


@pytest.mark.parametrize("more", KINDS.values(), ids=KINDS)
async def test_a_client_that_pauses_for_less_gets_all_of_it(tmp_path: Path, more: dict[str, str]) -> None:
    async with served(tmp_path, idle_s=60) as desk:
        transfer_id, url = await desk.open(**more)
        with dial(url) as line:
            await trio.to_thread.run_sync(ask_and_read_one, line, url)
            await trio.sleep(4 * KERNELS_S)  # the pause
            assert await trio.to_thread.run_sync(read_all, line) > SIZE_BYTES
        while (told := await desk.stat(transfer_id))["state"] == "active":
            await trio.sleep(0.01)
        assert (told["state"], told["error"]) == ("complete", None)


@pytest.mark.parametrize("more", KINDS.values(), ids=KINDS)
async def test_a_client_that_stalls_is_cut_off_and_the_reason_is_told(tmp_path: Path, more: dict[str, str]) -> None:
    async with served(tmp_path, idle_s=2) as desk:
        transfer_id, url = await desk.open(**more)
        with dial(url) as line:
            await trio.to_thread.run_sync(ask_and_read_one, line, url)
            while (told := await desk.stat(transfer_id))["state"] == "active":
                await trio.sleep(0.05)
            assert told["error"] == "nothing moved for 2 s (transfers.idle_s)"
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(read_all, line)
        (record,) = [each for each in desk.whole.records() if each["event_type"] == "FILE_FAILED"]
        assert (record["error"], record["error_code"]) == (told["error"], "TRANSFER_006")


async def test_behind_a_download_the_client_has_the_same_time_for_what_the_kernel_holds(tmp_path: Path) -> None:
    async with served(tmp_path, idle_s=60) as desk:
        os.truncate(desk.whole.work / "d/f", SMALL_BYTES)
        transfer_id, url = await desk.open()
        with narrow(desk.url) as line:
            await trio.to_thread.run_sync(ask_and_read_one, line, url)
            while (await desk.stat(transfer_id))["state"] != "complete":
                await trio.sleep(0.01)
            await trio.sleep(4 * KERNELS_S)  # the pause
            assert await trio.to_thread.run_sync(read_all, line) > SMALL_BYTES
