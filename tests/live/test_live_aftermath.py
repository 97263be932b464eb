"""Closed names that commands make in open directories: found while the session lives and at its end, told once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import trio
from mcp.client.client import Client

from tests.support.live import COMMANDS, LiveBroker, broker_in, connect, live_folder, new_session, ok, run, write_config
from tests.support.live_plain_user import plain_user

STATUS = ("git", "-c", "safe.directory=*", "status")
EVENT = "CLOSED_NAMES_APPEARED"
ABSENT = "/usr/bin/absent-program"
POLICY: Mapping[str, Any] = {
    "allowed_commands": {**COMMANDS, "python3": {"executable": "/usr/bin/python3"}, "absent": {"executable": ABSENT}},
    "blocked_paths": [
        "**/.env",
        {"path": "**/.git/config", "close": "writing", "why": "git runs what it names"},
        {"path": "**/.git/hooks/**", "close": "writing", "why": "git runs what lies here"},
    ],
}
INIT = """
import os, sys
os.makedirs(".git/hooks")
for name in ("HEAD", "config", "hooks/pre-commit.sample"):
    with open(f".git/{name}", "w") as file:
        os.chmod(file.fileno(), 0o755 if name.startswith("hooks") else 0o644)
"""
PLANT = """
import os
with open(".git/hooks/pre-commit", "w") as file:
    os.chmod(file.fileno(), 0o755)
"""
FLOOD = "import os\nfor n in range(100_000): os.mknod(f'f{n}')\n"
MANY = "import os\nfor n in range(2000): os.mkdir(f'd{n}'); os.mknod(f'd{n}/.env')\n"
as_each = pytest.mark.parametrize("who", ["root", "user"])
with_and_without = pytest.mark.parametrize("namespaces", [True, False])
pytestmark = [pytest.mark.bounded(120), pytest.mark.long, pytest.mark.once]


@attrs.frozen(kw_only=True)
class Scene:
    """A broker, and what it recorded."""

    broker: LiveBroker

    def told(self) -> list[dict[str, Any]]:
        return [record for record in self.broker.audit() if record["event_type"] == EVENT]

    async def wait_told(self, *paths: str) -> list[dict[str, Any]]:
        """The records so far, as soon as they name all of *paths* in the workspace."""
        wanted = {str(self.broker.workspace / path) for path in paths}
        with trio.fail_after(60):
            while not wanted <= paths_of(told := self.told()):
                await trio.sleep(0.01)
        return told


def paths_of(records: list[dict[str, Any]]) -> set[str]:
    return {path for record in records for path in record["details"]["paths"]}


@contextmanager
def scene(who: str, *, namespaces: bool) -> Iterator[Scene]:
    """A broker of root or of a plain user; its workspace holds a repository."""
    with live_folder() as base:
        write_config(base, {"sandbox": {"enable_namespaces": namespaces}}, POLICY)
        if who == "root" and os.geteuid() != 0:
            pytest.skip("only root can start a broker of root")
        old = base / "ws/old/.git"
        (old / "hooks").mkdir(parents=True)
        (old / "config").write_text("[core]\n")
        for path in (old.parent, old, *old.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        with broker_in(base, **words) as broker:
            yield Scene(broker=broker)


async def python(client: Client, session_id: str, code: str, exit_code: int = 0) -> None:
    done = await run(client, session_id, "python3", "-c", code, timeout_seconds=60)
    assert done["exit_code"] == exit_code, done.data


async def begin(client: Client, here: Scene) -> str:
    return await new_session(client, working_dir=str(here.broker.workspace))


async def blocked_paths(client: Client) -> str:
    layers = (await ok(client, "get_system_info"))["isolation"]
    return str(next(layer["detail"] for layer in layers if layer["name"] == "blocked_paths"))


async def has_mounts(client: Client) -> bool:
    layers = (await ok(client, "get_system_info"))["isolation"]
    return any(layer["name"] == "mount_namespace" and layer["state"] != "unavailable" for layer in layers)


@as_each
@with_and_without
async def test_what_appears_is_told_once_and_covered_in_the_next_session(who: str, *, namespaces: bool) -> None:
    with scene(who, namespaces=namespaces) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, INIT)
            (first,) = await here.wait_told(".git/config", ".git/hooks")
            assert (first["session_id"], first["principal"]) == (sid, "local")
            assert first["details"]["command_id"] == "c1"
            assert (first["details"]["count"], first["details"]["looked_to_the_end"]) == (2, True)
            assert str(here.broker.workspace / ".git/hooks") in await blocked_paths(client)
            await python(client, sid, PLANT)
            second = (await here.wait_told(".git/hooks/pre-commit"))[1:]
            assert [record["details"]["count"] for record in second] == [1]
            await python(client, sid, "open('honest', 'w').write('x')")
            await ok(client, "kill_session", session_id=sid)  # which looks once more
            assert len(here.told()) == 2
            if await has_mounts(client):
                later = await begin(client, here)
                await python(client, later, PLANT, exit_code=1)
                assert "appeared while" not in await blocked_paths(client)
                await ok(client, "kill_session", session_id=later)
                assert len(here.told()) == 2


HOSTILE = """
import os
os.makedirs("new/.git/objects")
os.makedirs("new/.git/refs/heads")
obeyed = "[core]\\n\\tfsmonitor = touch ../obeyed; false\\n"
for name, text in (("HEAD", "ref: refs/heads/main\\n"), ("config", obeyed)):
    with open(f"new/.git/{name}", "w") as file:
        file.write(text)
"""


@as_each
@with_and_without
async def test_git_obeys_no_configuration_of_a_repository_that_a_command_made(who: str, *, namespaces: bool) -> None:
    with scene(who, namespaces=namespaces) as here:
        repository, obeyed = here.broker.workspace / "new", here.broker.workspace / "obeyed"
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, HOSTILE)
            (told,) = await here.wait_told("new/.git/config")
            assert told["details"]["set_aside"] == [str(repository / ".git/config")]
            await trio.run_process(STATUS, cwd=repository, check=False)
            assert not obeyed.exists()
            await python(client, sid, HOSTILE.replace("makedirs(", "makedirs(exist_ok=True, name="))
            await ok(client, "kill_session", session_id=sid)
            assert [len(record["details"]["set_aside"]) for record in here.told()] == [1, 1], "and again"
        for aside in (repository / ".git").glob("config.*"):  # the control
            aside.replace(repository / ".git/config")
        await trio.run_process(STATUS, cwd=repository, check=False)
        assert obeyed.exists()


async def test_what_never_ran_made_nothing() -> None:
    with scene("root", namespaces=True) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, INIT)
            failed = await run(client, sid, "absent")  # before the look that its predecessor is due
            assert failed.error == ("CMD_001", "CMD_EXEC_FAILED")
            assert failed["error_message"].endswith(f": {ABSENT}")
            (first,) = await here.wait_told(".git/config", ".git/hooks")
            assert first["details"]["command_id"] == "c1"


@as_each
@with_and_without
async def test_honest_work_is_not_told(who: str, *, namespaces: bool) -> None:
    with scene(who, namespaces=namespaces) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, "import os\nos.mkdir('d')\nopen('d/git', 'w')\nopen('old/.git/HEAD', 'w')")
            await run(client, sid, "cat", "old/.git/config")
            await ok(client, "kill_session", session_id=sid)
            assert here.told() == []
            sid = await begin(client, here)  # the control, found by the last look
            await python(client, sid, "open('d/.env', 'w')")
            await ok(client, "kill_session", session_id=sid)
            assert paths_of(here.told()) == {str(here.broker.workspace / "d/.env")}


@as_each
async def test_without_mounts_what_was_there_is_told_when_it_changes(who: str) -> None:
    with scene(who, namespaces=False) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, "open('old/.git/config', 'a').write('[core]')")
            await here.wait_told("old/.git/config")
            await python(client, sid, f"import os\nos.chdir('old')\n{PLANT}")
            assert len(await here.wait_told("old/.git/hooks/pre-commit")) == 2


@as_each
async def test_a_cover_that_went_when_somebody_outside_replaced_what_lay_there_is_told(who: str) -> None:
    with scene(who, namespaces=True) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            config = here.broker.workspace / "old/.git/config"
            fresh = config.with_name("config.lock")
            fresh.write_text("[user]\n")
            fresh.chmod(0o666)
            fresh.rename(config)
            await run(client, sid, "true")
            await here.wait_told("old/.git/config")


@as_each
@with_and_without
async def test_a_tree_that_gets_a_closed_name_by_moving_is_told(who: str, *, namespaces: bool) -> None:
    """Nothing in it is new but its place."""
    with scene(who, namespaces=namespaces) as here:
        workspace = here.broker.workspace
        (workspace / "evil/hooks").mkdir(parents=True)
        (workspace / "evil/hooks/post-checkout").write_text("#!/bin/sh\n")
        for path in (workspace / "evil", workspace / "evil/hooks", workspace / "evil/hooks/post-checkout"):
            path.chmod(0o777)
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, "import os\nos.mkdir('p')\nos.rename('evil', 'p/.git')")
            (record,) = await here.wait_told("p/.git/hooks", "p/.git/hooks/post-checkout")
            assert record["details"]["paths"][0].endswith("post-checkout"), "programs come first"


async def test_floods_are_bounded_and_said() -> None:
    with scene("root", namespaces=True) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            await python(client, sid, MANY)
            with trio.fail_after(60):
                while not here.told():
                    await trio.sleep(0.01)
            details = here.told()[0]["details"]
            assert (len(details["paths"]), details["count"], details["stopped"]) == (50, 1000, "count")
            await ok(client, "kill_session", session_id=sid)
            sid = await begin(client, here)
            await python(client, sid, FLOOD)
            with trio.fail_after(60):
                while (last := here.told()[-1])["session_id"] != sid:
                    await trio.sleep(0.01)
            assert (last["details"]["count"], last["details"]["stopped"]) == (0, "names")
            assert not last["details"]["looked_to_the_end"]


@with_and_without
async def test_a_kill_in_the_middle_still_looks(*, namespaces: bool) -> None:
    with scene("root", namespaces=namespaces) as here:
        async with connect(here.broker) as client:
            sid = await begin(client, here)
            code = f"{INIT}\nprint('made', flush=True)\nimport time\ntime.sleep(60)"
            begun = await run(client, sid, "python3", "-c", code, background=True)
            await ok(client, "read_output", session_id=sid, command_id=begun["command_id"], cursor=0, wait_seconds=20)
            await ok(client, "kill_session", session_id=sid, force=True)
            assert {str(here.broker.workspace / name) for name in (".git/config", ".git/hooks")} <= paths_of(
                here.told()
            )
