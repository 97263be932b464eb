"""What is said, and who goes first, when the machine runs out of something: never the broker that answers for all."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
from mcp.client.client import Client

from sandbox.kernel.process import FIRST_TO_GO
from tests.support.live import (
    COMMANDS,
    Answer,
    BrokerFailed,
    LiveBroker,
    broker_in,
    call,
    connect,
    live_folder,
    new_session,
    ok,
    run,
    running_broker,
    write_config,
)
from tests.support.live_plain_user import PlainUser, own_uid, plain_user

POLICY = {"allowed_commands": {**COMMANDS, "python3": {"executable": "/usr/bin/python3"}}}
TAKE_BACK = """
import sys
with open("/proc/self/oom_score_adj", "r+b", buffering=0) as score:
    score.write(sys.argv[1].encode())
    score.write(b"0")
    score.seek(0)
    print(score.read().decode())
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a user with no other process, whom root can give")
as_each = pytest.mark.parametrize("who", ["root", "user"])
pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]  # each starts a broker


@contextmanager
def scene(who: str, *, namespaces: bool) -> Iterator[tuple[LiveBroker, PlainUser | None]]:
    """A broker of root or of a plain user, who is given too."""
    with live_folder() as base:
        write_config(base, {"sandbox": {"enable_namespaces": namespaces}}, POLICY)
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        with broker_in(base, **words) as broker:
            yield broker, user


def score(process: psutil.Process) -> int:
    with open(f"/proc/{process.pid}/oom_score_adj") as file:
        return int(file.read())


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_sessions_go_before_the_broker_and_cannot_change_that(who: str, *, namespaces: bool) -> None:
    with scene(who, namespaces=namespaces) as (broker, user):
        python = ("/usr/bin/python3",) if user is None else user.python
        environment = dict(os.environ) if user is None else dict(user.environment)
        control = subprocess.run(
            [*python, "-c", TAKE_BACK, "500"], env=environment, capture_output=True, text=True, check=False
        )
        assert control.stdout == "0\n\n", "outside it can be taken back"
        async with connect(broker) as client:
            session_id = await new_session(client)
            done = await run(client, session_id, "python3", "-c", "print(open('/proc/self/oom_score_adj').read())")
            assert int(done["stdout"]) == FIRST_TO_GO
            done = await run(client, session_id, "python3", "-c", TAKE_BACK, "500")
            assert done["exit_code"] == 1, done.data
            assert {score(process) for process in broker.family()} == {FIRST_TO_GO}
            assert score(psutil.Process(broker.process.pid)) < FIRST_TO_GO


async def sweep(client: Client, session_id: str, folder: Path, *, name: str) -> dict[str, Answer]:
    """One call of every kind of work that needs something of the machine; *name*: of the files."""
    path, here = f"{folder}/{name}", {"session_id": session_id}
    calls: dict[str, dict[str, Any]] = {
        "write_file": {**here, "path": path, "content": "hello\n"},
        "read_file": {**here, "path": path},
        "edit_file": {**here, "path": path, "old_text": "hello", "new_text": "good bye"},
        "stat_path": {**here, "path": path, "checksum": True},
        "list_directory": {**here, "path": str(folder)},
        "search_files": {**here, "path": str(folder), "pattern": "bye"},
        "upload_file": {**here, "path": f"{path}.up", "chunk_data": "aGVsbG8=", "is_last": True},
        "download_file": {**here, "path": path},
        "copy_path": {**here, "source": path, "destination": f"{path}.copy"},
        "execute_command": {**here, "argv": ["echo", "here"]},
        "get_system_info": {},
        "get_process_list": here,
    }
    return {tool: await call(client, tool, **arguments) for tool, arguments in calls.items()}


def require_typed(answers: Mapping[str, Answer]) -> int:
    """Every failure must be a shortage, may be tried again and says a limit; returns how many there were."""
    short = 0
    for tool, answer in answers.items():
        # What an earlier call of the sweep did not make is not there, and of what was made the answer may be lost: that
        # is true as well.
        if answer.is_error and answer["error_code"] == "FILE_010":
            short += 1
        elif answer.is_error and answer["error_code"] != "FILE_001":
            assert answer["error_code"] == "SYS_001", (tool, answer.data)
            assert answer["retryable"]
            assert "limit" in answer["error_message"]
            short += 1
    return short


ENOUGH = 4096


def limited(user: PlainUser, processes: int) -> PlainUser:
    """The same user, who may have so many processes and threads."""
    at = user.python.index("--", user.python.index("--clear-groups")) + 1 if "--clear-groups" in user.python else 0
    words = ("prlimit", f"--nproc={processes}:{ENOUGH}", "--")
    return attrs.evolve(user, python=(*user.python[:at], *words, *user.python[at:]))


@needs_root
@pytest.mark.parametrize("processes", [1, 2])
def test_a_start_that_runs_short_of_processes_says_so_in_one_line(processes: int) -> None:
    with live_folder() as base:
        write_config(base, {}, POLICY)
        user = limited(plain_user(base, own_uid()), processes)
        with (
            pytest.raises(BrokerFailed, match="ended with status 3") as failed,
            broker_in(base, python=user.python, environment=user.environment),
        ):
            pytest.fail("it started")
        last = str(failed.value).splitlines()[-1]
        assert last.startswith("cannot ")
        assert "RLIMIT_NPROC" in last
        assert "Traceback" not in str(failed.value)


@needs_root
@pytest.mark.parametrize("processes", [9, 11])  # those of the broker alone, and with one session's own
async def test_with_a_handful_of_processes_every_answer_is_typed(processes: int) -> None:
    with live_folder() as base:
        # The shorter wait for a keeper is not a setting: a call that needs one takes ten seconds to give up.
        write_config(base, {"sandbox": {"enable_namespaces": False}}, POLICY)
        uid = own_uid()
        user = limited(plain_user(base, uid), processes)
        with broker_in(base, python=user.python, environment=user.environment) as broker:
            async with connect(broker) as client:
                created = await call(client, "create_session")
                short = require_typed({"create_session": created})
                if not short:
                    short = require_typed(await sweep(client, created["session_id"], broker.workspace, name="short"))
                assert short, "the control: something was short"
                as_user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--")
                allow = ("prlimit", f"--pid={broker.process.pid}", f"--nproc={ENOUGH}:{ENOUGH}")
                subprocess.run([*as_user, *allow], check=True)
                await call(client, "create_session")  # has the process that was started ahead, under the limit
                session_id = await new_session(client)
                answers = await sweep(client, session_id, broker.workspace, name="enough")
                assert not any(answer.is_error for answer in answers.values())


async def test_with_a_handful_of_descriptors_every_answer_is_typed() -> None:
    with running_broker({}, POLICY) as broker:
        pid = broker.process.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        async with connect(broker) as client:
            session_id = await new_session(client)
            await sweep(client, session_id, broker.workspace, name="warm")
            before, short = descriptors_of(pid), 0
            for spare in range(6):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(before) + 1 + spare, hard))
                try:
                    short += require_typed({"create_session": await call(client, "create_session")})
                    short += require_typed(await sweep(client, session_id, broker.workspace, name=f"short{spare}"))
                finally:
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert short, "the control: something was short"
            answers = await sweep(client, session_id, broker.workspace, name="enough")
            assert not any(answer.is_error for answer in answers.values())
            for session in {answer["session_id"] for answer in answers.values() if "session_id" in answer.data}:
                assert session in {session_id, None}


async def test_without_memory_every_answer_is_typed() -> None:
    with running_broker({}, POLICY) as broker:
        pid = broker.process.pid
        async with connect(broker) as client:
            session_id = await new_session(client)
            large = f"{broker.workspace}/large"
            Path(large).write_bytes(b"x" * (9 << 20))
            Path(large).chmod(0o666)
            await call(client, "read_file", session_id=session_id, path=large, limit=10)
            soft, hard = resource.prlimit(pid, resource.RLIMIT_AS)
            resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms + (4 << 20), hard))
            try:
                answers = {"read_file": await call(client, "read_file", session_id=session_id, path=large)}
            finally:
                resource.prlimit(pid, resource.RLIMIT_AS, (soft, hard))
            assert require_typed(answers)
            answer = await ok(client, "read_file", session_id=session_id, path=large)
            assert answer["size_bytes"] == 9 << 20


def descriptors_of(pid: int) -> list[int]:
    return [int(name) for name in os.listdir(f"/proc/{pid}/fd")]
