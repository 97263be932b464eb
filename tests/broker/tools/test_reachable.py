"""Errors and answers that a client gets by asking, each through a whole broker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.broker.tools.test_treetools import Desk, open_desk
from tests.broker.tools.test_treetools_disk import later
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.door import needs_root

POLICY = """
policy:
  allowed_commands:
    cat: {{executable: /bin/cat}}
    sleep: {{executable: /bin/sleep}}
    "true": {{executable: /bin/true, requires_confirmation: true}}
  allowed_paths: ["{work}/**", "/dev/**"]
  blocked_paths: ["**/.ssh/**"]
  file_limits: {{max_write_size: 8192, blocked_extensions: [exe]}}
"""
SERVER = "server: {timeouts: {command_max: 60}, transfers: {max_open: 2}}"


@asynccontextmanager
async def desk_of(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path, policy=POLICY, server=SERVER) as desk:
        yield desk


async def error(desk: Desk, tool: str, **arguments: Any) -> tuple[str, str]:
    answer = await desk.whole.answer(tool, session_id=desk.sid, **arguments)
    assert answer.is_error, answer.structured
    return answer.structured["error_name"], answer.structured["error_message"]


async def test_what_a_command_may_not_do_is_said_before_it_begins(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        name, why = await error(desk, "execute_command", argv=["cat"], timeout_seconds=61)
        assert (name, "timeouts.command_max, 60 s" in why) == ("POLICY_RESOURCE_EXCEEDED", True)
        assert (await error(desk, "execute_command", argv=["true"]))[0] == "POLICY_CONFIRMATION_REQUIRED"
        assert (await desk.ok("execute_command", argv=["true"], confirm=True))["success"]
        assert (await error(desk, "execute_command", argv=["nothing"]))[0] == "POLICY_COMMAND_BLOCKED"
        made = {"working_dir": str(desk.work), "environment": {"LD_PRELOAD": "/tmp/x"}}
        assert await desk.whole.failure("create_session", **made) == "POLICY_COMMAND_BLOCKED"


async def test_processes_are_told_of_the_session_that_is_asked_for_or_of_all(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        begun = await desk.ok("execute_command", argv=["sleep", "50"], background=True)
        (mine,) = [p for p in (await desk.ok("get_process_list"))["processes"] if "sleep" in str(p["cmdline"])]
        everybody = await desk.whole.ok("get_process_list")
        assert [p["cmdline"] for p in everybody["processes"] if p["pid"] == mine["pid"]] == [mine["cmdline"]]
        stranger = await desk.whole.answer("get_process_list", principal="somebody else")
        assert [p.get("cmdline") for p in stranger.structured["processes"] if p["pid"] == mine["pid"]] == [None]
        assert await desk.failure("kill_process", pid=os.getpid()) == "PROC_ACCESS_DENIED"
        assert await desk.failure("kill_process", pid=2**22 - 1) == "PROC_NOT_FOUND"
        await desk.ok("kill_process", pid=mine["pid"], signal=9)
        waited = {"command_id": begun["command_id"], "wait_seconds": 20}
        assert await desk.failure("wait_command", **waited) == "CMD_KILLED"


async def test_a_search_of_both_streams_has_no_cursor(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        ended = await desk.ok("execute_command", argv=["cat"], stdin_input="a line\n", background=True)
        await desk.ok("wait_command", command_id=ended["command_id"], wait_seconds=20)
        asked = {"command_id": ended["command_id"], "pattern": "line", "cursor": 1}
        name, why = await error(desk, "search_output", stream="both", **asked)
        assert (name, "expected 0 with stream both" in why) == ("INVALID_ARGUMENTS", True)
        assert len((await desk.ok("search_output", stream="stdout", **asked))["matches"]) == 1


async def test_an_upload_larger_than_a_file_may_be_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        asked = {"direction": "upload", "path": "f"}
        assert await desk.failure("open_transfer", size_bytes=8193, **asked) == "FILE_TOO_LARGE"
        assert (await desk.ok("open_transfer", size_bytes=8192, **asked))["size_bytes"] == 8192


async def test_transfers_are_as_many_as_are_allowed_and_none_that_is_not_known(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        asked = {"direction": "upload", "path": "f"}
        opened = [await desk.ok("open_transfer", **asked) for _ in range(2)]
        assert await desk.failure("open_transfer", **asked) == "POLICY_RESOURCE_EXCEEDED"
        assert (
            await desk.failure("stat_transfer", transfer_id="x" * len(opened[0]["transfer_id"])) == "TRANSFER_NOT_FOUND"
        )
        await desk.ok("cancel_transfer", transfer_id=opened[0]["transfer_id"])
        await desk.ok("open_transfer", **asked)


async def test_what_is_no_file_is_shown_and_neither_deleted_nor_copied_to(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        os.mkfifo(desk.put("f", b"x").with_name("pipe"))
        (desk.work / "folder").mkdir()
        desk.give()
        listed = (await desk.ok("list_directory", path="."))["entries"]
        assert {entry["name"]: entry["type"] for entry in listed} == {
            "f": "file",
            "pipe": "other",
            "folder": "directory",
        }
        assert await desk.failure("delete_path", path="/dev/null", confirm=True) == "POLICY_PATH_VIOLATION"
        for destination in ("pipe", "folder"):
            asked = {"source": "f", "destination": destination, "overwrite": True}
            assert await desk.failure("copy_path", **asked) == "FILE_EXISTS"
            assert await desk.failure("move_path", **asked) == "FILE_EXISTS"
        assert await desk.failure("copy_path", source="folder", destination="copy") == "FILE_ACCESS_DENIED"
        assert (
            await desk.failure("copy_path", source="folder", destination="folder/in", recursive=True)
            == "INVALID_ARGUMENTS"
        )


async def test_a_file_with_a_closed_name_is_not_read_by_its_other_one(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        secret = desk.put(".ssh/id", b"key")
        os.link(secret, desk.work / "innocent")
        name, why = await error(desk, "read_file", path="innocent")
        assert (name, "has 2 names (hard links) and one of them is blocked" in why) == ("POLICY_PATH_VIOLATION", True)
        os.link(desk.put("one", b"x"), desk.work / "two")
        assert (await desk.ok("read_file", path="two"))["content"] == "x"


@needs_root
async def test_a_pipe_does_not_move_to_another_file_system(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        os.mkfifo(desk.work / "pipe")
        (desk.work / "disk").mkdir()
        desk.give()
        with small_disk(desk.work / "disk"):
            now = await later(desk)
            name, why = await error(now, "move_path", source="pipe", destination="disk/pipe")
            assert "only files and directories move to another file system" in why, name
            assert (desk.work / "pipe").exists()
