"""A full disk leaves every destination as it was, and the answer has the numbers; another disk takes a move."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.broker.tools.test_treetools import Desk, open_desk
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.door import needs_root

POLICY = """
policy:
  allowed_paths: ["{work}/**"]
  blocked_paths: ["**/.ssh/**"]
  file_limits: {{max_read_size: 1048576, max_write_size: 1048576, min_free_bytes: 0, blocked_extensions: []}}
"""
pytestmark = needs_root


@asynccontextmanager
async def desk_with_disk(tmp_path: Path) -> AsyncIterator[Desk]:
    """`disk` in the working directory is a file system of 64 KiB of its own."""
    async with open_desk(tmp_path, policy=POLICY) as desk:
        (desk.work / "disk").mkdir()
        with small_disk(desk.work / "disk"):
            desk.put("disk/f", b"old content")
            desk.put("large", os.urandom(200_000))
            desk.put("tree/large", os.urandom(200_000))
            yield await later(desk)


async def later(desk: Desk) -> Desk:
    """The same with a session that began now: one with mounts of its own sees what was mounted before."""
    made = await desk.whole.ok("create_session", working_dir=str(desk.work))
    return Desk(desk.whole, made["session_id"])


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("write_file", {"path": "disk/f", "content": "x" * 100_000}),
        ("write_file", {"path": "disk/f", "content": "x" * 100_000, "mode": "append"}),
        ("edit_file", {"path": "disk/f", "old_text": "old", "new_text": "x" * 100_000}),
        ("copy_path", {"source": "large", "destination": "disk/f", "overwrite": True}),
        ("copy_path", {"source": "tree", "destination": "disk/tree", "recursive": True}),
        ("move_path", {"source": "large", "destination": "disk/f", "overwrite": True}),
        ("move_path", {"source": "tree", "destination": "disk/tree"}),
    ],
)
async def test_a_full_disk_is_told_with_numbers_and_changes_nothing(
    tmp_path: Path, tool: str, arguments: Mapping[str, Any]
) -> None:
    async with desk_with_disk(tmp_path) as desk:
        before = desk.tree()
        answer = await desk.whole.answer(tool, session_id=desk.sid, **arguments)
        assert (answer.structured["error_code"], answer.structured["retryable"]) == ("FILE_004", True)
        details = answer.structured["error_details"]
        assert details["needed_bytes"] > details["free_bytes"] > 0
        assert str(details["free_bytes"]) in answer.structured["error_message"]
        assert desk.tree() == before
        assert (desk.work / "disk/f").read_bytes() == b"old content"
        assert desk.whole.records()[-1]["error_code"] == "FILE_004"


async def test_a_move_to_another_disk_is_a_whole_copy_and_then_a_removal(tmp_path: Path) -> None:
    async with desk_with_disk(tmp_path) as desk:
        desk.plant(small__a="1", small__deep__b="2", one="3", s__x="4", s___DOT_ssh__id="key")
        os.utime(desk.work / "small/a", (0, 86_400))
        await desk.ok("move_path", source="small", destination="disk/small")
        await desk.ok("move_path", source="one", destination="disk/one")
        assert await desk.failure("move_path", source="s", destination="disk/s") == "POLICY_PATH_VIOLATION"
        assert await desk.failure("move_path", source="disk", destination="away") == "FILE_ACCESS_DENIED"
        tree = desk.tree()
        assert {"disk/small", "disk/small/a", "disk/small/deep", "disk/small/deep/b", "disk/one"} < tree
        assert not {"small", "one", "disk/s"} & tree
        assert (desk.work / "disk/small/a").stat().st_mtime == 86_400


async def test_a_tree_with_another_file_system_in_it_is_not_deleted(tmp_path: Path) -> None:
    """b12: what is mounted in a tree is somebody else's decision."""
    async with desk_with_disk(tmp_path) as desk:
        desk.plant(keep="x")
        (desk.work / "top").mkdir()
        (desk.work / "top/mounted").mkdir()
        desk.give()
        with small_disk(desk.work / "top/mounted"):
            desk.put("top/mounted/f", b"x")
            now = await later(desk)
            removal = {"path": "top", "recursive": True, "confirm": True}
            assert await now.failure("delete_path", **removal) == "FILE_ACCESS_DENIED"
            assert (desk.work / "top/mounted/f").exists()
            copied = await now.ok("copy_path", source="top", destination="copy", recursive=True)
            assert copied["skipped"] == [{"path": "mounted", "reason": "another file system is mounted there"}]
        await (await later(desk)).ok("delete_path", **removal)
