"""A session's own processes, root and network, over HTTP, for a broker of root and one of a plain user."""

from __future__ import annotations

import base64
import os
import resource
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from mcp.client.client import Client

from tests.support.live import (
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
from tests.support.live_plain_user import UID, plain_user

PYTHON = "/usr/bin/python3"
POLICY = {"allowed_commands": {**COMMANDS, "python3": {"executable": PYTHON}}}


@contextmanager
def broker_of(who: str, server: Mapping[str, Any] | None = None, **policy: Any) -> Iterator[LiveBroker]:
    """A broker that root or a plain user started; `.env` and `.ssh/id` are in its workspace."""
    with live_folder() as base:
        (base / "ws" / ".ssh").mkdir()
        for name in (".env", ".ssh/id"):
            (base / "ws" / name).write_text("secret\n")
            (base / "ws" / name).chmod(0o666)
        write_config(base, server, policy={**POLICY, **policy})
        if who == "root" and os.geteuid() != 0:
            pytest.skip("only root can start a broker of root")
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        with broker_in(base, **words) as broker:
            yield broker


as_each = pytest.mark.parametrize("who", ["root", "user"])
# Each starts a broker; test_walls_* try the same without.
pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]


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


CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@contextmanager
def multiplexer() -> Iterator[str]:
    """A service of anybody's in the machine's /tmp; yields where it listens."""
    with tempfile.TemporaryDirectory(prefix="tmux-") as folder, socket.socket(socket.AF_UNIX) as listening:
        Path(folder).chmod(0o755)
        listening.bind(f"{folder}/default")
        Path(folder, "default").chmod(0o777)
        listening.listen()
        yield f"{folder}/default"


@as_each
@pytest.mark.parametrize("private", [True, False])
async def test_a_multiplexers_socket_in_tmp_is_out_of_reach(who: str, *, private: bool) -> None:
    """What the shipped files say, and what an operator may; one that appears in a shared /tmp later is the control."""
    server = {} if private else {"sandbox": {"private_tmp": False}}
    allowed = ["~/**", "/home/**", "/tmp/**"]
    with multiplexer() as before, broker_of(who, server, allowed_paths=allowed) as broker:
        async with connect(broker) as client:
            layers = await layers_of(client)
            if layers["pid_namespace"] != "enforced":
                pytest.skip("this machine gives no namespaces")
            assert layers["mount_namespace"] == ("enforced" if private else "partial")
            sid = await new_session(client, working_dir=str(broker.workspace))
            with multiplexer() as later:
                for where, connects in ((before, False), (later, not private)):
                    ended = await run(client, sid, "python3", "-I", "-c", CONNECT, where)
                    assert (ended["exit_code"] == 0) is connects, ended["stderr"]


READ_TERMINAL = "import os, sys; print(os.read(os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY), 100))"
OWN_TERMINAL = "import os, sys; open('/dev/tty', 'w').write(f'{os.isatty(0)} {os.get_terminal_size()}')"


@contextmanager
def operators_terminal(who: str) -> Iterator[tuple[int, str]]:
    """A terminal of the person who started the broker; yields the end that is typed into, and its name."""
    ours, theirs = os.openpty()
    try:
        if who == "user" and os.geteuid() == 0:
            os.fchown(theirs, UID, UID)
        os.fchmod(theirs, 0o620)
        yield ours, os.ttyname(theirs)
    finally:
        os.close(ours)
        os.close(theirs)


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_the_operators_terminal_is_closed_and_a_commands_own_works(who: str, *, namespaces: bool) -> None:
    server = {"sandbox": {"enable_namespaces": namespaces}}
    with broker_of(who, server) as broker, operators_terminal(who) as (typed, name):
        attack = ("python3", "-I", "-c", READ_TERMINAL, name)
        os.write(typed, b"my password\n")
        identity = {"user": UID, "group": UID} if who == "user" and os.geteuid() == 0 else {}
        control = await trio.run_process([PYTHON, *attack[1:]], capture_stdout=True, **identity)
        assert b"my password" in control.stdout
        os.write(typed, b"my password\n")
        async with connect(broker) as client:
            if (layers := await layers_of(client))["landlock"] != "enforced":
                pytest.skip(f"landlock is {layers['landlock']}")
            sid = await new_session(client)
            ended = await run(client, sid, *attack)
            assert (ended["exit_code"], ended["stdout"]) == (1, "")
            assert "PermissionError" in ended["stderr"] or "FileNotFoundError" in ended["stderr"]
            own = await run(client, sid, "python3", "-I", "-c", OWN_TERMINAL, terminal={"rows": 24, "columns": 80})
            assert own["stdout"] == "True os.terminal_size(columns=80, lines=24)"


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_commands_make_terminals_or_the_layer_says_that_they_cannot(who: str, *, namespaces: bool) -> None:
    with broker_of(who, {"sandbox": {"enable_namespaces": namespaces}}) as broker:
        async with connect(broker) as client:
            created = await ok(client, "create_session")
            detail = next(each["detail"] for each in created["isolation"] if each["name"] == "landlock")
            made = await run(client, created["session_id"], "python3", "-I", "-c", "import os; os.openpty()")
            assert (made["exit_code"] == 0) is ("make none" not in detail), made["stderr"]
            states = {each["name"]: each["state"] for each in created["isolation"]}
            if states["landlock"] != "unavailable":
                alone = who == "root" or states["pid_namespace"] == "enforced"
                assert ("make none" not in detail) is alone


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
