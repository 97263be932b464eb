"""A person's home under the shipped policy: nothing that his programs obey is written, no secret is read, work goes on.

A broker of a plain user, with that user's home, driven by a real client; the same program does the same outside.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import yaml
from mcp.client.client import Client

from config.keys import SHIPPED_DIR
from sandbox.machine import capabilities
from tests.sandbox.init.test_sandbox_births import PLAIN, needs_landlock
from tests.support.live import broker_in, connect, live_folder, merged, new_session, ok, run
from tests.support.live_plain_user import PlainUser, plain_user
from tests.support.obeyed import HOME_OBEYED, HOME_SECRETS, HONEST, PROJECT_OBEYED, PROJECT_SECRETS

pytestmark = [pytest.mark.long, pytest.mark.once]

SHIPPED = (SHIPPED_DIR / "policy.yaml").read_text(encoding="utf-8")
WORK_S = 100
TRY = """
import json, os, sys
asked = json.load(sys.stdin)
def write(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a") as file:
        file.write("forged")
def read(path):
    with open(path, "rb") as file:
        file.read(1)
def through(act, paths):
    done = []
    for path in paths:
        try:
            act(path)
        except OSError:
            continue
        done.append(path)
    return done
print(json.dumps({"read": through(read, asked["read"]), "written": through(write, asked["write"])}))
"""
either_way = pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param({"private_tmp": True}, id="own root", marks=pytest.mark.skipif(
            not capabilities.probe().namespaces.present, reason="this machine gives no namespaces")),
        pytest.param(dict(PLAIN), id="landlock alone", marks=needs_landlock),
    ],
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Person:
    """Somebody with a home, a project in it, and a broker of his own; `client` is connected to it."""

    user: PlainUser
    home: Path
    client: Client

    @property
    def project(self) -> Path:
        return self.home / "work" / "project"

    async def session(self, folder: Path) -> str:
        return await new_session(self.client, working_dir=str(folder))

    async def tries(self, folder: Path, read: Sequence[str], write: Sequence[str]) -> tuple[set[str], set[str]]:
        """What a command in a session that begins in *folder* gets through with: read, written."""
        session_id = await self.session(folder)
        asked = json.dumps({"read": read, "write": write})
        answer = await run(
            self.client, session_id, "python3", "-I", "-c", TRY, stdin_input=asked, confirm=True, timeout_seconds=60
        )
        assert answer["exit_code"] == 0, answer.data
        said = json.loads(answer["stdout"])
        return set(said["read"]), set(said["written"])

    def tries_outside(self, read: Sequence[str], write: Sequence[str]) -> tuple[set[str], set[str]]:
        """The same without walls: what the user himself may do."""
        asked = json.dumps({"read": read, "write": write})
        command = [*self.user.python, "-I", "-c", TRY]
        done = subprocess.run(
            command, input=asked, env=self.user.environment, capture_output=True, text=True, check=True
        )
        said = json.loads(done.stdout)
        return set(said["read"]), set(said["written"])


@asynccontextmanager
async def open_person(sandbox: Mapping[str, Any], prepare: Mapping[str, str]) -> AsyncIterator[Person]:
    """Start the broker with the shipped policy; *prepare* says what there is in the home, by its names in it."""
    with live_folder() as base:
        (base / "config" / "policy.yaml").write_text(SHIPPED, encoding="utf-8")
        server = merged({"sandbox": sandbox}, {"logging": {"audit_log": "log/audit.log"}})
        (base / "config" / "server.yaml").write_text(yaml.safe_dump({"server": server}), encoding="utf-8")
        home = base / "home-of-plain"
        (home / "work" / "project").mkdir(parents=True)
        for name, text in prepare.items():
            with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):  # a file and a folder
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                (home / name).write_text(text, encoding="utf-8")
        user = plain_user(base)
        python = (*user.python, "-P")
        with broker_in(base, python=python, environment=user.environment) as broker:
            async with connect(broker) as client:
                yield Person(user=user, home=home, client=client)


def in_home(names: Iterable[str]) -> list[str]:
    """The names of *names* that lie in the home, relative to it; those of a project in the one there is."""
    return [name[2:] if name.startswith("~/") else f"work/project/{name}" for name in names if name[0] != "/"]


@either_way
@pytest.mark.bounded(WORK_S)
async def test_nothing_that_programs_obey_is_written_and_no_secret_is_read(sandbox: Mapping[str, Any]) -> None:
    obeyed, secrets = in_home(HOME_OBEYED), in_home((*HOME_SECRETS, *PROJECT_SECRETS))
    guarded = in_home(PROJECT_OBEYED)
    there = (*obeyed[::2], *secrets, *guarded)  # the others are absent
    async with open_person(sandbox, dict.fromkeys(there, "theirs")) as person:
        at = [str(person.home / name) for name in secrets]
        new = [str(person.home / name) for name in obeyed]
        read, written = await person.tries(person.project, at, new)
        assert (read, written) == (set(), set())
        read, written = await person.tries(person.home, at, new)
        assert (read, written) == (set(), set())
        _, written = await person.tries(person.project, [], [str(person.home / name) for name in guarded])
        if sandbox.get("enable_namespaces", True):
            assert written == set()
        else:  # and said so
            session = await ok(person.client, "create_session", working_dir=str(person.project))
            (layer,) = [one for one in session["isolation"] if one["name"] == "blocked_paths"]
            assert "kept from changes by file tools alone" in layer["detail"]
        read, written = person.tries_outside(at, new)  # the control
        assert len(read) >= 110
        assert len(written) >= 190


@either_way
@pytest.mark.bounded(WORK_S)
async def test_a_project_in_the_home_is_worked_in(sandbox: Mapping[str, Any]) -> None:
    there = {f"work/project/{name}": "x" for name in (".git/config", ".git/hooks/pre-commit.sample", "main.py")}
    async with open_person(sandbox, there) as person:
        paths = [str(person.project / name) for name in HONEST if name[0] not in "/~" and name != "config"]
        _, written = await person.tries(person.project, [], paths)
        assert written == set(paths)
        session_id = await person.session(person.project)
        await ok(person.client, "write_file", session_id=session_id, path="src/new.py", content="print(42)\n")
        said = await run(person.client, session_id, "python3", "src/new.py", confirm=True)
        assert said["stdout"] == "42\n"
        home = await run(person.client, session_id, "python3", "-c", HOME_WORKS, confirm=True)
        assert home["exit_code"] == 0, home.data
        assert Path(home["stdout"].strip()).is_relative_to(person.home.parent / "data" / "home")


HOME_WORKS = """
import os
cache = os.path.expanduser("~/.cache/tool")
os.makedirs(cache)
open(cache + "/x", "w").write("x")
print(cache)
"""
