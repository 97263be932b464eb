"""A folder swapped for a link while a tool works: what was decided on is what is touched.

The control is the same attack against realpath-then-act, which must win (`test_sandbox_files_race.py`).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from broker.calls import Answer
from tests.broker.tools.test_treetools import Desk, open_desk
from tests.hostile.test_tree_attacks import paths_of_all_tools
from tests.sandbox.files.test_sandbox_files_race import SWAPPER, wins

MARKER = "TOP-SECRET-MARKER"
ROUNDS = 150
BIRTHS = 30

RACERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "read_file": ("read_file", {"path": "door/file"}),
    "write_file": ("write_file", {"path": "door/file", "content": "in"}),
    "write_file append": ("write_file", {"path": "door/file", "content": "in", "mode": "append"}),
    "download_file": ("download_file", {"path": "door/file"}),
    "upload_file": ("upload_file", {"path": "door/file", "chunk_data": "aW4=", "is_last": True}),
    "open_transfer to download": ("open_transfer", {"path": "door/file", "direction": "download"}),
    "open_transfer to upload": ("open_transfer", {"path": "door/file", "direction": "upload"}),
    "open_transfer to pack": ("open_transfer", {"path": "door", "direction": "download", "archive": "tar"}),
    "open_transfer to unpack": ("open_transfer", {"path": "door/new", "direction": "upload", "archive": "tar"}),
    "create_session": ("create_session", {"working_dir": "door"}),
    "edit_file": ("edit_file", {"path": "door/file", "old_text": "i", "new_text": "i!"}),
    "search_files": ("search_files", {"path": "door", "pattern": "."}),
    "search_files above": ("search_files", {"path": ".", "pattern": "."}),
    "find_files": ("find_files", {"path": "door", "pattern": "*"}),
    "list_directory": ("list_directory", {"path": "door"}),
    "list_directory in depth": ("list_directory", {"path": ".", "depth": 5}),
    "stat_path with checksum": ("stat_path", {"path": "door/file", "checksum": True}),
    "make_directory": ("make_directory", {"path": "door/made", "parents": True}),
    "copy_path from": ("copy_path", {"source": "door/file", "destination": "copy", "overwrite": True}),
    "copy_path of a tree": ("copy_path", {"source": "door", "destination": "copy", "recursive": True}),
    "copy_path to": ("copy_path", {"source": "mine", "destination": "door/file", "overwrite": True}),
    "move_path to": ("move_path", {"source": "mine", "destination": "door/moved", "overwrite": True}),
    "move_path from": ("move_path", {"source": "door/file", "destination": "moved"}),
    "delete_path": ("delete_path", {"path": "door/file"}),
    "delete_path of a tree": ("delete_path", {"path": "door", "recursive": True, "confirm": True}),
}


def lay(outside: Path) -> None:
    outside.mkdir(exist_ok=True)
    outside.chmod(0o777)
    (outside / "file").write_text(MARKER)
    (outside / "file").chmod(0o666)


def restore(desk: Desk) -> None:
    """Whichever of the two names is the folder now has its file again, and the source of the moves is there."""
    for place in ("door", "other"):
        folder = desk.work / place
        try:
            if not folder.is_symlink() and folder.is_dir():
                (folder / "file").write_text("inside")
        except OSError:
            continue  # swapped under our feet: the next round will do
    (desk.work / "mine").write_text("mine")
    for left in ("copy", "moved"):
        path = desk.work / left
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("title", RACERS)
@pytest.mark.bounded(120)
async def test_a_swapped_folder_leads_no_tool_outside(tmp_path: Path, title: str) -> None:
    tool, arguments = RACERS[title]
    async with open_desk(tmp_path) as desk:
        outside = tmp_path / "outside"
        lay(outside)
        (desk.work / "door").mkdir()
        (desk.work / "other").symlink_to(outside)
        desk.give()
        command = [sys.executable, "-I", "-S", "-c", SWAPPER, str(desk.work / "door"), str(desk.work / "other")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as swapper:
            assert swapper.stdout
            swapper.stdout.readline()
            try:
                assert wins(lambda: (desk.work / "door/file").read_text() == MARKER)  # the swap is under way
                for _ in range(BIRTHS if tool == "create_session" else ROUNDS):
                    restore(desk)
                    (outside / "file").write_text(MARKER)
                    desk.give()
                    answer = await ask(desk, tool, arguments)
                    assert MARKER not in json.dumps(answer.structured)
                    assert [path.name for path in outside.iterdir()] == ["file"]
                    assert (outside / "file").read_text() == MARKER
                    for made in ("copy", "moved"):
                        assert MARKER not in text_of(desk.work / made)
            finally:
                swapper.kill()


async def ask(desk: Desk, tool: str, arguments: Mapping[str, Any]) -> Answer:
    """What the tool answers; a session or a transfer that it opens must be where it is allowed, and ends at once."""
    if tool == "open_transfer":
        answer = await desk.whole.answer(tool, session_id=desk.sid, **arguments)
        if not answer.is_error:
            assert answer.structured["path"].startswith(str(desk.work))
            await desk.ok("cancel_transfer", transfer_id=answer.structured["transfer_id"])
        return answer
    if tool != "create_session":
        return await desk.whole.answer(tool, session_id=desk.sid, **arguments)
    answer = await desk.whole.answer(tool, working_dir=str(desk.work / "door"))
    if not answer.is_error:
        assert answer.structured["working_dir"].startswith(str(desk.work))
        await desk.whole.ok("kill_session", session_id=answer.structured["session_id"], force=True)
    return answer


def test_every_path_of_every_tool_is_raced() -> None:
    raced = {(tool, name) for tool, given in RACERS.values() for name, at in given.items() if "door" in str(at)}
    assert raced == paths_of_all_tools()


def text_of(path: Path) -> str:
    """All the text of a file, or of the files of a tree; links are not followed."""
    if path.is_symlink():
        return ""
    if path.is_file():
        return path.read_text()
    return "".join(text_of(below) for below in path.iterdir()) if path.is_dir() else ""
