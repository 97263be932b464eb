"""The tools for editing, searching and arranging files as a client has them: over HTTP, in both eras.

The SDK's client validates every result against the tool's output schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client.client import Client

from tests.support.live import (
    ERAS,
    MODERN,
    LiveBroker,
    broker_in,
    call,
    connect,
    live_folder,
    new_session,
    ok,
    running_broker,
    write_config,
)
from tests.support.live_plain_user import plain_user

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.long,
    pytest.mark.once,
]


EVENTS = {
    *("FILE_EDIT", "FILE_SEARCH", "FILE_FIND", "FILE_STAT", "FILE_MAKE_DIRECTORY", "FILE_MOVE", "FILE_COPY"),
    *("FILE_DELETE", "FILE_READ", "FILE_WRITE", "FILE_LIST"),
}


@pytest.fixture(scope="module")
def broker() -> Iterator[LiveBroker]:
    with running_broker() as running:
        yield running


async def everything(client: Client, folder: str) -> None:
    """One story with each tool in it."""
    session_id = await new_session(client, working_dir=folder)

    async def do(tool: str, **arguments: Any) -> Any:
        return await ok(client, tool, session_id=session_id, **arguments)

    assert (await do("make_directory", path="src/deep", parents=True))["created"]
    await do("write_file", path="src/deep/a.py", content="import os\n\n\ndef main():\n    pass\n")
    told = await do("stat_path", path="src/deep/a.py", checksum=True)
    edit = {"old_text": "    pass", "new_text": "    os.abort()", "expected_sha256": told["sha256"]}
    assert "+    os.abort()" in (await do("edit_file", path="src/deep/a.py", **edit))["diff"]
    refused = await call(client, "edit_file", session_id=session_id, path="src/deep/a.py", **edit)
    assert refused.error == ("FILE_005", "FILE_CHANGED")
    (match,) = (await do("search_files", pattern=r"def (\w+)", include=["*.py"], context_lines=1))["matches"]
    assert (match["path"], match["line"], match["after"]) == ("src/deep/a.py", 4, ["    os.abort()"])
    assert (await do("read_file", path=match["path"], start_line=4, line_count=1))["content"] == "def main():\n"
    await do("copy_path", source="src", destination="copy", recursive=True)
    await do("move_path", source="copy/deep/a.py", destination="copy/b.py")
    found = await do("find_files", pattern="*.py")
    assert [entry["path"] for entry in found["entries"]] == ["copy/b.py", "src/deep/a.py"]
    listed = await do("list_directory", depth=3)
    assert [entry["name"] for entry in listed["entries"]] == [
        "copy",
        "copy/b.py",
        "copy/deep",
        "src",
        "src/deep",
        "src/deep/a.py",
    ]
    asked = await call(client, "delete_path", session_id=session_id, path="src", recursive=True)
    assert asked.error == ("POLICY_004", "POLICY_CONFIRMATION_REQUIRED")
    for path in ("src", "copy"):
        await do("delete_path", path=path, recursive=True, confirm=True)
    assert (await do("list_directory"))["entries"] == []


@pytest.mark.parametrize("era", ERAS)
async def test_every_tool_works_over_http(broker: LiveBroker, era: str) -> None:
    async with connect(broker, era) as client:
        await everything(client, str(broker.workspace))
    kinds = {record["event_type"] for record in broker.audit()}
    assert kinds >= EVENTS


@pytest.mark.bounded(90)  # a broker that may write no bytecode starts slowly
async def test_every_tool_works_for_a_broker_of_a_plain_user() -> None:
    with live_folder() as base:
        write_config(base)
        user = plain_user(base)
        with broker_in(base, python=user.python, environment=user.environment) as broker:
            async with connect(broker, MODERN) as client:
                await everything(client, str(broker.workspace))
                await everything_closed(client, broker.workspace)


async def everything_closed(client: Client, folder: Path) -> None:
    """What the policy closes is closed for a plain user too, whose broker could read it all."""
    session_id = await new_session(client, working_dir=str(folder))
    await ok(client, "make_directory", session_id=session_id, path="d/e", parents=True)
    (folder / "d/e/.ssh").mkdir(mode=0o777)
    (folder / "d/e/.ssh/id").write_text("MARKER")
    (folder / "d/e/.ssh/id").chmod(0o644)
    searched = await ok(client, "search_files", session_id=session_id, pattern=".", include_hidden=True)
    assert (searched["matches"], searched["skipped_closed"]) == ([], 1)
    for tool, arguments in (
        ("delete_path", {"path": "d", "recursive": True, "confirm": True}),
        ("move_path", {"source": "d", "destination": "elsewhere"}),
        ("copy_path", {"source": "d/e/.ssh/id", "destination": "id"}),
        ("stat_path", {"path": "d/e/.ssh"}),
        ("make_directory", {"path": ".ssh"}),
        ("find_files", {"path": "d/e/.ssh", "pattern": "*"}),
        ("edit_file", {"path": "d/e/.ssh/id", "old_text": "M", "new_text": "N"}),
    ):
        refused = await call(client, tool, session_id=session_id, **arguments)
        assert refused.error == ("POLICY_002", "POLICY_PATH_VIOLATION"), tool
    assert (folder / "d/e/.ssh/id").read_text() == "MARKER"


async def test_a_search_that_never_ends_holds_up_nobody(broker: LiveBroker) -> None:
    async with connect(broker) as client:
        session_id = await new_session(client, working_dir=str(broker.workspace))
        await ok(client, "write_file", session_id=session_id, path="evil", content="a" * 100 + "b")
        stuck = await ok(client, "search_files", session_id=session_id, pattern="^(a+)+$", timeout_seconds=1)
        assert (stuck["stopped_by"], stuck["truncated"]) == ("time", True)
        assert (await ok(client, "kill_session", session_id=session_id))["success"]
