"""The customer's document, run: their two files verbatim, their examples, their field names, in both eras."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from mcp.client.client import Client

from tests.support.live import (
    ERAS,
    MODERN,
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
)
from tests.support.live_plain_user import plain_user

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")  # the legacy client's, not ours

CUSTOMER = Path(__file__).parents[1] / "data" / "customer"
LIVED = {"success", "exit_code", "stdout", "stderr", "duration_ms", "pid"}
FIELDS = {
    "create_session": {"session_id", "working_dir", "created_at", "idle_timeout_seconds", "isolation"},
    "kill_session": {"session_id", "processes_ended"},
    "execute_command": LIVED | {"signal", "stdout_truncated", "stderr_truncated", "timed_out"},
    "read_file": {"content", "size_bytes", "mime_type", "is_binary", "truncated", "next_offset"},
    "write_file": {"path", "bytes_written"},
    "list_directory": {"path", "entries", "total_count", "truncated"},
    "download_file": {
        *("transfer_id", "filename", "mime_type", "total_size", "chunk_data", "chunk_offset", "chunk_size"),
        *("is_complete", "sha256"),
    },
    "upload_file": {"transfer_id", "path", "bytes_received", "is_complete", "sha256"},
    "get_system_info": {"hostname", "platform", "cpu", "memory", "disks", "uptime_seconds", "isolation"},
    "get_process_list": {"processes", "total_count", "session_id"},
    "kill_process": {"pid", "signal_sent", "was_running"},
}
PYTHON3 = {"python3": {"executable": "/usr/bin/python3", "requires_confirmation": True}}

in_both_eras = pytest.mark.parametrize("era", ERAS)


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker(policy={"allowed_commands": PYTHON3}) as running:
        yield running


def copy_customer_files(base: Path) -> None:
    for name in ("server.yaml", "policy.yaml"):
        shutil.copy(CUSTOMER / name, base / "config" / name)


async def git_repository(client: Client, session_id: str, folder: Path) -> None:
    """A repository in *folder* that belongs to the user that the session runs as: git insists on that."""
    written = await ok(client, "write_file", session_id=session_id, path=str(folder / "notes"), content="x\n")
    owner = os.stat(written["path"])
    (folder / "notes").unlink()
    await trio.run_process(["git", "init", "-q", "-b", "main", str(folder)])
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


async def try_the_examples(client: Client, workspace: Path) -> None:
    """The first examples of the document, with the customer's own policy."""
    session_id = "my-session"
    await ok(client, "create_session", id=session_id, working_dir=str(workspace))
    await git_repository(client, session_id, workspace)
    status = await run(client, session_id, "git", "status", timeout_seconds=30)
    assert status["success"], status.data
    assert set(status.data) >= LIVED
    assert (status["exit_code"], status["stderr"]) == (0, "")
    assert status["stdout"].startswith("On branch main\n")
    listed = await run(client, session_id, "ls", "-a")
    assert listed["stdout"].split() == [".", "..", ".git"]
    refused = await run(client, session_id, "git", "push")
    assert refused.error == ("POLICY_001", "POLICY_COMMAND_BLOCKED")
    assert (await run(client, session_id, "curl", "example.com")).error[0] == "POLICY_001"
    blocked = await call(client, "read_file", session_id=session_id, path="~/.ssh/id_rsa")
    assert blocked.error == ("POLICY_002", "POLICY_PATH_VIOLATION")
    await ok(client, "kill_session", session_id=session_id)


@in_both_eras
async def test_the_customers_two_files_verbatim_give_a_running_broker(era: str) -> None:
    with live_folder() as base:
        copy_customer_files(base)
        with broker_in(base) as broker:
            async with connect(broker, era) as client:
                await try_the_examples(client, broker.workspace)
            assert (base / "log" / "audit.log").exists()
            assert (base / "log" / "audit-errors.log").exists()


@pytest.mark.long
async def test_the_customers_two_files_verbatim_give_a_plain_user_a_running_broker() -> None:
    with live_folder() as base:
        copy_customer_files(base)
        user = plain_user(base)
        with broker_in(base, python=user.python, environment=user.environment) as broker:
            async with connect(broker) as client:
                await try_the_examples(client, broker.workspace)
            assert (base / "log" / "audit.log").stat().st_uid == base.stat().st_uid


async def test_a_session_starts_in_the_home_of_its_user(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        created = await ok(client, "create_session", environment={"GREETING": "hello"})
        session_id = created["session_id"]
        where = await run(client, session_id, "pwd")
        assert where["stdout"].strip() == created["working_dir"]
        lines = (await run(client, session_id, "env"))["stdout"].splitlines()
        assert f"HOME={created['working_dir']}" in lines
        assert "GREETING=hello" in lines


@in_both_eras
async def test_a_file_is_read_by_its_path_in_the_workspace(broker: LiveBroker, era: str) -> None:
    async with connect(broker, era) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        (broker.workspace / "src").mkdir(exist_ok=True)
        (broker.workspace / "src" / "main.py").write_bytes(b"print('caf\xc3\xa9')\r\n")
        read = await ok(client, "read_file", session_id=session_id, path="src/main.py")
        assert read["content"] == "print('café')\r\n"
        assert (read["size_bytes"], read["is_binary"], read["truncated"], read["next_offset"]) == (
            16,
            False,
            False,
            None,
        )
        assert read["mime_type"].startswith("text/")


@in_both_eras
async def test_a_large_file_comes_down_in_chunks(broker: LiveBroker, era: str) -> None:
    content = os.urandom(2_500_000)
    (broker.workspace / "output.jar").write_bytes(content)
    async with connect(broker, era) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        received, complete, transfers = b"", False, set()
        while not complete:
            chunk = await ok(
                client,
                "download_file",
                session_id=session_id,
                path="output.jar",
                chunk_size=1_048_576,
                offset=len(received),
            )
            assert chunk["chunk_offset"] == len(received)
            assert "chunk_data" not in json.loads(chunk.text), "bulk data is carried once"
            received += base64.b64decode(chunk["chunk_data"], validate=True)
            complete = chunk["is_complete"]
            transfers.add(chunk["transfer_id"])
        assert received == content
        assert chunk["sha256"] == hashlib.sha256(content).hexdigest()
        assert (chunk["filename"], chunk["total_size"], len(transfers)) == ("output.jar", len(content), 1)


@in_both_eras
async def test_a_file_goes_up_in_one_chunk_or_in_several(broker: LiveBroker, era: str) -> None:
    content = os.urandom(300_000)
    async with connect(broker, era) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        whole = await ok(
            client,
            "upload_file",
            session_id=session_id,
            path="new_module.py",
            chunk_data=base64.b64encode(content).decode(),
            chunk_offset=0,
            is_last=True,
        )
        assert (whole["is_complete"], whole["bytes_received"]) == (True, len(content))
        assert whole["sha256"] == hashlib.sha256(content).hexdigest()
        transfer_id = ""
        for offset in range(0, len(content), 100_000):
            part = await ok(
                client,
                "upload_file",
                session_id=session_id,
                path="in_parts.bin",
                chunk_data=base64.b64encode(content[offset : offset + 100_000]).decode(),
                transfer_id=transfer_id,
                chunk_offset=offset,
                is_last=offset == 200_000,
            )
            transfer_id = part["transfer_id"]
            assert part["bytes_received"] == offset + 100_000
        assert part["sha256"] == hashlib.sha256(content).hexdigest()
    assert (broker.workspace / "in_parts.bin").read_bytes() == content
    assert (broker.workspace / "new_module.py").read_bytes() == content
    assert not [path.name for path in broker.workspace.iterdir() if path.name.startswith(".")], "no leftovers"


@in_both_eras
async def test_a_command_behind_the_gate_runs_only_when_confirmed(broker: LiveBroker, era: str) -> None:
    (broker.workspace / "train.py").write_text("print('trained')\n")
    async with connect(broker, era) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        asked = await run(client, session_id, "python3", "train.py")
        assert asked.error == ("POLICY_004", "POLICY_CONFIRMATION_REQUIRED")
        ran = await run(client, session_id, "python3", "train.py", confirm=True)
        assert (ran["success"], ran["stdout"]) == (True, "trained\n"), ran.data


async def test_a_command_that_fails_is_an_answer_and_not_an_error(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client)
        failed = await run(client, session_id, "false")
        assert (failed.is_error, failed["success"], failed["exit_code"]) == (False, False, 1)


@in_both_eras
async def test_every_tool_answers_with_the_documented_fields_in_text_and_structure(
    broker: LiveBroker, era: str
) -> None:
    async with connect(broker, era) as client:
        created = await ok(client, "create_session", working_dir=str(broker.workspace))
        mine = {"session_id": created["session_id"]}
        wrote = await ok(client, "write_file", **mine, path="f", content="text")
        chunk = base64.b64encode(b"text").decode()
        answers = {
            "create_session": created,
            "write_file": wrote,
            "execute_command": await run(client, mine["session_id"], "echo", "hello"),
            "read_file": await ok(client, "read_file", **mine, path="f"),
            "list_directory": await ok(client, "list_directory", **mine),
            "download_file": await ok(client, "download_file", **mine, path="f"),
            "upload_file": await ok(client, "upload_file", **mine, path="g", chunk_data=chunk, is_last=True),
            "get_system_info": await ok(client, "get_system_info"),
            "get_process_list": await ok(client, "get_process_list", **mine),
            "kill_process": await kill_a_sleeper(client, mine["session_id"]),
            "kill_session": await ok(client, "kill_session", **mine),
        }
        for tool, answer in answers.items():
            assert answer["success"] is True, tool
            assert FIELDS[tool] <= set(answer.data), tool
            assert json.loads(answer.text) == {k: v for k, v in answer.data.items() if k != "chunk_data"}, tool


async def kill_a_sleeper(client: Client, session_id: str) -> Answer:
    """kill_process of a background child that a shell left behind."""
    left = await run(client, session_id, "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    return await ok(client, "kill_process", session_id=session_id, pid=int(left["stdout"]))


async def test_the_field_names_of_system_and_processes_are_the_customers(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        info = await ok(client, "get_system_info")
        assert info["cpu"]["usage_percent"] >= 0
        assert info["memory"]["total_bytes"] > 0
        assert {"mount_point", "total_bytes"} <= set(info["disks"][0])
        session_id = await new_session(client)
        await run(client, session_id, "sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
        listed = await ok(client, "get_process_list", session_id=session_id)
        (sleeper,) = [each for each in listed["processes"] if each["name"] == "sleep"]
        assert {"pid", "name", "cmdline", "status", "cpu_percent", "memory_rss"} <= set(sleeper)
        assert sleeper["cmdline"] == "sleep 1000"
        (broker.workspace / "sized").write_bytes(b"12345")
        entries = (await ok(client, "list_directory", session_id=session_id, path=str(broker.workspace)))["entries"]
        (sized,) = [entry for entry in entries if entry["name"] == "sized"]
        assert {"name": "sized", "type": "file", "size_bytes": 5}.items() <= sized.items()


@in_both_eras
async def test_the_eleven_tools_are_announced_with_title_annotations_and_schemas(broker: LiveBroker, era: str) -> None:
    async with connect(broker, era) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(FIELDS) <= set(tools)
    assert list(tools)[: len(FIELDS)] == list(FIELDS)
    for name, fields in FIELDS.items():
        tool = tools[name]
        assert tool.title, name
        assert tool.description, name
        assert tool.annotations is not None, name
        assert tool.input_schema["additionalProperties"] is False, name
        assert tool.output_schema is not None, name
        assert fields <= set(tool.output_schema["properties"]), name
        assert tool.output_schema["required"] == ["success"], name


async def test_the_default_era_of_the_client_is_the_modern_one(broker: LiveBroker) -> None:
    async with connect(broker, "auto") as client:
        assert client.protocol_version == MODERN
