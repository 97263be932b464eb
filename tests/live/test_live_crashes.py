"""The real broker, killed while files are written through it: each is the old or the new one when it starts again.

The machine of `test_transfers_crashes.py` strikes at every step of the store; here all of it is real, and the blow
falls before the last request, right after it was sent, at some moment of the work, or after the answer.
"""

from __future__ import annotations

import base64
import os
import random
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from bench.client import ConnectionLost, open_connection
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.live import LiveBroker, broker_in, live_folder, write_config

pytestmark = pytest.mark.long

END_BOUND_S = 30
OLD = b"old" * 1000
NEW: Mapping[str, bytes] = {"uploaded": b"u" * 30_000, "written": b"w" * 20_000, "copied": b"c" * 25_000}
BLOWS = ("before", "at once", "at some moment", "after")


def last_calls(transfer_id: str) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """The requests that complete each of the files."""
    rest = {"transfer_id": transfer_id, "chunk_offset": 10_000, "is_last": True}
    return {
        "uploaded": (
            "upload_file",
            {"path": "uploaded", "chunk_data": base64.b64encode(NEW["uploaded"][10_000:]).decode(), **rest},
        ),
        "written": ("write_file", {"path": "written", "content": NEW["written"].decode()}),
        "copied": ("copy_path", {"source": "source", "destination": "copied", "overwrite": True}),
    }


@contextmanager
def family_gone(broker: LiveBroker) -> Iterator[None]:
    """Kill the broker inside; afterwards no process of its is left."""
    family = [broker.process.pid, *(p.pid for p in psutil.Process(broker.process.pid).children(recursive=True))]
    pidfds = []
    for pid in family:
        with suppress(ProcessLookupError):
            pidfds.append(os.pidfd_open(pid))
    yield
    for pidfd in pidfds:
        ended, _, _ = select.select([pidfd], [], [], END_BOUND_S)
        os.close(pidfd)
        assert ended


async def one_life(broker: LiveBroker, blow: str, moment_s: float) -> set[str]:
    """Begin all three writes, strike, and return which of them were acknowledged before."""
    done: set[str] = set()
    async with open_connection(broker.port) as connection:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        first = base64.b64encode(NEW["uploaded"][:10_000]).decode()
        begun = await connection.call("upload_file", session_id=session, path="uploaded", chunk_data=first)
    with family_gone(broker):
        async with trio.open_nursery() as nursery:
            asked = []
            if blow != "before":
                for name, (tool, arguments) in last_calls(begun.get("transfer_id", "")).items():
                    asked.append(trio.Event())
                    nursery.start_soon(partial(_ask, broker, done, asked[-1], name, tool, arguments, session))
            for event in asked:
                await event.wait()
            if blow == "after":
                await _answered(nursery)
            elif blow == "at some moment":
                await trio.sleep(moment_s)
            broker.process.kill()
    broker.process.wait(END_BOUND_S)
    return done


async def _answered(nursery: trio.Nursery) -> None:
    while nursery.child_tasks:
        await trio.lowlevel.checkpoint()


async def _ask(
    broker: LiveBroker,
    done: set[str],
    asked: trio.Event,
    name: str,
    tool: str,
    arguments: Mapping[str, Any],
    session: str,
) -> None:
    with suppress(ConnectionLost, OSError):
        async with open_connection(broker.port) as connection:
            with suppress(trio.BrokenResourceError):
                asked.set()  # whoever waits for it goes on when the request is sent, in one write
                answer = await connection.call(tool, session_id=session, **arguments)
                assert answer["success"] or answer["error_code"] in {"FILE_004", "TRANSFER_001"}, answer
                done |= {name} if answer["success"] else set()


def check(workspace: Path, done: set[str]) -> None:
    for name, new in NEW.items():
        content = (workspace / name).read_bytes()
        assert content == new if name in done else content in (OLD, new), name


async def check_tidy(broker: LiveBroker) -> None:
    """The next start finds no part of what was under way, and works."""
    async with open_connection(broker.port) as connection:
        session = (await connection.ok("create_session", working_dir=str(broker.workspace)))["session_id"]
        listing = await connection.ok("list_directory", session_id=session, include_hidden=True)
        assert {entry["name"] for entry in listing["entries"]} == {"source", *NEW}
        await connection.ok("write_file", session_id=session, path="written", content="again")
        assert (broker.workspace / "written").read_text() == "again"


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("disk", ["with room", "nearly full"])
@pytest.mark.bounded(240)
async def test_a_killed_broker_leaves_the_old_or_the_new_file_and_nothing_else(disk: str) -> None:
    if disk == "nearly full" and os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    dice = random.Random(7)  # noqa: S311  the moments of the blows
    with live_folder() as base:
        write_config(base, policy={"file_limits": {"min_free_bytes": 0}})
        with small_disk(base / "ws") if disk == "nearly full" else nullcontext():
            for blow in BLOWS:
                for name, content in {**dict.fromkeys(NEW, OLD), "source": NEW["copied"]}.items():
                    (base / "ws" / name).write_bytes(content)
                    (base / "ws" / name).chmod(0o666)
                with broker_in(base) as broker:
                    done = await one_life(broker, blow, dice.uniform(0, 0.03))
                check(base / "ws", done)
                if disk == "with room":
                    assert blow != "after" or done == set(NEW)
            with broker_in(base) as broker:
                await check_tidy(broker)
