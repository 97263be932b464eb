"""Every way around a path check, against every file tool: none reads, changes or moves what is closed.

Each attack names a path that really leads there (the control: this test, who may, reaches the marker by it), and
each tool is shown to work on an innocent path of the same kind. After every call the closed files are as they were,
and nothing of their content is in the answer, whatever the answer says.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from broker.calls import Answer
from broker.contract.fields import MAX_PATH_BYTES
from broker.contract.table import TOOLS as TOOLS_OF_THE_BROKER
from tests.broker.tools.test_treetools import Desk, open_desk
from tests.support.whole import POLICY, open_whole

MARKER = "TOP-SECRET-MARKER"
Arguments = Mapping[str, Any]


def of_path(**more: object) -> Callable[[str], Arguments]:
    return lambda path: {"path": path, **more}


TOOLS: Mapping[str, tuple[str, Callable[[str], Arguments]]] = {
    "read_file": ("read_file", of_path()),
    "write_file": ("write_file", of_path(content="x")),
    "write_file append": ("write_file", of_path(content="x", mode="append")),
    "list_directory": ("list_directory", of_path(include_hidden=True)),
    "list_directory in depth": ("list_directory", of_path(include_hidden=True, depth=9)),
    "download_file": ("download_file", of_path()),
    "upload_file": ("upload_file", of_path(chunk_data="eA==", is_last=True)),
    "edit_file": ("edit_file", of_path(old_text="M", new_text="x")),
    "search_files": ("search_files", of_path(pattern=".", include_hidden=True)),
    "find_files": ("find_files", of_path(pattern="*", include_hidden=True)),
    "stat_path": ("stat_path", of_path()),
    "stat_path of a link": ("stat_path", of_path(follow_symlinks=False)),
    "stat_path with checksum": ("stat_path", of_path(checksum=True)),
    "make_directory": ("make_directory", lambda path: {"path": f"{path}/new"}),
    "make_directory with parents": ("make_directory", lambda path: {"path": f"{path}/new/er", "parents": True}),
    "move_path from": ("move_path", lambda path: {"source": path, "destination": "taken-away"}),
    "move_path to": ("move_path", lambda path: {"source": "mine", "destination": path, "overwrite": True}),
    "copy_path from": ("copy_path", lambda path: {"source": path, "destination": "copied"}),
    "copy_path of a tree": ("copy_path", lambda path: {"source": path, "destination": "copied", "recursive": True}),
    "copy_path to": ("copy_path", lambda path: {"source": "mine", "destination": path, "overwrite": True}),
    "delete_path": ("delete_path", of_path()),
    "delete_path of a tree": ("delete_path", of_path(recursive=True, confirm=True)),
    "open_transfer to download": ("open_transfer", of_path(direction="download")),
    "open_transfer to upload": ("open_transfer", of_path(direction="upload")),
    "open_transfer to pack": ("open_transfer", of_path(direction="download", archive="tar")),
    "open_transfer to unpack": ("open_transfer", of_path(direction="upload", archive="tar")),
    "create_session": ("create_session", lambda path: {"working_dir": path}),
}
"""Every way a tool takes a path; `test_no_path_of_any_tool_is_forgotten` finds one that is missing."""
ON_THE_NAME = {"stat_path of a link", "move_path from", "delete_path", "delete_path of a tree"}
"""They are about the last name itself: a link there is theirs to see, move or delete, and nothing beyond it is."""
NAMES_ONLY = {"move_path from", "delete_path", "delete_path of a tree", "stat_path", "stat_path of a link"}
"""They touch no content, so that another name (hard link) of a file is no way to it."""


LOOKING = {"stat_path", "stat_path of a link"}


@attrs.frozen
class Attack:
    """A path; `is_link`: its last name is a link. `reaches`: this test gets to what is closed by it.

    `is_lexical`: to the broker it is a plain path beneath the working directory, where something may be made.
    """

    path: str
    is_link: bool = False
    is_hard_link: bool = False
    is_lexical: bool = False
    reaches: bool = True


ATTACKS: Mapping[str, Attack] = {
    "b1 a link to a folder outside": Attack("to-outside/key"),
    "b1 a link to a file outside": Attack("to-key", is_link=True),
    "b1 a link over a link": Attack("to-to-outside/key"),
    "b2 a dangling link to the outside": Attack("to-new", is_link=True, reaches=False),
    "b3 a sibling with the same beginning": Attack("{work}-evil/key"),
    "b4 dots": Attack("../outside/key"),
    "b4 dots behind a folder": Attack("open/../../outside/key"),
    "b4 doubled slashes": Attack("//{outside}//key"),
    "b4 a link and dots": Attack("to-outside/../outside/key", is_lexical=True),
    "b4 an encoded dot": Attack("%2e%2e/outside/key", is_lexical=True, reaches=False),
    "b4 an escaped dot": Attack("\\x2e\\x2e/outside/key", is_lexical=True, reaches=False),
    "b4 a trailing slash": Attack("to-outside/", is_link=True, reaches=False),
    "b5 a NUL": Attack("open\0/../../outside/key", reaches=False),
    "b6 a magic link to the root": Attack("/proc/self/root/{outside}/key"),
    "b6 a magic link to the directory": Attack("/proc/self/cwd/../outside/key", reaches=False),
    "b6 a descriptor": Attack("/dev/fd/0", reaches=False),
    "b7 a hard link to a closed file": Attack("innocent", is_hard_link=True),
    "b8 the closed folder itself": Attack(".ssh", reaches=False),
    "b8 in the closed folder": Attack(".ssh/id"),
    "b8 a closed file by its name": Attack("open/secret"),
    "b8 a link to the closed folder": Attack("to-ssh/id"),
    "b10 a kernel file": Attack("/proc/self/environ", reaches=False),
    "b10 a kernel setting": Attack("/sys/kernel/uevent_seqnum", reaches=False),
    "outside": Attack("/{outside}/key"),
    "the configuration": Attack("../config/policy.yaml", reaches=False),
}


class Ground:
    """A working directory full of traps, and what lies around it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.work = desk.work
        self.outside = desk.work.parent / "outside"
        self.evil = desk.work.parent / f"{desk.work.name}-evil"

    def lay(self) -> None:
        """Everything in its place; what a call may have taken away is there again."""
        for folder in (self.outside, self.evil, self.work / ".ssh", self.work / "open"):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        for closed in (self.outside / "key", self.evil / "key", self.work / ".ssh/id", self.work / "open/secret"):
            closed.write_text(MARKER)
            closed.chmod(0o666)
        (self.work / "mine").write_text("mine")
        for link, target in LINKS.items():
            self._drop(link)
            (self.work / link).symlink_to(target.format(outside=self.outside))
        self._drop("innocent")
        os.link(self.work / ".ssh/id", self.work / "innocent")
        self.desk.give()
        for gone in ("taken-away", "copied"):
            self._drop(gone)

    def _drop(self, name: str) -> None:
        path = self.work / name
        if path.is_dir() and not path.is_symlink():
            path.rename(self.work.parent / f"dropped-{name}-{os.urandom(4).hex()}")
        else:
            path.unlink(missing_ok=True)

    def closed(self) -> dict[str, object]:
        """All that is closed, as it is now."""
        found: dict[str, object] = {}
        for top in (self.outside, self.evil, self.work / ".ssh", self.work / "open"):
            for path in sorted(top.rglob("*")):
                if path.name != "mine":
                    found[str(path)] = (path.lstat().st_ino, path.read_text() if path.is_file() else "")
        return found

    def at(self, attack: Attack) -> str:
        return attack.path.replace("{work}", str(self.work)).replace("{outside}", str(self.outside).lstrip("/"))


LINKS = {
    "to-outside": "{outside}",
    "to-to-outside": "to-outside",
    "to-key": "{outside}/key",
    "to-new": "{outside}/new",
    "to-ssh": ".ssh",
}


def harmless(tool: str, attack: Attack) -> bool:
    """Whether the tool may do its work there, which then touches nothing that is closed."""
    return (
        (tool in ON_THE_NAME and attack.is_link)
        or (tool in NAMES_ONLY and attack.is_hard_link)
        or (tool == "make_directory with parents" and attack.is_lexical)
    )


async def ask(desk: Desk, tool: str, path: str) -> Answer:
    """What the tool answers; a session or a transfer that it opens ends at once."""
    name, arguments = TOOLS[tool]
    if name != "create_session":
        answer = await desk.whole.answer(name, session_id=desk.sid, **arguments(path))
        if name == "open_transfer" and not answer.is_error:
            await desk.ok("cancel_transfer", transfer_id=answer.structured["transfer_id"])
        return answer
    answer = await desk.whole.answer(name, **arguments(posixpath.join(desk.work, path)))
    if not answer.is_error:
        await desk.whole.ok("kill_session", session_id=answer.structured["session_id"], force=True)
    return answer


def path_arguments(schema: Mapping[str, Any]) -> set[str]:
    """The arguments that are paths, by their length in the schema; a part of an `anyOf` counts as well."""
    return {
        name
        for name, argument in schema["properties"].items()
        for part in (argument, *argument.get("anyOf", ()))
        if part.get("maxLength") == MAX_PATH_BYTES
    }


def paths_of_all_tools() -> set[tuple[str, str]]:
    return {(tool.name, name) for tool in TOOLS_OF_THE_BROKER.values() for name in path_arguments(tool.input_schema)}


def attacked(arguments: Arguments) -> set[str]:
    return {name for name, value in arguments.items() if "path/to" in str(value)}


def test_no_path_of_any_tool_is_forgotten() -> None:
    there = paths_of_all_tools()
    assert ("copy_path", "destination") in there
    assert there == {(name, given) for name, arguments in TOOLS.values() for given in attacked(arguments("path/to"))}


@pytest.mark.long
@pytest.mark.once
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.bounded(120)
async def test_no_attack_gets_through(tmp_path: Path, tool: str) -> None:
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        for title, attack in ATTACKS.items():
            ground.lay()
            path, before = ground.at(attack), ground.closed()
            if attack.reaches:  # the control
                assert (ground.work / path).read_text() == MARKER, title
            answer = await ask(desk, tool, path)
            assert ground.closed() == before, title
            assert MARKER not in json.dumps(answer.structured), title
            if not harmless(tool, attack):
                assert answer.is_error, title
                assert answer.structured["error_name"] != "SYSTEM_INTERNAL_ERROR", title
            for made in ("taken-away", "copied"):
                left = ground.work / made
                assert left.is_symlink() or not left.is_file() or attack.is_hard_link, title


INNOCENT: Mapping[str, str] = {
    "list_directory": "plain",
    "list_directory in depth": "plain",
    "find_files": "plain",
    "make_directory": "plain",
    "make_directory with parents": "plain",
    "copy_path of a tree": "plain",
    "delete_path of a tree": "plain",
    "open_transfer to pack": "plain",
    "open_transfer to unpack": "new",
    "create_session": "plain",
}


@pytest.mark.parametrize("tool", TOOLS)
async def test_every_tool_works_where_nothing_is_closed(tmp_path: Path, tool: str) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(plain__f="M", file="M", mine="mine")
        answer = await ask(desk, tool, INNOCENT.get(tool, "file"))
        assert not answer.is_error, answer.structured


SPECIAL = ("fifo", "socket", "device")


@pytest.mark.parametrize("tool", TOOLS)
async def test_what_is_no_file_blocks_nobody_and_is_not_read(tmp_path: Path, tool: str) -> None:
    """b9: a FIFO or socket has content for somebody else; its name may be looked at, moved and deleted.

    A device is the kernel's, and stays where it is.
    """
    async with open_desk(tmp_path) as desk:
        for special in SPECIAL:
            os.mkfifo(desk.work / "fifo")
            # In there, because a socket's path has at most 107 bytes.
            with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(desk.work):
                listener.bind("socket")
            if os.geteuid() == 0:
                os.mknod(desk.work / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero
            desk.plant(mine="mine")
            answer = await ask(desk, tool, special)
            assert answer.is_error or tool in (LOOKING if special == "device" else NAMES_ONLY), special
            for path in desk.work.iterdir():
                if not path.is_dir():
                    path.unlink()


# --- what is closed inside of a tree


def trap(ground: Ground) -> Path:
    """A tree with an open file and every kind of closed thing in it, at several depths."""
    tree = ground.work / "tree"
    (tree / "deep/er/.ssh").mkdir(parents=True)
    (tree / "open.txt").write_text("open")
    (tree / "deep/open.txt").write_text("open")
    (tree / "deep/er/.ssh/id").write_text(MARKER)
    (tree / "deep/secret").write_text(MARKER)
    os.link(ground.work / ".ssh/id", tree / "deep/innocent")
    (tree / "out").symlink_to(ground.outside)
    (tree / "deep/key").symlink_to(ground.outside / "key")
    (tree / "deep/ssh").symlink_to(ground.work / ".ssh")
    os.mkfifo(tree / "deep/fifo")
    ground.desk.give()
    return tree


def files_below(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*")}


async def test_a_search_of_a_tree_reads_nothing_that_is_closed(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        ground.lay()
        trap(ground)
        found = await desk.ok("search_files", path="tree", pattern=".", include_hidden=True)
        assert [m["path"] for m in found["matches"]] == ["tree/deep/open.txt", "tree/open.txt"]
        assert (found["skipped_closed"], found["skipped_hard_links"]) == (2, 1)
        everywhere = await desk.ok("search_files", pattern=MARKER, include_hidden=True)
        assert everywhere["matches"] == []
        names = await desk.ok("find_files", path="tree", pattern="*", include_hidden=True)
        paths = {entry["path"] for entry in names["entries"]}
        assert not any("/.ssh" in path or path.endswith("secret") or path.count("/ssh/") for path in paths)
        listed = await desk.ok("list_directory", path="tree", depth=9, include_hidden=True)
        assert not any(entry["name"].startswith(("deep/er/.ssh/", "out/", "deep/ssh/")) for entry in listed["entries"])


async def test_a_copy_of_a_tree_leaves_out_what_is_closed_and_says_so(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        ground.lay()
        trap(ground)
        done = await desk.ok("copy_path", source="tree", destination="copy", recursive=True)
        copy = ground.work / "copy"
        assert files_below(copy) == {"open.txt", "out", "deep", "deep/open.txt", "deep/er", "deep/key", "deep/ssh"}
        assert (copy / "out").is_symlink()
        assert sorted(s["path"] for s in done["skipped"]) == [
            "deep/er/.ssh",
            "deep/fifo",
            "deep/innocent",
            "deep/secret",
        ]
        assert MARKER not in "".join(p.read_text() for p in copy.rglob("*") if p.is_file() and not p.is_symlink())


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("delete_path", {"path": "tree", "recursive": True, "confirm": True}),
        ("move_path", {"source": "tree", "destination": "moved"}),
    ],
)
async def test_a_tree_with_something_closed_in_it_stays_whole(tmp_path: Path, tool: str, arguments: Arguments) -> None:
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        ground.lay()
        tree = trap(ground)
        before = files_below(tree)
        answer = await desk.whole.answer(tool, session_id=desk.sid, **arguments)
        assert answer.structured["error_name"] == "POLICY_PATH_VIOLATION"
        assert files_below(tree) == before
        assert not (ground.work / "moved").exists()
        for closed in (tree / "deep/er/.ssh", tree / "deep/secret"):
            closed.rename(ground.work.parent / f"away-{closed.name}")
        await desk.ok(tool, **arguments)  # the control
        assert (ground.outside / "key").read_text() == (ground.work / ".ssh/id").read_text() == MARKER


async def test_a_tree_is_not_moved_to_where_a_part_of_it_would_be_closed(tmp_path: Path) -> None:
    policy = 'policy: {{allowed_paths: ["{work}/**"], blocked_paths: ["**/.aws/credentials"]}}'
    async with open_desk(tmp_path, policy=policy) as desk:
        desk.plant(aws__deep__x="1", aws__credentials="mine so far")
        assert await desk.failure("move_path", source="aws", destination=".aws") == "POLICY_PATH_VIOLATION"
        done = await desk.ok("copy_path", source="aws", destination=".aws", recursive=True)
        assert [skipped["path"] for skipped in done["skipped"]] == ["credentials"]
        assert desk.tree() == {"aws", "aws/deep", "aws/deep/x", "aws/credentials", ".aws", ".aws/deep", ".aws/deep/x"}


@pytest.mark.parametrize("tool", ["write_file", "upload_file", "edit_file", "move_path to", "copy_path to"])
async def test_blocked_extensions_cannot_be_had_by_another_door(tmp_path: Path, tool: str) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(mine="M", x_DOT_exe="M", plain="M")
        name, arguments = TOOLS[tool]
        for path in ("x.exe", "new.EXE", "lib.exe.1"):
            assert await desk.failure(name, **arguments(path)) == "POLICY_PATH_VIOLATION"
        await desk.ok(name, **arguments("plain"))
        assert (desk.work / "x.exe").read_text() == "M"


async def test_a_copied_tree_brings_no_blocked_extension_and_deleting_one_is_fine(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        desk.plant(d__x_DOT_exe="M", d__y="M")
        done = await desk.ok("copy_path", source="d", destination="e", recursive=True)
        assert done["skipped"] == [{"path": "x.exe", "reason": "files with its extension must not be written"}]
        await desk.ok("delete_path", path="d/x.exe")


async def test_set_user_id_bits_are_not_passed_on(tmp_path: Path) -> None:
    """b18, and b17: what is made belongs to the session user."""
    async with open_desk(tmp_path) as desk:
        desk.plant(f="M", d__g="M")
        for path in (desk.work / "f", desk.work / "d/g"):
            path.chmod(0o6755)
        await desk.ok("copy_path", source="f", destination="f2")
        await desk.ok("copy_path", source="d", destination="d2", recursive=True)
        await desk.ok("edit_file", path="f", old_text="M", new_text="N")
        for path in ("f", "f2", "d2/g"):
            status = (desk.work / path).stat()
            assert stat.S_IMODE(status.st_mode) == 0o755
            assert status.st_uid == desk.whole.foundation.user.uid


async def test_a_planted_part_is_not_written_through(tmp_path: Path) -> None:
    """b16: names of parts are random, and what somebody puts under such a name is not followed or removed."""
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        ground.lay()
        planted = ground.work / f".remote-broker-part-{'0' * 24}"
        planted.symlink_to(ground.outside / "key")
        await desk.ok("write_file", path="a", content="x")
        await desk.ok("list_directory", include_hidden=True)
        await desk.ok("search_files", pattern="x", include_hidden=True)
        assert planted.is_symlink()
        assert (ground.outside / "key").read_text() == MARKER


async def test_a_working_directory_or_session_id_is_no_way_in(tmp_path: Path) -> None:
    """b14, b15."""
    async with open_desk(tmp_path) as desk:
        ground = Ground(desk)
        ground.lay()
        for place in ("..", "/", str(ground.outside), str(ground.work / "to-outside"), str(ground.work / ".ssh")):
            assert await desk.whole.failure("create_session", working_dir=place) == "POLICY_PATH_VIOLATION"
        assert await desk.whole.failure("create_session", id="../../x") == "INVALID_ARGUMENTS"


async def test_a_session_does_not_begin_where_it_may_enter_and_nothing_beneath_is_allowed(tmp_path: Path) -> None:
    for allowed, refused in (('"{work}/*"', True), ('"{work}/**"', False)):
        (base := tmp_path / str(refused)).mkdir()
        async with open_whole(base, POLICY.replace('"{work}/**"', allowed)) as whole:
            (whole.work / "sub").mkdir(mode=0o755)
            answer = await whole.answer("create_session", working_dir=str(whole.work / "sub"))
            assert answer.is_error is refused, answer.structured
            if refused:
                assert answer.structured["error_code"] == "POLICY_002"
                assert f"allow {whole.work}/sub/**" in answer.structured["error_message"]
