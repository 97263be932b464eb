"""What a session may write, and what it leaves free: refused beforehand, with numbers, and nothing is half done."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.broker.tools.test_treetools import Desk, open_desk
from tests.broker.tools.test_treetools_disk import later
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.door import needs_root

RESERVE = 32 * 1024  # of a disk of 64 KiB
TOO_MUCH, FITS = 45_000, 9_000
POLICY = """
policy:
  allowed_paths: ["{{work}}/**"]
  file_limits: {{{{max_session_bytes: {quota}, min_free_bytes: {reserve}}}}}
"""


@asynccontextmanager
async def open_quota(tmp_path: Path, quota: int) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path, policy=POLICY.format(quota=quota, reserve=0)) as desk:
        yield desk


@asynccontextmanager
async def open_reserve(tmp_path: Path) -> AsyncIterator[Desk]:
    """`disk` is a file system of 64 KiB, half of which must stay free; the rest lies outside of it."""
    async with open_desk(tmp_path, policy=POLICY.format(quota=1 << 30, reserve=RESERVE)) as desk:
        (desk.work / "disk").mkdir()
        with small_disk(desk.work / "disk"):
            desk.put("disk/f", b"old content")
            for name, size in (("large", TOO_MUCH), ("small", FITS)):
                desk.put(name, os.urandom(size))
                desk.put(f"{name}-tree/f", os.urandom(size))
            yield await later(desk)


def writes(kind: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Every way to put many bytes (large), or a few (small), on the disk."""
    text = "x" * {"large": TOO_MUCH, "small": FITS}[kind]
    chunk = {"chunk_data": base64.b64encode(text.encode()).decode(), "is_last": True}
    return (
        ("write_file", {"path": "disk/f", "content": text}),
        ("write_file", {"path": "disk/f", "content": text, "mode": "append"}),
        ("write_file", {"path": "disk/new", "content": text}),
        ("edit_file", {"path": "disk/f", "old_text": "old", "new_text": text}),
        ("upload_file", {"path": "disk/f", **chunk}),
        ("copy_path", {"source": kind, "destination": "disk/f", "overwrite": True}),
        ("copy_path", {"source": f"{kind}-tree", "destination": "disk/tree", "recursive": True}),
        ("move_path", {"source": kind, "destination": "disk/f", "overwrite": True}),
        ("move_path", {"source": f"{kind}-tree", "destination": "disk/tree"}),
    )


@needs_root
@pytest.mark.parametrize("number", range(len(writes("large"))))
async def test_the_reserve_of_a_disk_is_not_written_to(tmp_path: Path, number: int) -> None:
    (tool, too_much), (_, fits) = writes("large")[number], writes("small")[number]
    async with open_reserve(tmp_path) as desk:
        before = desk.tree()
        answer = await desk.whole.answer(tool, session_id=desk.sid, **too_much)
        assert answer.structured["error_code"] == "FILE_004"
        assert answer.structured["retryable"]
        details = answer.structured["error_details"]
        assert details["needed_bytes"] >= TOO_MUCH
        assert details["reserve_bytes"] == RESERVE
        assert details["needed_bytes"] <= details["free_bytes"] < details["needed_bytes"] + RESERVE
        for name in ("needed_bytes", "free_bytes", "reserve_bytes"):
            assert str(details[name]) in answer.structured["error_message"]
        assert "file_limits.min_free_bytes" in answer.structured["error_message"]
        assert desk.tree() == before
        assert (desk.work / "disk/f").read_bytes() == b"old content"
        await desk.ok(tool, **fits)


@needs_root
async def test_an_upload_waits_for_room_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    async with open_reserve(tmp_path) as desk:
        data = os.urandom(20_000)
        upload = {"path": "disk/f", "chunk_data": base64.b64encode(data[:10_000]).decode()}
        begun = await desk.ok("upload_file", **upload)
        desk.put("disk/other", bytes(16_000))
        rest = {
            "path": "disk/f",
            "chunk_data": base64.b64encode(data[10_000:]).decode(),
            "transfer_id": begun["transfer_id"],
            "chunk_offset": 10_000,
            "is_last": True,
        }
        refused = (await desk.whole.answer("upload_file", session_id=desk.sid, **rest)).structured
        assert refused["error_code"] == "FILE_004"
        assert refused["error_details"]["free_bytes"] - 10_000 < refused["error_details"]["reserve_bytes"]
        assert (desk.work / "disk/f").read_bytes() == b"old content"
        await desk.ok("delete_path", path="disk/other")
        assert (await desk.ok("upload_file", **rest))["is_complete"]
        assert (desk.work / "disk/f").read_bytes() == data


def quota_of(answer: Mapping[str, Any]) -> tuple[str, int, int, int]:
    details = answer["error_details"]
    return answer["error_name"], details["needed_bytes"], details["used_bytes"], details["limit_bytes"]


async def test_a_session_writes_no_more_than_it_may_whichever_tool_writes(tmp_path: Path) -> None:
    async with open_quota(tmp_path, 10_000) as desk:
        desk.put("source", b"s" * 1000)
        desk.plant(tree__a="a" * 600, tree__deep__b="b" * 400)
        await desk.ok("write_file", path="a", content="x" * 1000)
        await desk.ok("write_file", path="a", content="x" * 1000, mode="append")
        await desk.ok("edit_file", path="a", old_text="x" * 2000, new_text="y" * 1000)
        await desk.ok("upload_file", path="u", chunk_data=base64.b64encode(b"u" * 1000).decode(), is_last=True)
        await desk.ok("copy_path", source="source", destination="copied")
        await desk.ok("copy_path", source="tree", destination="tree2", recursive=True)
        for tool, arguments, needed in (
            ("write_file", {"path": "new", "content": "x" * 4001}, 4001),
            ("write_file", {"path": "a", "content": "x" * 4001, "mode": "append"}, 4001),
            ("edit_file", {"path": "a", "old_text": "y" * 1000, "new_text": "z" * 4001}, 4001),
            ("upload_file", {"path": "new", "chunk_data": base64.b64encode(b"u" * 4001).decode()}, 4001),
        ):
            answer = await desk.whole.answer(tool, session_id=desk.sid, **arguments)
            assert quota_of(answer.structured) == ("POLICY_RESOURCE_EXCEEDED", needed, 6000, 10_000), tool
        assert not (desk.work / "new").exists()
        assert (desk.work / "a").read_bytes() == b"y" * 1000
        await desk.ok("write_file", path="new", content="x" * 4000)
        for source in ("source", "tree"):
            answer = await desk.whole.answer(
                "copy_path", session_id=desk.sid, source=source, destination="more", recursive=True
            )
            assert quota_of(answer.structured) == ("POLICY_RESOURCE_EXCEEDED", 1000, 10_000, 10_000)
        await desk.ok("move_path", source="source", destination="moved")
        await desk.ok("delete_path", path="moved")
        assert "more" not in desk.tree()


async def test_what_came_to_nothing_does_not_count_and_a_new_session_begins_anew(tmp_path: Path) -> None:
    async with open_quota(tmp_path, 1000) as desk:
        whole = {"session_id": desk.sid, "path": "u", "chunk_data": base64.b64encode(b"u" * 900).decode()}
        begun = await desk.whole.ok("upload_file", **whole)
        assert await desk.failure("write_file", path="w", content="x" * 101) == "POLICY_RESOURCE_EXCEEDED"
        wrong = {"transfer_id": begun["transfer_id"], "chunk_offset": 950}
        assert await desk.whole.failure("upload_file", **whole, **wrong) == "TRANSFER_OFFSET_MISMATCH"
        (desk.work / "folder").mkdir()
        assert await desk.failure("write_file", path="folder", content="x" * 50) == "FILE_ACCESS_DENIED"
        assert await desk.failure("edit_file", path="none", old_text="a", new_text="b") == "FILE_NOT_FOUND"
        await desk.ok("write_file", path="w", content="x" * 100)
        other = (await desk.whole.ok("create_session", working_dir=str(desk.work)))["session_id"]
        await desk.whole.ok("write_file", session_id=other, path="w", content="x" * 1000)


async def test_an_upload_that_ends_with_its_session_is_in_the_audit_with_it(tmp_path: Path) -> None:
    async with open_quota(tmp_path, 1000) as desk:
        begun = await desk.ok("upload_file", path="u", chunk_data="eA==")
        await desk.ok("kill_session")
        (discarded,) = [r for r in desk.whole.records() if r["event_type"] == "UPLOAD_DISCARDED"]
        assert (discarded["session_id"], discarded["details"]["transfer_id"]) == (desk.sid, begun["transfer_id"])
        assert discarded["details"]["why"] == "its session ended"
        assert not (desk.work / "u").exists()
