"""File tools end to end through the gateway: real walls, real files, real paths decided."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tools.read import MAX_CHARACTER_BYTES, cut_text
from tests.support.whole import Whole, open_whole


@asynccontextmanager
async def session(tmp_path: Path) -> AsyncIterator[tuple[Whole, str]]:
    async with open_whole(tmp_path) as whole:
        made = await whole.ok("create_session", working_dir=str(whole.work))
        yield whole, made["session_id"]


async def test_a_file_is_read_back_in_parts_as_it_was_written(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        text = "one\r\ntwo é三🦊\n" * 20
        await whole.ok("write_file", session_id=sid, path="a.txt", content=text)
        pieces, offset = [], 0
        while offset is not None:
            part = await whole.ok("read_file", session_id=sid, path="a.txt", offset=offset, limit=7)
            pieces.append(part["content"])
            offset = part["next_offset"]
        assert "".join(pieces) == text
        assert (whole.work / "a.txt").read_bytes() == text.encode()


async def test_binary_comes_as_base64_and_says_so(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        (whole.work / "b").write_bytes(b"\0\xff\x01" * 10)
        os.chmod(whole.work / "b", 0o644)
        found = await whole.ok("read_file", session_id=sid, path="b")
        assert found["is_binary"]
        assert base64.b64decode(found["content"]) == b"\0\xff\x01" * 10


async def test_reading_more_than_the_limit_is_cut_and_goes_on(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        (whole.work / "big").write_bytes(b"x" * 5000)
        os.chmod(whole.work / "big", 0o644)
        first = await whole.ok("read_file", session_id=sid, path="big", limit=100_000)
        assert (len(first["content"]), first["truncated"], first["next_offset"]) == (4096, True, 4096)
        last = await whole.ok("read_file", session_id=sid, path="big", offset=4096)
        assert (len(last["content"]), last["truncated"], last["next_offset"]) == (904, False, None)


async def test_writing_more_than_the_limit_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        await whole.ok("write_file", session_id=sid, path="a", content="before")
        assert await whole.failure("write_file", session_id=sid, path="a", content="x" * 8193) == "FILE_TOO_LARGE"
        assert (whole.work / "a").read_text() == "before"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../etc/passwd", ".ssh/id", "deep/.ssh", "secret", "/proc/self/environ", "~/.ssh", "x.exe"],
)
@pytest.mark.parametrize("tool", ["write_file", "upload_file"])
async def test_paths_outside_or_blocked_cannot_be_written(tmp_path: Path, tool: str, path: str) -> None:
    content = {"content": "x"} if tool == "write_file" else {"chunk_data": "eA==", "is_last": True}
    async with session(tmp_path) as (whole, sid):
        assert await whole.failure(tool, session_id=sid, path=path, **content) == "POLICY_PATH_VIOLATION"


@pytest.mark.parametrize("tool", ["read_file", "download_file", "list_directory"])
@pytest.mark.parametrize("path", ["/etc", "..", ".ssh", "link-out", "link-to-blocked", "link-to-proc"])
async def test_paths_outside_or_blocked_cannot_be_read_through_links_either(
    tmp_path: Path, tool: str, path: str
) -> None:
    async with session(tmp_path) as (whole, sid):
        (whole.work / ".ssh").mkdir()
        (whole.work / "link-out").symlink_to("/etc/passwd")
        (whole.work / "link-to-blocked").symlink_to(whole.work / ".ssh")
        (whole.work / "link-to-proc").symlink_to("/proc/self/root/etc")
        name = await whole.failure(tool, session_id=sid, path=path)
        # A magic link is no path that leads to a file: the kernel is told not to follow any.
        assert name == ("INVALID_ARGUMENTS" if path == "link-to-proc" else "POLICY_PATH_VIOLATION")


async def test_a_hard_link_to_a_blocked_file_is_refused_and_an_innocent_one_is_not(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        (whole.work / ".ssh").mkdir()
        (whole.work / ".ssh" / "id").write_text("key")
        os.link(whole.work / ".ssh" / "id", whole.work / "innocent")
        (whole.work / "one").write_text("text")
        os.link(whole.work / "one", whole.work / "two")
        for path in whole.work.rglob("*"):
            path.chmod(0o755)
        assert await whole.failure("read_file", session_id=sid, path="innocent") == "POLICY_PATH_VIOLATION"
        assert (await whole.ok("read_file", session_id=sid, path="two"))["content"] == "text"


async def test_a_hard_link_whose_other_name_is_not_found_is_refused(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        outside = tmp_path / "outside"
        outside.write_text("text")
        outside.chmod(0o644)
        os.link(outside, whole.work / "inside")
        assert await whole.failure("read_file", session_id=sid, path="inside") == "POLICY_PATH_VIOLATION"


async def test_the_brokers_own_configuration_and_logs_are_out_of_reach(tmp_path: Path) -> None:
    policy = 'policy: {{allowed_paths: ["~/**", "/**"]}}'
    async with open_whole(tmp_path, policy) as whole:
        sid = (await whole.ok("create_session"))["session_id"]
        log, base = whole.config.server.logging.audit_log, whole.config.base_dir
        absent = (log.with_name("audit.log.77"), base / "data" / "output" / "x", Path("/etc/remote-broker/policy.yaml"))
        for own in (whole.config.sources[0], log, *absent):
            assert await whole.failure("read_file", session_id=sid, path=str(own)) == "POLICY_PATH_VIOLATION"
            assert (
                await whole.failure("write_file", session_id=sid, path=str(own), content="x") == "POLICY_PATH_VIOLATION"
            )


async def test_a_session_may_not_start_in_a_directory_that_is_blocked_or_leads_out(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        (whole.work / "out").symlink_to("/etc")
        (whole.work / ".ssh").mkdir()
        (whole.work / "file").write_text("x")
        for folder in ("/", "/etc", str(whole.work / ".ssh"), str(whole.work / "out")):
            assert await whole.failure("create_session", working_dir=folder) == "POLICY_PATH_VIOLATION"
        assert await whole.failure("create_session", working_dir=str(whole.work / "none")) == "FILE_NOT_FOUND"
        assert await whole.failure("create_session", working_dir=str(whole.work / "file")) == "FILE_ACCESS_DENIED"


async def test_every_call_has_a_begin_and_an_end_record(tmp_path: Path) -> None:
    async with session(tmp_path) as (whole, sid):
        await whole.ok("write_file", session_id=sid, path="a", content="top secret words")
        await whole.failure("read_file", session_id=sid, path="/etc/shadow")
        begun, ended, refused = whole.records()[-3:]
        assert (begun["event_type"], ended["event_type"]) == ("TOOL_CALLED", "FILE_WRITE")
        assert ended["bytes"] == 16
        assert ended["rule"] == "allowed_paths"
        assert (refused["event_type"], refused["error_code"], refused["rule"]) == (
            "FILE_FAILED",
            "POLICY_002",
            "allowed_paths",
        )
        assert "top secret words" not in whole.config.server.logging.audit_log.read_text()


@given(text=st.text(max_size=40), limit=st.integers(1, 12))
def test_cutting_anywhere_and_joining_gives_the_text(text: str, limit: int) -> None:
    text = text.replace("\0", "")
    data, offset, pieces = text.encode(), 0, []
    while offset < len(data):
        window = data[offset : offset + limit + MAX_CHARACTER_BYTES - 1]
        part = cut_text(window, limit, starts_file=offset == 0, ends_file=offset + len(window) >= len(data))
        assert part is not None
        assert part.used_bytes > 0
        pieces.append(part.text)
        offset += part.used_bytes
    assert "".join(pieces) == text


@given(data=st.binary(max_size=40), limit=st.integers(1, 40), starts=st.booleans())
def test_cutting_bytes_gives_whole_characters_or_says_that_it_is_no_text(
    data: bytes,
    limit: int,
    starts: bool,  # noqa: FBT001
) -> None:
    part = cut_text(data, limit, starts_file=starts, ends_file=True)
    if part is not None:
        assert data[: part.used_bytes].endswith(part.text.encode())
        assert part.used_bytes >= min(limit, len(data))
