"""The hash of a whole file through the broker: whose processor it takes, how long a call waits, what it then says."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import trio
from mcp.shared.exceptions import MCPError

from tests.support.live import LiveBroker, call, lives, ok, running_broker
from tests.support.live_urls import Desk, ask, at_desk

MIB = 1024 * 1024
HUGE = 64 << 30
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the client's, not ours
    pytest.mark.long,
    pytest.mark.once,
    pytest.mark.bounded(120),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


def used_s(pid: int) -> float:
    """Seconds of a processor that a process itself has taken."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def hashers(broker: LiveBroker) -> list[psutil.Process]:
    """The processes below the broker that hash: those that have a file of the workspace open, behind all others.

    The opener, too, has it open for a moment.
    """
    found, above = [], psutil.Process(broker.process.pid)
    for process in above.children(recursive=True):
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            behind = process.nice() > above.nice()
        except (OSError, psutil.NoSuchProcess):  # it ended meanwhile
            continue
        if behind and any(link.startswith(f"{broker.workspace}/") and not Path(link).is_dir() for link in links):
            found.append(process)
    return found


async def working(broker: LiveBroker) -> psutil.Process:
    with trio.fail_after(20):
        while not (found := hashers(broker)):
            await trio.lowlevel.checkpoint()
    return found[0]


async def none_left(broker: LiveBroker) -> None:
    with trio.fail_after(20):
        while hashers(broker):
            await trio.lowlevel.checkpoint()


async def huge(desk: Desk) -> str:
    """Make a file that takes long, when nobody hashes one from before any more."""
    await none_left(desk.broker)
    with (desk.broker.workspace / "huge").open("wb") as file:
        file.truncate(HUGE)
    (desk.broker.workspace / "huge").chmod(0o666)
    return "huge"


async def last_byte(desk: Desk, path: str, size_bytes: int) -> Any:
    with trio.fail_after(12):
        return await ok(desk.client, "download_file", session_id=desk.session_id, path=path, offset=size_bytes - 1)


async def test_the_last_byte_of_a_huge_file_is_answered_and_costs_the_broker_nothing(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        path, before_s = await huge(desk), used_s(broker.process.pid)
        chunk = await last_byte(desk, path, HUGE)
        assert (chunk["chunk_data"], chunk["is_complete"], chunk["sha256"]) == ("AA==", True, None)
        (worker,) = hashers(broker)
        assert used_s(broker.process.pid) - before_s < used_s(worker.pid)
        assert chunk["sha256_missing"] == "the file was not hashed to its end in 5 s"
        assert worker.nice() > psutil.Process(broker.process.pid).nice()
        assert broker.process.pid not in (worker.pid, worker.ppid())
        groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in (worker.pid, worker.ppid())]
        assert groups[0] == groups[1]  # that of the session's own processes
        await ok(desk.client, "kill_session", session_id=desk.session_id, force=True)
        assert not hashers(broker)


async def test_a_call_that_is_cancelled_takes_the_hash_along(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        path = await huge(desk)
        for tool, more in (("download_file", {"offset": HUGE - 1}), ("stat_path", {"checksum": True})):
            async with trio.open_nursery() as nursery:

                async def ask_for(tool: str = tool, more: dict[str, Any] = more) -> None:
                    await call(desk.client, tool, session_id=desk.session_id, path=path, **more)

                nursery.start_soon(ask_for)
                worker = await working(broker)
                worker.suspend()
                nursery.cancel_scope.cancel()
            await none_left(broker)


async def test_a_hash_inside_is_that_of_the_file(broker: LiveBroker) -> None:
    content = os.urandom(MIB) * 40
    async with at_desk(broker) as desk:
        (broker.workspace / "file").write_bytes(content)
        right = hashlib.sha256(content).hexdigest()
        chunk = await last_byte(desk, "file", len(content))
        assert (chunk["sha256"], chunk["sha256_missing"]) == (right, None)
        told = await ok(desk.client, "stat_path", session_id=desk.session_id, path="file", checksum=True)
        assert (told["sha256"], told["size_bytes"]) == (right, len(content))
        opened = await desk.open("download", "file")
        assert (await ask("GET", opened["url"])).body == content
        done = await desk.until(opened, "complete")
        assert (done["sha256"], done["sha256_missing"]) == (right, None)
        await none_left(broker)


async def test_a_file_that_changes_while_it_is_hashed_has_no_hash(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        path = await huge(desk)
        for tool, more in (("download_file", {"offset": HUGE - 1}), ("stat_path", {"checksum": True})):
            answers = []

            async def ask_for(tool: str = tool, more: dict[str, Any] = more, answers: list[Any] = answers) -> None:
                answers.append(await call(desk.client, tool, session_id=desk.session_id, path=path, **more))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_for)
                await working(broker)
                os.truncate(broker.workspace / path, 20 * MIB)
            assert answers[0].error == ("FILE_005", "FILE_CHANGED")
            await huge(desk)


async def test_a_worker_that_was_killed_or_stopped_is_told_of(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        path = await huge(desk)

        async def hit(signum: int) -> None:
            os.kill((await working(broker)).pid, signum)

        for signum, why in ((signal.SIGKILL, "was ended"), (signal.SIGSTOP, "not hashed to its end in 5 s")):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hit, signum)
                chunk = await last_byte(desk, path, HUGE)
            assert (chunk["is_complete"], chunk["sha256"]) == (True, None)
            assert why in chunk["sha256_missing"]


async def test_many_hashes_at_once_are_all_answered_and_others_meanwhile(broker: LiveBroker) -> None:
    async with at_desk(broker) as desk:
        paths = [f"file{number}" for number in range(16)]
        content = os.urandom(MIB) * 20
        for path in paths:
            (broker.workspace / path).write_bytes(content)
        sums = []

        async def one(path: str) -> None:
            told = await ok(desk.client, "stat_path", session_id=desk.session_id, path=path, checksum=True)
            sums.append(told["sha256"])

        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(one, path)
            await working(broker)
            with trio.fail_after(10):
                await ok(desk.client, "list_directory", session_id=desk.session_id)
        assert sums == [hashlib.sha256(content).hexdigest()] * 16
        await none_left(broker)


async def hash_until_lost(broker: LiveBroker) -> None:
    """The client's call ends in an error of the connection, and that is as it must be."""
    try:
        async with at_desk(broker) as desk:
            await call(desk.client, "stat_path", session_id=desk.session_id, path=await huge(desk), checksum=True)
    except* (httpx2.HTTPError, MCPError):
        pass


async def test_the_hash_dies_with_the_broker() -> None:
    with running_broker() as mortal:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hash_until_lost, mortal)
            worker = await working(mortal)
            worker.suspend()
            mortal.process.kill()
            await trio.to_thread.run_sync(mortal.process.wait)
            with trio.fail_after(20):
                while lives(worker):
                    await trio.lowlevel.checkpoint()
