"""A guarded path through the tools: read, listed, searched, copied from; never changed, and never lost with a tree."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path

import pytest

from broker.decisions import Denied
from sandbox.files.errors import HoldsClosedPaths
from tests.broker.tools.test_archives import packed, unpacked
from tests.broker.tools.test_treetools import Desk, open_desk
from tests.support.tarbytes import archive_of

POLICY = """
policy:
  allowed_paths: ["~/**", "{work}/**"]
  blocked_paths:
    - {{path: "**/.git/config", close: writing, why: git runs what it names}}
    - {{path: "**/.vscode/**", close: writing, why: an editor runs what it names}}
"""
CONFIG = "repo/.git/config"
TASKS = "repo/.vscode/tasks.json"
BEFORE = {"repo", "repo/a", "repo/.git", CONFIG, "repo/.git/HEAD", "repo/.vscode", TASKS, "plain", "free"}


def lay(desk: Desk) -> None:
    desk.plant(repo__a="a", repo___DOT_git__config="C", repo___DOT_git__HEAD="H", plain="P")
    desk.put(TASKS, b"T")
    (desk.work / "free").mkdir()
    desk.give()


async def test_what_is_guarded_is_read_in_every_way(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        lay(desk)
        assert (await desk.ok("read_file", path=CONFIG))["content"] == "C"
        assert (await desk.ok("list_directory", path="repo/.vscode"))["total_count"] == 1
        found = await desk.ok("search_files", path="repo", pattern="[CT]", include_hidden=True)
        assert [match["path"] for match in found["matches"]] == [CONFIG, TASKS]
        await desk.ok("stat_path", path=TASKS)
        await desk.ok("copy_path", source=CONFIG, destination="config.bak")
        data, _ = await packed(desk, desk.work / "repo")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert {".git/config", ".vscode/tasks.json"} <= {*archive.getnames()}
        begun = await desk.whole.ok("create_session", working_dir=str(desk.work / "repo/.vscode"))
        assert begun["working_dir"].endswith("/repo/.vscode")


@pytest.mark.parametrize("place", [CONFIG, TASKS, "repo/.vscode/new", "new/.vscode"])
async def test_what_is_guarded_is_changed_in_no_way(tmp_path: Path, place: str) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        lay(desk)
        (desk.work / "new").mkdir()
        (desk.work / "to-it").symlink_to(Path(place).parent.name if place.startswith("new") else Path(place).parent)
        desk.give()
        before = desk.tree()
        chunk = base64.b64encode(b"evil").decode()
        attempts = [
            ("write_file", {"content": "evil"}),
            ("write_file", {"content": "evil", "mode": "append"}),
            ("upload_file", {"chunk_data": chunk, "is_last": True}),
            ("edit_file", {"old_text": "C", "new_text": "evil"}),
            ("make_directory", {}),
            ("delete_path", {}),
            ("delete_path", {"recursive": True, "confirm": True}),
        ]
        through = str(Path("to-it") / Path(place).name)
        for path in (place, through) if not place.startswith("new") else (place,):
            for tool, arguments in attempts:
                assert await desk.failure(tool, path=path, **arguments) == "POLICY_PATH_VIOLATION", (tool, path)
            for tool in ("move_path", "copy_path"):
                for source in ("plain", "free"):
                    arguments = {"source": source, "destination": path, "overwrite": True}
                    arguments |= {"recursive": True} if tool == "copy_path" else {}
                    assert await desk.failure(tool, **arguments) == "POLICY_PATH_VIOLATION", (tool, path)
            assert await desk.failure("move_path", source=path, destination="mine") == "POLICY_PATH_VIOLATION"
        assert desk.tree() == before
        assert ((desk.work / CONFIG).read_text(), (desk.work / TASKS).read_text()) == ("C", "T")
        assert "runs what it names" in await desk.message("write_file", path=place, content="evil")


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("delete_path", {"path": "repo", "recursive": True, "confirm": True}),
        ("delete_path", {"path": "repo/.git", "recursive": True, "confirm": True}),
        ("move_path", {"source": "repo", "destination": "moved"}),
        ("move_path", {"source": "repo/.git", "destination": "repo/.other"}),
    ],
)
async def test_a_tree_with_a_guarded_path_is_neither_moved_nor_deleted(
    tmp_path: Path, tool: str, arguments: dict[str, object]
) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        lay(desk)
        assert await desk.failure(tool, **arguments) == "POLICY_PATH_VIOLATION"
        assert desk.tree() == BEFORE
        for guarded in (CONFIG, "repo/.vscode"):
            (desk.work / guarded).rename(desk.work.parent / f"away-{Path(guarded).name}")
        await desk.ok(tool, **arguments)  # the control


async def test_a_tree_does_not_become_one_by_moving_copying_or_unpacking(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        desk.plant(evil__config="E", evil__HEAD="H", repo__a="a")
        assert await desk.failure("move_path", source="evil", destination="repo/.git") == "POLICY_PATH_VIOLATION"
        done = await desk.ok("copy_path", source="evil", destination="repo/.git", recursive=True)
        assert [skipped["path"] for skipped in done["skipped"]] == ["config"]
        assert desk.tree() == {"evil", "evil/config", "evil/HEAD", "repo", "repo/a", "repo/.git", "repo/.git/HEAD"}
        for name in (".git/config", "deep/.vscode/tasks.json", ".vscode"):
            with pytest.raises(HoldsClosedPaths):
                await unpacked(desk, desk.work / "b", archive_of({"f": b"1", name: b"E"}))
            assert not (desk.work / "b").exists()
        with pytest.raises(Denied):
            await unpacked(desk, desk.work / "repo/.vscode", archive_of({"f": b"1"}))
        await unpacked(desk, desk.work / "b", archive_of({"f": b"1", "git/config": b"E"}))  # the control
