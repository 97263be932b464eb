"""Every error code that a client can provoke, provoked from outside; each with its one shape."""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial

import psutil
import pytest
import trio
from mcp.client.client import Client

from broker.contract.errors import ErrorCode
from tests.support.live import (
    Answer,
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
from tests.support.live_trees import tree

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours

MIB = 1024 * 1024
LIMITED = {
    "sessions": {"max_concurrent": 3, "max_session_age": 3, "max_concurrent_commands": 1},
    "timeouts": {"command_max": 30, "command_default": 20},
}
MISSING = {"missing": {"executable": "/usr/bin/no-such-program-here"}}
SMALL_FILES = {
    "file_limits": {"max_write_size": 1000, "max_read_size": 1000},
    "resource_limits": {"file_size_max": 100_000},
    "allowed_commands": MISSING,
}

Provoke = Callable[[LiveBroker, Client, str], Awaitable[Answer]]


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker(policy=SMALL_FILES) as running:
        yield running


@pytest.fixture(scope="module")
def limited() -> Iterator[LiveBroker]:
    """A broker in which a session ends after 3 s (longer than a busy machine takes between calls); three at most."""
    with running_broker(LIMITED) as running:
        yield running


async def unknown_session(broker: LiveBroker, client: Client, _mine: str) -> Answer:
    return await run(client, "nobody", "true")


async def taken_id(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "create_session", id=mine)


async def missing_working_dir(broker: LiveBroker, client: Client, _mine: str) -> Answer:
    return await call(client, "create_session", working_dir=f"{broker.workspace}/not-there")


async def killed_before(broker: LiveBroker, client: Client, mine: str) -> Answer:
    await ok(client, "kill_session", session_id=mine, force=True)
    return await run(client, mine, "true")


async def unlisted_command(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await run(client, mine, "curl", "example.com")


async def forbidden_path(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "read_file", session_id=mine, path="/etc/passwd")


async def timeout_above_the_limit(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await run(client, mine, "true", timeout_seconds=100_000)


async def unconfirmed(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await run(client, mine, "rm", "x")


async def missing_program(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await run(client, mine, "missing")


async def too_long_argv(broker: LiveBroker, client: Client, mine: str) -> Answer:
    """More than execve(2) takes in all, although every argument is short enough and there are few."""
    return await run(client, mine, "echo", *["x" * 131_000] * 17)


async def timed_out(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await run(client, mine, "sleep", "1000", timeout_seconds=0.2)


async def killed_from_outside(broker: LiveBroker, client: Client, mine: str) -> Answer:
    """Another client finds the running command in the process list and ends it."""
    answers: list[Answer] = []
    async with tree("obeys SIGTERM", broker.workspace) as shaped, trio.open_nursery() as nursery:

        async def run_it() -> None:
            answers.append(await run(client, mine, "sh", "-c", shaped.script))

        nursery.start_soon(run_it)
        await shaped.wait_up()
        async with connect(broker) as other:
            listed = await ok(other, "get_process_list", session_id=mine)
            # A child that has forked and not yet become `sleep` looks the same; the shell is the older one.
            shell = min(each["pid"] for each in listed["processes"] if each["cmdline"].startswith("sh -c"))
            await ok(other, "kill_process", session_id=mine, pid=shell, signal=9)
    return answers[0]


async def missing_file(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "read_file", session_id=mine, path="not-there")


async def a_directory_as_a_file(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "read_file", session_id=mine, path=".")


async def too_large_to_write(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "write_file", session_id=mine, path="f", content="x" * 1001)


async def too_large_to_upload(broker: LiveBroker, client: Client, mine: str) -> Answer:
    chunk = base64.b64encode(b"x" * 100_001).decode()
    return await call(client, "upload_file", session_id=mine, path="f", chunk_data=chunk, is_last=True)


async def changed_underneath(broker: LiveBroker, client: Client, mine: str) -> Answer:
    path = broker.workspace / "changing"
    path.write_bytes(b"a" * 100)
    await ok(client, "download_file", session_id=mine, path="changing", chunk_size=10)
    path.write_bytes(b"b" * 101)
    return await call(client, "download_file", session_id=mine, path="changing", chunk_size=10, offset=10)


async def unknown_transfer(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "upload_file", session_id=mine, path="f", chunk_data="eA==", transfer_id="forged")


async def a_folder_that_went(broker: LiveBroker, client: Client, mine: str) -> Answer:
    """An upload cannot be finished where its folder is gone."""
    folder = broker.workspace / "going"
    folder.mkdir()
    folder.chmod(0o777)
    first = await ok(client, "upload_file", session_id=mine, path="going/f", chunk_data="eA==")
    folder.rmdir()
    return await call(
        client,
        "upload_file",
        session_id=mine,
        path="going/f",
        chunk_data="eA==",
        transfer_id=first["transfer_id"],
        chunk_offset=1,
        is_last=True,
    )


async def a_gap(broker: LiveBroker, client: Client, mine: str) -> Answer:
    first = await ok(client, "upload_file", session_id=mine, path="f", chunk_data="eA==")
    return await call(
        client,
        "upload_file",
        session_id=mine,
        path="f",
        chunk_data="eA==",
        transfer_id=first["transfer_id"],
        chunk_offset=5,
    )


async def no_such_process(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "kill_process", session_id=mine, pid=4_194_304)


async def a_strangers_process(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "kill_process", session_id=mine, pid=broker.process.pid)


async def wrong_types(broker: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "execute_command", session_id=mine, argv="ls", timeout_seconds="1", colour="red")


async def a_taken_name(broker: LiveBroker, client: Client, mine: str) -> Answer:
    await ok(client, "make_directory", session_id=mine, path="taken", parents=True)
    return await call(client, "make_directory", session_id=mine, path="taken")


async def an_edit_of_something_else(broker: LiveBroker, client: Client, mine: str) -> Answer:
    await ok(client, "write_file", session_id=mine, path="edited", content="one two two")
    return await call(client, "edit_file", session_id=mine, path="edited", old_text="two", new_text="three")


async def a_deletion_without_time(broker: LiveBroker, client: Client, mine: str) -> Answer:
    await ok(client, "make_directory", session_id=mine, path="whole/tree", parents=True)
    arguments = {"path": "whole", "recursive": True, "confirm": True, "timeout_seconds": 1e-9}
    return await call(client, "delete_path", session_id=mine, **arguments)


async def unknown_command(_: LiveBroker, client: Client, mine: str) -> Answer:
    return await call(client, "read_output", session_id=mine, command_id="c1")


async def input_of_what_has_ended(_: LiveBroker, client: Client, mine: str) -> Answer:
    ended = await run(client, mine, "true")
    return await call(client, "write_stdin", session_id=mine, command_id=ended["command_id"], data="x")


async def a_transfer_that_is_over(_: LiveBroker, client: Client, mine: str) -> Answer:
    up = await ok(client, "open_transfer", session_id=mine, direction="upload", path="f")
    named = {"session_id": mine, "transfer_id": up["transfer_id"]}
    await ok(client, "cancel_transfer", **named)
    return await call(client, "finish_transfer", **named)


async def a_short_upload(_: LiveBroker, client: Client, mine: str) -> Answer:
    up = await ok(client, "open_transfer", session_id=mine, direction="upload", path="f", size_bytes=9)
    return await call(client, "finish_transfer", session_id=mine, transfer_id=up["transfer_id"])


PROVOCATIONS: dict[Provoke, str] = {
    unknown_command: "CMD_NOT_FOUND",
    input_of_what_has_ended: "CMD_NOT_TAKEN",
    unknown_session: "SESSION_NOT_FOUND",
    taken_id: "SESSION_CREATION_FAILED",
    missing_working_dir: "FILE_NOT_FOUND",
    killed_before: "SESSION_CLOSED",
    unlisted_command: "POLICY_COMMAND_BLOCKED",
    forbidden_path: "POLICY_PATH_VIOLATION",
    timeout_above_the_limit: "POLICY_RESOURCE_EXCEEDED",
    unconfirmed: "POLICY_CONFIRMATION_REQUIRED",
    missing_program: "CMD_EXEC_FAILED",
    too_long_argv: "CMD_EXEC_FAILED",
    timed_out: "CMD_TIMEOUT",
    killed_from_outside: "CMD_KILLED",
    missing_file: "FILE_NOT_FOUND",
    a_directory_as_a_file: "FILE_ACCESS_DENIED",
    too_large_to_write: "FILE_TOO_LARGE",
    too_large_to_upload: "FILE_TOO_LARGE",
    changed_underneath: "FILE_CHANGED",
    a_taken_name: "FILE_EXISTS",
    an_edit_of_something_else: "FILE_EDIT_MISMATCH",
    a_deletion_without_time: "FILE_TIMEOUT",
    unknown_transfer: "TRANSFER_NOT_FOUND",
    a_gap: "TRANSFER_OFFSET_MISMATCH",
    a_transfer_that_is_over: "TRANSFER_OVER",
    a_short_upload: "TRANSFER_MISMATCH",
    a_folder_that_went: "FILE_WRITE_ERROR",
    no_such_process: "PROC_NOT_FOUND",
    a_strangers_process: "PROC_ACCESS_DENIED",
    wrong_types: "INVALID_ARGUMENTS",
}
IN_TESTS_OF_THEIR_OWN = {"SESSION_EXPIRED", "SESSION_LIMIT_REACHED", "AUDIT_UNAVAILABLE"} | {
    "TRANSFER_BUSY",  # these in test_live_transfers.py, and in the rows of live_settings_server.py
    "TRANSFER_STALLED",
    "TRANSFER_UNAVAILABLE",
    "CALL_CANCELLED",  # nobody is left to be told: test_live_audit_errors.py
    "FILE_BUSY",  # a lock's bound, in test_order.py
    "FILE_OUTCOME_UNKNOWN",  # test_live_outcomes.py
    "SYSTEM_SHORTAGE",  # test_live_shortage.py
    "SYSTEM_BUSY",  # test_live_bodies.py
}
NOT_FROM_OUTSIDE = {"SYSTEM_INTERNAL_ERROR"}  # a bug of ours; the gateway's own tests make one


def check_shape(answer: Answer, name: str) -> None:
    """One shape for every failure, and a text that says the same."""
    code = ErrorCode[name]
    assert answer.error == (code.code, name), answer.data
    assert answer["success"] is False
    assert answer["retryable"] is code.retryable
    assert len(answer["error_message"]) > 10
    assert answer["error_details"]["what_to_do"]
    assert json.loads(answer.text) == answer.data


@pytest.mark.parametrize("provoke", PROVOCATIONS, ids=lambda provoke: provoke.__name__)
async def test_a_failure_has_its_code_and_the_one_shape(broker: LiveBroker, provoke: Provoke) -> None:
    async with connect(broker) as client:
        mine = await new_session(client, working_dir=str(broker.workspace))
        answer = await provoke(broker, client, mine)
        check_shape(answer, PROVOCATIONS[provoke])
        failures = [record for record in broker.audit("audit-errors.log") if record["event_type"] != "SERVER_START"]
        assert failures[-1]["error_code"] == answer["error_code"]
        assert failures[-1]["error"]


@pytest.mark.long
async def test_a_session_whose_process_is_killed_at_its_birth_may_be_asked_for_again() -> None:
    async def kill_each_that_is_new(pid: int) -> None:
        while True:
            for child in psutil.Process(pid).children():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            await trio.sleep(0.001)

    with running_broker() as other:
        async with connect(other) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill_each_that_is_new, other.process.pid)
                while not (answer := await call(client, "create_session")).is_error:
                    continue  # it had been born before it was killed
                nursery.cancel_scope.cancel()
            assert (*answer.error, answer["retryable"]) == ("SESSION_004", "SESSION_CREATION_FAILED", True), answer.data
            await ok(client, "create_session")


def test_every_code_is_provoked() -> None:
    assert set(PROVOCATIONS.values()) | IN_TESTS_OF_THEIR_OWN | NOT_FROM_OUTSIDE == {code.name for code in ErrorCode}


async def wait_gone(process: psutil.Process) -> None:
    """Return when the process has ended."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


@pytest.mark.long
async def test_an_idle_session_expires_and_says_so(limited: LiveBroker) -> None:
    async with connect(limited) as client:
        before = set(limited.family())
        mine = await new_session(client)
        for process in set(limited.family()) - before - spares(limited):
            await wait_gone(process)
        check_shape(await run(client, mine, "true"), "SESSION_EXPIRED")


def spares(broker: LiveBroker) -> set[psutil.Process]:
    """Processes that belong to no session: children of the broker itself that have at most an idle process 1."""
    idle = {each for each in broker.family() if not each.children()}
    mine = {each for each in broker.family() if each.ppid() == broker.process.pid}
    found = {each for each in mine if set(each.children()) <= idle and len(each.children()) <= 1}
    return found | {child for each in found for child in each.children()}


async def test_one_session_more_than_allowed_is_refused(limited: LiveBroker) -> None:
    async with connect(limited) as client, busy_sessions(limited, client, 3):
        check_shape(await call(client, "create_session"), "SESSION_LIMIT_REACHED")


@asynccontextmanager
async def busy_sessions(broker: LiveBroker, client: Client, count: int) -> AsyncIterator[list[str]]:
    """Sessions that do not expire, because a command runs in each."""
    async with trio.open_nursery() as nursery:
        made = []
        for _session in range(count):
            made.append(await new_session(client, working_dir=str(broker.workspace)))
            up = trio.Event()
            nursery.start_soon(_busy, broker, client, made[-1], up)
            await up.wait()
        yield made
        for session_id in made:
            await ok(client, "kill_session", session_id=session_id, force=True)


async def _busy(broker: LiveBroker, client: Client, session_id: str, up: trio.Event) -> None:
    async with tree("obeys SIGTERM", broker.workspace) as shaped, trio.open_nursery() as nursery:
        nursery.start_soon(partial(run, client, session_id, "sh", "-c", shaped.script))
        await shaped.wait_up()
        up.set()


async def test_one_command_more_than_allowed_is_refused(limited: LiveBroker) -> None:
    async with connect(limited) as client, busy_sessions(limited, client, 1) as (mine,):
        check_shape(await run(client, mine, "true"), "POLICY_RESOURCE_EXCEEDED")


def small_disk(limit_bytes: int, **server: object) -> AbstractAsyncContextManager[LiveBroker]:
    """A broker whose files cannot grow beyond *limit_bytes*, as if its disk were full."""

    @asynccontextmanager
    async def open_it() -> AsyncIterator[LiveBroker]:
        with live_folder() as base:
            write_config(base, server, {"resource_limits": {"file_size_max": limit_bytes}})
            prlimit = ("prlimit", f"--fsize={limit_bytes}:{limit_bytes}", "--", sys.executable)
            with broker_in(base, python=prlimit) as broker:
                yield broker

    return open_it()


async def test_a_file_that_may_not_grow_is_refused_and_left_as_it_was() -> None:
    async with small_disk(MIB) as broker, connect(broker) as client:
        mine = await new_session(client, working_dir=str(broker.workspace))
        (broker.workspace / "f").write_text("as it was")
        (broker.workspace / "f").chmod(0o666)
        check_shape(
            await call(client, "write_file", session_id=mine, path="f", content="x" * 2 * MIB), "FILE_TOO_LARGE"
        )
        assert [path.name for path in broker.workspace.iterdir()] == ["f"]
        assert (broker.workspace / "f").read_text() == "as it was"


@pytest.mark.long
async def test_a_full_disk_is_a_write_error_and_leaves_the_file_as_it_was() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk that is small enough")
    with live_folder() as base:
        write_config(base, policy={"file_limits": {"min_free_bytes": 0}})
        mount = f'mount -t tmpfs -o size=64k,mode=777 none "{base}/ws" && exec "$@"'
        with broker_in(base, python=("unshare", "--mount", "--", "sh", "-c", mount, "sh", sys.executable)) as broker:
            async with connect(broker) as client:
                mine = await new_session(client, working_dir=str(broker.workspace))
                await ok(client, "write_file", session_id=mine, path="f", content="as it was")
                full = await call(client, "write_file", session_id=mine, path="f", content="x" * MIB)
                check_shape(full, "FILE_WRITE_ERROR")
                assert (await ok(client, "read_file", session_id=mine, path="f"))["content"] == "as it was"
                assert (await ok(client, "list_directory", session_id=mine, include_hidden=True))["total_count"] == 1


@pytest.mark.bounded(60)
async def test_what_cannot_be_recorded_does_not_happen() -> None:
    page = resource.getpagesize()
    async with small_disk(16 * page) as broker, connect(broker) as client:
        mine = await new_session(client, working_dir=str(broker.workspace))
        answer = await run(client, mine, "true")
        while not answer.is_error:
            answer = await run(client, mine, "echo", "x" * 1000)
        check_shape(answer, "AUDIT_UNAVAILABLE")
        refused = await call(client, "write_file", session_id=mine, path="f", content="x")
        check_shape(refused, "AUDIT_UNAVAILABLE")
        assert list(broker.workspace.iterdir()) == []
