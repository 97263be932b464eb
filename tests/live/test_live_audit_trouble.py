"""The log cannot be written: what stops or frees something works and owes its record, all else is refused, all answer.

Real disks: a small one that a session fills, and one that is frozen under the log as a snapshot freezes it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from mcp.client.client import Client

from broker.audit.run import PIECE_BYTES
from tests.support.disks import BOUND_S, disk, freezable_disk, frozen, in_the_way
from tests.support.live import (
    LiveBroker,
    broker_in,
    call,
    connect,
    live_folder,
    lives,
    marked_processes,
    new_session,
    ok,
    run,
    running_broker,
    write_config,
)

ON_DISK = {"logging": {"audit_log": "disk/log/audit.log"}, "timeouts": {"kill_grace": 0.3}}
UNAVAILABLE = ("AUDIT_001", "AUDIT_UNAVAILABLE")


def records(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


async def until_written(log: Path, event_type: str) -> list[dict[str, Any]]:
    """The records of a log once one of this type is among them."""
    with trio.fail_after(BOUND_S):
        while True:
            found = records(log)
            if event_type in {record["event_type"] for record in found}:
                return found
            await trio.sleep(0.02)


def require_whole(found: list[dict[str, Any]]) -> None:
    """No record of any run is missing, none out of order."""
    for of in {record["run"] for record in found}:
        numbers = [record["seq"] for record in found if record["run"] == of]
        assert numbers == list(range(1, len(numbers) + 1))


async def a_runaway(client: Client, session_id: str, mark: str) -> str:
    """A command in the background, running."""
    started = await run(client, session_id, "sh", "-c", f"sleep 1000 & wait; : {mark}", background=True)
    assert marked_processes(mark)
    return str(started["command_id"])


async def test_what_stops_something_needs_no_log() -> None:
    with running_broker() as broker:
        log = broker.base / "log" / "audit.log"
        async with connect(broker) as client:
            mine = {"session_id": (session := await new_session(client))}
            other = await new_session(client)
            mark = f"runaway-{broker.port}"
            command = await a_runaway(client, session, mark)
            second = marked_processes(mark)[0].pid
            processes = marked_processes(mark)
            with in_the_way(log):
                assert (await run(client, session, "true")).error == UNAVAILABLE
                for name in ("SIGUSR1", "SIGCONT"):
                    answer = await call(client, "signal_command", **mine, command_id=command, signal=name)
                    assert answer.error == UNAVAILABLE, "this stops nothing"
                assert (await call(client, "kill_process", **mine, pid=second, signal=0)).error == UNAVAILABLE
                await ok(client, "signal_command", **mine, command_id=command, signal="END")
                assert not any(map(lives, processes))
                await call(client, "kill_process", **mine, pid=4_194_000)
                await ok(client, "kill_session", **mine)
                refused = await call(client, "create_session")
                assert refused.error == UNAVAILABLE
                assert refused["error_details"]["owed_records"] > 5
                assert refused["error_details"]["lost_records"] == 0
            await ok(client, "kill_session", session_id=other)
        found = await until_written(log, "AUDIT_RESTORED")
        kinds = [record["event_type"] for record in found]
        assert kinds.count("SESSION_KILLED") == 2
        assert kinds.count("SESSION_CLOSED") == 2
        assert [r["tool_name"] for r in found if r["event_type"] == "TOOL_CALLED"][:2] == [
            "signal_command",
            "kill_process",
        ]
        told = next(line for line in broker.printed.lines if "calls are refused" in line)
        assert "owe their records" in told
        restored = next(r for r in found if r["event_type"] == "AUDIT_RESTORED")
        assert restored["details"]["owed"] > 5
        assert restored["details"]["lost"] == 0
        assert restored["event_type"] in {r["event_type"] for r in broker.audit("audit-errors.log")}
        aside = records(log.with_name("audit.log-aside"))
        log.with_name("audit.log-aside").unlink()
        require_whole([*aside, *found])


@pytest.mark.long
async def test_a_disk_that_a_session_filled_can_be_freed_by_it() -> None:
    with live_folder() as base, disk(base, "-t", "tmpfs", "-o", "size=8m") as small:
        work, log = small / "ws", small / "log" / "audit.log"
        limits = {"file_limits": {"max_session_bytes": 1_000_000_000, "min_free_bytes": 0}}
        write_config(base, ON_DISK, {"allowed_paths": [f"{work}/**"], **limits})
        with broker_in(base) as broker:
            async with connect(broker) as client:
                mine = {"session_id": (session := await new_session(client, working_dir=str(work)))}
                other = {"session_id": await new_session(client, working_dir=str(work))}
                mark = f"filler-{broker.port}"
                command = await a_runaway(client, session, mark)
                await run(client, session, "sh", "-c", "cat /dev/zero > big")
                await fill(client, session)
                assert os.statvfs(small).f_bavail * os.statvfs(small).f_bsize < PIECE_BYTES
                await ok(client, "kill_process", **mine, pid=marked_processes(mark)[0].pid, signal=9)
                await call(client, "signal_command", **mine, command_id=command, signal="SIGKILL")
                await ok(client, "kill_session", **other)
                there = records(log)
                assert "SESSION_KILLED" in {r["event_type"] for r in there}, "written in room that was kept free"
                assert (await run(client, session, "true")).error == UNAVAILABLE, "and that is for nothing else"
                await ok(client, "delete_path", **mine, path="big")
                await run(client, session, "true")
                await ok(client, "kill_session", **mine)
            found = await until_written(log, "SESSION_CLOSED")
        require_whole(records(log))
        assert {"FILE_DELETE", "PROCESS_KILLED"} <= {r["event_type"] for r in found}


async def fill(client: Client, session_id: str) -> None:
    """Take the last room as well, until the log has none."""
    for number in range(1000):
        answer = await run(client, session_id, "sh", "-c", f"cat /dev/zero >> big; : {'x' * 400} {number}")
        if answer.is_error and answer.error == UNAVAILABLE:
            return
    raise AssertionError("the disk never was full")


@pytest.fixture
def freezable() -> Iterator[tuple[Path, Path]]:
    """A folder for a broker, and a disk in it that can be frozen."""
    with live_folder() as base, freezable_disk(base) as (_, folder):
        yield base, folder


@pytest.mark.long
@pytest.mark.bounded(60)
async def test_a_frozen_disk_under_the_log_freezes_nobody(freezable: tuple[Path, Path]) -> None:
    base, folder = freezable
    log = folder / "log" / "audit.log"
    write_config(base, ON_DISK)
    with broker_in(base) as broker:
        async with connect(broker) as client:
            mine = {"session_id": (session := await new_session(client))}
            mark = f"frozen-{broker.port}"
            command = await a_runaway(client, session, mark)
            with frozen(folder), trio.fail_after(BOUND_S):
                healthy = functools.partial(trio.to_thread.run_sync, broker.healthy)
                answers: list[Any] = []

                async def ask() -> None:
                    answers.append(await run(client, session, "true"))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    nursery.start_soon(ask)
                    assert await healthy()
                    await ok(client, "signal_command", **mine, command_id=command, signal="SIGKILL")
                    assert await healthy()
                assert [answer.error for answer in answers] == [UNAVAILABLE] * 2
                assert all(answer["retryable"] for answer in answers)
                await ok(client, "kill_session", **mine)
                assert not marked_processes(mark)
            await until_written(log, "AUDIT_RESTORED")
            await ok(client, "get_system_info")
        found = records(log)
        require_whole(found)
        assert {"SESSION_KILLED", "SESSION_CLOSED"} <= {r["event_type"] for r in found}
        refused = [r for r in found if r.get("error_code") == "AUDIT_001" and r.get("tool_name") == "execute_command"]
        assert len(refused) == 2


def lost_runs(broker: LiveBroker) -> list[dict[str, Any]]:
    return [record["details"] for record in broker.audit() if record["event_type"] == "BROKER_LOST"]


@pytest.mark.long
async def test_the_next_start_says_that_a_broker_was_lost_and_what_it_owed() -> None:
    with live_folder() as base:
        write_config(base)
        log = base / "log" / "audit.log"
        with broker_in(base) as clean:
            first = clean.audit()[0]["run"]
        with broker_in(base) as broker:
            assert lost_runs(broker) == [], "it was stopped"
            with broker_in(base) as beside:
                assert lost_runs(beside) == [], "it is alive"
            async with connect(broker) as client:
                session = await new_session(client)
                with in_the_way(log):
                    await ok(client, "kill_session", session_id=session)
                    broker.stop(signal.SIGKILL)
        log.with_name("audit.log-aside").rename(log)
        with broker_in(base) as broker:
            (lost,) = lost_runs(broker)
            assert lost["run"] not in (first, broker.audit()[-1]["run"])
            assert lost["owed"] >= 3
        with broker_in(base) as broker:
            assert len(lost_runs(broker)) == 1, "said once"
        assert sorted(path.name for path in (base / "log").iterdir()) == ["audit-errors.log", "audit.log"]
