"""A session's own processes, root and network, over HTTP, for a broker of root and one of a plain user."""

from __future__ import annotations

import base64
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from live import (
    COMMANDS,
    RESOURCE_LIMITS,
    LiveBroker,
    broker_in,
    call,
    connect,
    live_folder,
    lives,
    new_session,
    ok,
    run,
    running_broker,
    write_config,
)
from live_plain_user import plain_user
from mcp.client.client import Client

PYTHON = "/usr/bin/python3"
POLICY = {"allowed_commands": {**COMMANDS, "python3": {"executable": PYTHON}}}


@contextmanager
def broker_of(who: str, **policy: Any) -> Iterator[LiveBroker]:
    """A broker that root or a plain user started; `.env` and `.ssh/id` are in its workspace."""
    with live_folder() as base:
        (base / "ws" / ".ssh").mkdir()
        for name in (".env", ".ssh/id"):
            (base / "ws" / name).write_text("secret\n")
            (base / "ws" / name).chmod(0o666)
        write_config(base, policy={**POLICY, **policy})
        if who == "root" and os.geteuid() != 0:
            pytest.skip("only root can start a broker of root")
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        with broker_in(base, **words) as broker:
            yield broker


as_each = pytest.mark.parametrize("who", ["root", "user"])
pytestmark = pytest.mark.bounded(90)  # each starts a broker


async def layers_of(client: Client) -> dict[str, str]:
    layers = (await ok(client, "get_system_info"))["isolation"]
    return {each["name"]: each["state"] for each in layers}


@as_each
async def test_commands_and_file_tools_live_in_the_same_closed_world(who: str) -> None:
    with broker_of(who) as broker:
        async with connect(broker) as client:
            if (await layers_of(client))["mount_namespace"] != "enforced":
                pytest.skip("this machine gives no namespaces")
            sid = await new_session(client, working_dir=str(broker.workspace))
            for path in (
                ".env",
                ".ssh/id",
                "/proc/self/root" + str(broker.workspace / ".env"),
                "../config/policy.yaml",
            ):
                assert (await run(client, sid, "cat", path))["exit_code"] != 0, path
            for path in ("own", "/tmp/mine"):
                assert (await run(client, sid, "sh", "-c", f"echo told > {path}"))["exit_code"] == 0
            assert (await ok(client, "read_file", session_id=sid, path="own"))["content"] == "told\n"
            assert (broker.workspace / "own").read_text() == "told\n"
            assert not Path("/tmp/mine").exists()
            await ok(client, "write_file", session_id=sid, path="theirs", content="told\n")
            assert (await run(client, sid, "cat", "theirs"))["stdout"] == "told\n"
            chunk = base64.b64encode(b"sent").decode()
            await ok(client, "upload_file", session_id=sid, path="up", chunk_data=chunk, is_last=True)
            assert (await run(client, sid, "cat", "up"))["stdout"] == "sent"
            assert (await call(client, "read_file", session_id=sid, path=".env")).error[0] == "POLICY_002"
            shown = (await run(client, sid, "ls", "/"))["stdout"]
            assert "root" not in shown.split()


@as_each
async def test_a_pid_means_the_same_to_every_tool(who: str) -> None:
    with broker_of(who) as broker:
        async with connect(broker) as client:
            sid = await new_session(client)
            job = await ok(client, "execute_command", session_id=sid, argv=["sleep", "1000"], background=True)
            listed = (await ok(client, "get_process_list", session_id=sid))["processes"]
            assert [each["pid"] for each in listed] == [job["pid"]]
            assert psutil.Process(job["pid"]).cmdline() == ["sleep", "1000"]
            await ok(client, "kill_process", session_id=sid, pid=job["pid"], signal=9)
            ended = await call(client, "wait_command", session_id=sid, command_id=job["command_id"])
            assert (ended["signal"], ended["pid"]) == (9, job["pid"])
            records = [each for each in broker.audit() if each.get("tool_name") == "kill_process"]
            assert {each["arguments"]["pid"] for each in records} == {job["pid"]}


REACH = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5).close()"


@as_each
@pytest.mark.parametrize("said", ["allow", "deny"])
async def test_the_network_is_closed_unless_the_policy_opens_it(who: str, said: str) -> None:
    with broker_of(who, network=said) as broker, socket.create_server(("127.0.0.1", 0)) as server:
        async with connect(broker) as client:
            sid = await new_session(client)
            ended = await run(client, sid, "python3", "-I", "-c", REACH, str(server.getsockname()[1]))
            assert (ended["exit_code"] == 0) is (said == "allow"), ended["stderr"]


@as_each
async def test_a_broker_of_anybody_leaves_nothing_when_it_is_killed(who: str) -> None:
    with broker_of(who) as broker:
        async with connect(broker) as client:
            sid = await new_session(client)
            script = "(setsid sh -c 'trap \"\" TERM HUP; sleep 1000' &) ; sleep 1000"
            await ok(client, "execute_command", session_id=sid, argv=["sh", "-c", script], background=True)
            with trio.fail_after(20):
                while len((await ok(client, "get_process_list", session_id=sid))["processes"]) < 3:
                    await trio.lowlevel.checkpoint()
            family = broker.family()
            broker.process.send_signal(signal.SIGKILL)
            broker.process.wait()
        for process in family:
            with trio.fail_after(20):
                while lives(process):
                    await trio.lowlevel.checkpoint()


async def test_a_broker_uses_every_descriptor_it_may_and_a_command_those_of_its_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
    try:
        with running_broker() as broker:
            assert resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
            async with connect(broker) as client:
                session_id = await new_session(client)
                said = await run(client, session_id, "sh", "-c", "ulimit -Sn; ulimit -Hn")
            assert said["stdout"] == f"{RESOURCE_LIMITS['open_files_max']}\n" * 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
