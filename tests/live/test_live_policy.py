"""What the policy does not allow does not happen: argv, paths, environment, grandchildren; seen from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client

from tests.support.live import LiveBroker, call, connect, new_session, ok, run, running_broker

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours

REAL_RM = str(Path("/bin/rm").resolve())


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


async def layer(client: Client, name: str) -> str:
    """What the broker says of one of its layers."""
    layers = (await ok(client, "get_system_info"))["isolation"]
    state: str = next(each["state"] for each in layers if each["name"] == name)
    return state


@pytest.mark.parametrize(
    "argv",
    [
        ["curl", "example.com"],
        ["/usr/bin/curl"],
        ["./ls"],
        ["../../bin/ls"],
        ["rm\0"],
        ["ls\0", "-l"],
        [""],
        ["env", "ls"],
        ["ls; id"],
    ],
)
async def test_what_is_not_listed_does_not_run(broker: LiveBroker, argv: list[str]) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        refused = await call(client, "execute_command", session_id=session_id, argv=argv)
        assert refused.error[0] in ("POLICY_001", "POLICY_004"), refused.data


async def test_the_gate_holds_for_every_spelling_of_the_program(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        victim = broker.workspace / "victim"
        await ok(client, "write_file", session_id=session_id, path=str(victim), content="x")
        for name in ("rm", "/bin/rm", REAL_RM, "./rm", "rm\0", "env rm"):
            refused = await run(client, session_id, name, "victim")
            assert refused.error[0] == ("POLICY_004" if name in {"rm", "/bin/rm"} else "POLICY_001"), name
            assert victim.exists()
        assert (await run(client, session_id, "rm", "victim", confirm=True))["exit_code"] == 0
        assert not victim.exists()


async def test_shell_syntax_is_plain_text(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        for text in ("$(id)", "`id`", "a | b > c", "a; b", "$HOME", "*"):
            assert (await run(client, session_id, "echo", text))["stdout"] == f"{text}\n"


async def test_a_program_cannot_run_what_is_not_allowed_to_it(broker: LiveBroker) -> None:
    """The control is in the same policy: `sh` may run `head`, and nothing says that it may run `id`."""
    async with connect(broker) as client:
        if await layer(client, "landlock") != "enforced":
            pytest.skip("this kernel has no Landlock, and the broker says so")
        session_id = await new_session(client, working_dir=str(broker.workspace))
        control = await run(client, session_id, "sh", "-c", "echo hello | /usr/bin/head -n 1")
        assert (control["exit_code"], control["stdout"]) == (0, "hello\n"), control.data
        for attempt in ("/usr/bin/id", "cp /usr/bin/id mine && ./mine", "exec /usr/bin/id", "/bin/rm -rf ."):
            refused = await run(client, session_id, "sh", "-c", attempt)
            assert refused["exit_code"] == 126, (attempt, refused.data)
            assert "uid=" not in refused["stdout"]


async def test_a_program_of_the_workspace_does_not_run(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        if await layer(client, "landlock") != "enforced":
            pytest.skip("this kernel has no Landlock, and the broker says so")
        session_id = await new_session(client, working_dir=str(broker.workspace))
        own = broker.workspace / "own"
        own.write_bytes(b"#!/bin/sh\necho ran\n")
        own.chmod(0o755)
        refused = await run(client, session_id, "sh", "-c", "./own")
        assert refused["exit_code"] == 126
        assert refused["stdout"] == ""


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/",
        "{ws}/../outside/f",
        "{ws}/link-out/f",
        "{ws}/.env",
        "{ws}/.ssh",
        "{ws}/.ssh/id",
        "/proc/self/root",
    ],
)
async def test_a_path_outside_or_blocked_is_refused_for_every_file_tool(broker: LiveBroker, path: str) -> None:
    workspace = broker.workspace
    (broker.base / "outside" / "f").write_text("not yours")
    (workspace / ".ssh").mkdir(exist_ok=True)
    (workspace / ".ssh" / "id").write_text("not yours")
    (workspace / ".env").write_text("not yours")
    link = workspace / "link-out"
    if not link.is_symlink():
        link.symlink_to(broker.base / "outside")
    full = path.format(ws=workspace)
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(workspace))
        bodies: dict[str, dict[str, Any]] = {
            "read_file": {},
            "write_file": {"content": "x"},
            "list_directory": {},
            "download_file": {},
            "upload_file": {"chunk_data": "eA==", "is_last": True},
        }
        for tool, more in bodies.items():
            assert (await call(client, tool, session_id=session_id, path=full, **more)).error[0] == "POLICY_002", tool
        assert (await call(client, "create_session", working_dir=full)).error[0] == "POLICY_002"


async def test_a_command_cannot_read_what_lies_outside(broker: LiveBroker) -> None:
    """The control is the same command inside."""
    (broker.base / "outside" / "f").write_text("not yours")
    (broker.base / "outside" / "f").chmod(0o644)
    (broker.workspace / "inside").write_text("yours")
    async with connect(broker) as client:
        if await layer(client, "landlock") != "enforced":
            pytest.skip("this kernel has no Landlock, and the broker says so")
        session_id = await new_session(client, working_dir=str(broker.workspace))
        assert (await run(client, session_id, "cat", "inside"))["stdout"] == "yours"
        outside = await run(client, session_id, "cat", str(broker.base / "outside" / "f"))
        assert (outside["exit_code"], outside["stdout"]) == (1, "")


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "PATH", "PYTHONPATH", "GIT_DIR", "BASH_ENV", "IFS", "not-a-name", "A=B"]
)
async def test_a_variable_that_changes_programs_is_refused(broker: LiveBroker, name: str) -> None:
    async with connect(broker) as client:
        assert (await call(client, "create_session", environment={name: "x"})).is_error


async def test_nothing_of_the_brokers_environment_reaches_a_command() -> None:
    os.environ["BROKER_TEST_VARIABLE"] = "leaked"
    try:
        with running_broker() as broker:
            async with connect(broker) as client:
                session_id = await new_session(client)
                shown = await run(client, session_id, "env")
        names = {line.split("=")[0] for line in shown["stdout"].splitlines()}
        assert "BROKER_TEST_VARIABLE" not in names
        assert {"PATH", "HOME", "USER", "LANG"} <= names
    finally:
        del os.environ["BROKER_TEST_VARIABLE"]


async def test_a_command_never_runs_as_root(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        written = await ok(client, "write_file", session_id=session_id, path="whose", content="x")
        await run(client, session_id, "sh", "-c", "echo x > whose-too")
        owners = {os.stat(written["path"]).st_uid, (broker.workspace / "whose-too").stat().st_uid}
        assert len(owners) == 1, "file tools and commands act as the same user"
        assert 0 not in owners
