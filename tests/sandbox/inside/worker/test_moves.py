"""A directory moves to another file system while others change it: what they were told is done is not lost."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from sandbox.inside.worker.change import Aside, Mirror, is_open_for_writing
from sandbox.inside.worker.job import Job
from sandbox.inside.worker.walk import Rules
from sandbox.kernel.files import Refused
from tests.broker.tools.test_treetools import Desk, open_desk
from tests.broker.tools.test_treetools_disk import later
from tests.support.archiving import OPEN_RULES
from tests.support.door import needs_root

POLICY = """
policy:
  allowed_commands: {{python3: {{executable: /usr/bin/python3}}}}
  allowed_paths: ["{work}/**"]
  blocked_paths: ["**/.ssh/**"]
  file_limits: {{max_read_size: 1048576, max_write_size: 1048576, min_free_bytes: 0, blocked_extensions: []}}
"""
FILES = 600
MOVE = {"source": "tree", "destination": "disk/tree"}
APPENDING = """
import os, sys
folder, log = sys.argv[1:]
os.chdir(folder)
with open(ACKS, "w") as acks:
    number = 0
    while True:
        try:
            with open(log, "a") as file:
                file.write(f"{number}\\n")
        except FileNotFoundError:
            break
        print(number, file=acks, flush=True)
        number += 1
"""
HOLDING = """
import sys
with open(sys.argv[1], "a") as file:
    print("open", flush=True)
    file.write(input() + "\\n")
"""


@contextmanager
def another_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=777", "another", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@asynccontextmanager
async def desk_with_tree(tmp_path: Path, files: int = FILES) -> AsyncIterator[Desk]:
    """`disk` is another file system, and `tree` has a log in the first of its folders, and files to take a while."""
    async with open_desk(tmp_path, policy=POLICY) as desk:
        (desk.work / "disk").mkdir()
        desk.plant(tree__a__log="")
        (desk.work / "tree/b").mkdir()
        for number in range(files):
            (desk.work / f"tree/b/{number}").write_text("x" * 2000)
        desk.give()
        with another_disk(desk.work / "disk"):
            yield await later(desk)


def lines(*files: Path) -> set[str]:
    return {line for file in files if file.exists() for line in file.read_text().splitlines()}


async def until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.001)  # another process makes it true, and has no way to tell


async def appending(desk: Desk, log: str) -> str:
    """Start a command that appends to *log*, from within the tree, as fast as it can; `acks` is what it has done."""
    script = APPENDING.replace("ACKS", repr(str(desk.work / "acks")))
    argv = ["python3", "-c", script, str(desk.work / "tree/a"), log]
    begun = await desk.ok("execute_command", argv=argv, background=True)
    await until(lambda: lines(desk.work / "acks"))
    return str(begun["command_id"])


@needs_root
@pytest.mark.bounded(120)
async def test_what_a_command_wrote_by_path_until_it_could_not_is_in_the_moved_directory(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path) as desk:
        command = await appending(desk, str(desk.work / "tree/a/log"))
        await desk.ok("move_path", **MOVE)
        ended = await desk.ok("wait_command", command_id=command, wait_seconds=20)
        assert ended["exit_code"] == 0  # its path leads nowhere any more
        assert lines(desk.work / "acks") <= lines(desk.work / "disk/tree/a/log")
        assert len(list((desk.work / "disk/tree/b").iterdir())) == FILES
        assert not [name for name in desk.tree() if name.startswith("tree")]


@needs_root
@pytest.mark.bounded(120)
async def test_what_a_command_wrote_from_within_is_here_or_there_and_never_lost(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path, 200) as desk:
        command = await appending(desk, "log")
        answer = await desk.whole.answer("move_path", session_id=desk.sid, **MOVE)
        if answer.is_error:
            assert answer.structured["error_name"] == "FILE_CHANGED", answer.structured
        await desk.whole.answer("kill_process", session_id=desk.sid, command_id=command)
        await desk.whole.answer("signal_command", session_id=desk.sid, command_id=command, signal="SIGKILL")
        logs = [desk.work / "tree/a/log", desk.work / "disk/tree/a/log"]
        assert lines(desk.work / "acks") <= lines(*logs)
        left = [name for name in os.listdir(desk.work) if "moved" in name]
        assert not left, "it has its name again"


@needs_root
@pytest.mark.bounded(120)
async def test_calls_of_another_session_that_succeeded_are_in_the_moved_directory(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path) as desk:
        other, done = await later(desk), list[str]()
        moved = trio.Event()

        async def write() -> None:
            number = 0
            while not moved.is_set():
                name = f"tree/a/new-{number}"
                calls = (
                    ("write_file", {"path": "tree/a/log", "content": f"{number}\n", "mode": "append"}),
                    ("write_file", {"path": name, "content": "new"}),
                    ("edit_file", {"path": name, "old_text": "new", "new_text": "edited"}),
                )
                for tool, arguments in calls:
                    answer = await other.whole.answer(tool, session_id=other.sid, **arguments)
                    if answer.is_error:
                        assert answer.structured["error_name"] == "FILE_NOT_FOUND", answer.structured
                        return
                done.append(str(number))
                number += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await until(lambda: done)
            await desk.ok("move_path", **MOVE)
            moved.set()
        assert set(done) <= lines(desk.work / "disk/tree/a/log")
        assert {(desk.work / f"disk/tree/a/new-{number}").read_text() for number in done} == {"edited"}
        assert not (desk.work / "tree").exists()


@asynccontextmanager
async def held_open(desk: Desk) -> AsyncIterator[str]:
    """A command has the log open for writing."""
    argv = ["python3", "-c", HOLDING, str(desk.work / "tree/a/log")]
    begun = await desk.ok("execute_command", argv=argv, background=True)
    command = begun["command_id"]
    page = await desk.ok("read_output", command_id=command, cursor=0, wait_seconds=20)
    assert page["data"] == "open\n"
    yield command


@needs_root
async def test_a_directory_with_a_file_that_is_open_for_writing_stays_until_it_is_closed(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path, 3) as desk:
        async with held_open(desk) as command:
            before = desk.tree()
            answer = await desk.whole.answer("move_path", session_id=desk.sid, **MOVE)
            assert answer.structured["error_name"] == "FILE_CHANGED"
            assert "'a/log' in its source is open for writing; nothing was moved" in answer.structured["error_message"]
            assert desk.tree() == before
            await desk.ok("write_stdin", command_id=command, data="last words\n")
            await desk.ok("wait_command", command_id=command, wait_seconds=20)
        await desk.ok("move_path", **MOVE)
        assert (desk.work / "disk/tree/a/log").read_text() == "last words\n"
        assert "tree" not in os.listdir(desk.work)


@needs_root
@pytest.mark.parametrize("how", ["killed", "cut short"])
async def test_a_move_that_is_cut_while_its_source_has_another_name_gives_it_back(tmp_path: Path, how: str) -> None:
    async with desk_with_tree(tmp_path, 3) as desk, held_open(desk):
        before = desk.tree()
        other = await later(desk)
        answers = []

        async def move() -> None:
            answers.append(await other.whole.answer("move_path", session_id=other.sid, **MOVE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            await until(lambda: not (desk.work / "tree").exists())
            if how == "killed":
                for pid in workers():
                    os.kill(pid, signal.SIGKILL)
            else:
                await other.ok("kill_session")
        told = answers[0].structured["error_name"]
        assert told == ("FILE_OUTCOME_UNKNOWN" if how == "killed" else "SESSION_CLOSED")
        await until(lambda: {name for name in desk.tree() if ".remote-broker-part-" not in name} == before)


def workers() -> list[int]:
    """Processes below this one that lock a directory of a half-made copy."""
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[4].isdigit():
            links = _links(int(fields[4]))
            if any("/disk/.remote-broker-part-" in link for link in links):
                found.append(int(fields[4]))
    assert found
    return found


def _links(pid: int) -> list[str]:
    try:
        return [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


# --- single steps, at moments that no other process could choose


@attrs.frozen
class Moving:
    """A tree, its copy, and what follows it."""

    source: Path
    target: Path
    fd: int
    target_fd: int
    mirror: Mirror

    def follow(self) -> bool:
        return self.mirror.follow(self.target_fd)


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "folder/deep").mkdir(parents=True)
    (source / "folder/file").write_text("old")
    (source / "folder/link").symlink_to("file")
    target.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    spec: dict[str, Any] = {
        "rules": OPEN_RULES,
        "link_roots": [str(tmp_path)],
        "new_path": str(target),
        "max_file_bytes": 1000,
        "max_total_bytes": 1000,
        "reserve_bytes": 0,
        "timeout_s": 20,
    }
    fd, target_fd = (os.open(path, os.O_RDONLY) for path in (source, target))
    job = Job(theirs, spec)
    with ours, theirs:
        yield Moving(source, target, fd, target_fd, Mirror(job, Rules(OPEN_RULES), spec, fd))
    os.close(fd)
    os.close(target_fd)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else ""
        if path.is_dir()
        else path.read_text()
        for path in folder.rglob("*")
    }


def settled(moving: Moving) -> None:
    moving.mirror.settle(moving.target_fd)
    assert content(moving.source) == content(moving.target)
    assert moving.follow()


def test_the_copy_follows_every_kind_of_change(moving: Moving) -> None:
    source = moving.source
    assert not moving.follow()
    assert content(source) == content(moving.target)
    (source / "folder/file").write_text("new!")
    (source / "folder/link").unlink()
    (source / "folder/link").symlink_to("elsewhere")
    (source / "folder/deep").rmdir()
    (source / "folder/deep").write_text("a file now")
    (source / "later/deep").mkdir(parents=True)
    (source / "later/deep/file").write_text("x")
    (source / "later").chmod(0o500)
    os.utime(source / "folder", (1, 86_400))
    settled(moving)
    (source / "later").chmod(0o700)
    os.rename(source / "later", source / "folder/later")
    (source / "folder/file").unlink()
    settled(moving)
    assert (moving.target / "folder").stat().st_mtime == (source / "folder").stat().st_mtime
    assert moving.mirror._job.counts["bytes"] == len("a file now") + len("x")  # what is on the other disk


def test_a_write_of_the_same_size_within_a_step_of_the_clock_is_seen(moving: Moving) -> None:
    file = moving.source / "folder/file"
    file.write_text("one")
    times = os.stat(file)
    moving.follow()
    file.write_text("two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    settled(moving)


LATE = {
    "written": lambda source: (source / "folder/file").write_text("old, and more"),
    "replaced": lambda source: os.replace(source / "folder/other", source / "folder/file"),
    "made": lambda source: (source / "folder/new").write_text("x"),
    "made deep": lambda source: (source / "folder/deep/new").write_text("x"),
}


@pytest.mark.parametrize("change", LATE)
def test_what_is_changed_after_the_copy_is_not_removed(moving: Moving, change: str) -> None:
    (moving.source / "folder/other").write_text("other")
    settled(moving)
    LATE[change](moving.source)
    late = content(moving.source)
    with pytest.raises(Refused, match="was changed in its source afterwards"):
        moving.mirror.take_away()
    left = content(moving.source)
    changed = {name for name, text in late.items() if content(moving.target).get(name) != text}
    assert changed
    assert {name: left.get(name) for name in changed} == {name: late[name] for name in changed}


def test_a_file_that_is_open_for_writing_is_not_removed(moving: Moving) -> None:
    settled(moving)
    with (moving.source / "folder/file").open("a") as file:
        with pytest.raises(Refused, match="'folder/file' was changed in its source"):
            moving.mirror.take_away()
        file.write(", and more")
    assert (moving.source / "folder/file").read_text() == "old, and more"


def test_what_nobody_changed_is_removed(moving: Moving) -> None:
    settled(moving)
    moving.mirror.take_away()
    assert content(moving.source) == {}


def test_who_has_a_file_open_for_writing_is_seen_and_who_reads_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        with (tmp_path / "f").open():
            assert not is_open_for_writing("f", parent)
        with (tmp_path / "f").open("a"):
            assert is_open_for_writing("f", parent)
        assert not is_open_for_writing("f", parent)
    finally:
        os.close(parent)


def test_a_source_whose_name_is_taken_meanwhile_says_what_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_text("kept")
    fd, parent = (os.open(path, os.O_RDONLY) for path in (tmp_path / "source", tmp_path))
    try:
        with pytest.raises(Refused, match="it is now called 'aside'") as caught, Aside(parent, "source", "aside", fd):
            (tmp_path / "source").write_text("somebody else's")
        assert (caught.value.kind, caught.value.number) == ("done", errno.EEXIST)
        os.rename(tmp_path / "source", tmp_path / "other")
        (tmp_path / "source").mkdir()
        with pytest.raises(Refused, match="replaced meanwhile"), Aside(parent, "source", "beside", fd):
            raise AssertionError("another directory has the name")
        assert sorted(os.listdir(tmp_path)) == ["aside", "other", "source"]
        assert (tmp_path / "aside/file").read_text() == "kept"
    finally:
        os.close(fd)
        os.close(parent)


@needs_root
async def test_a_tree_that_could_not_be_removed_is_not_copied(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path, 3) as desk:
        (desk.work / "tree/b").chmod(0o500)
        before = desk.tree()
        assert await desk.failure("move_path", **MOVE) == "FILE_ACCESS_DENIED"
        assert desk.tree() == before


@needs_root
async def test_a_moved_tree_has_its_links_modes_and_times(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path, 3) as desk:
        tree, moved = desk.work / "tree", desk.work / "disk/tree"
        (tree / "link").symlink_to("a/log")
        (tree / "empty").mkdir(mode=0o500)
        (tree / "b/0").chmod(0o640)
        desk.give()
        for path, seconds in ((tree / "b/0", 86_400), (tree / "b", 2 * 86_400), (tree, 3 * 86_400)):
            os.utime(path, (0, seconds))
        await desk.ok("move_path", **MOVE)
        assert os.readlink(moved / "link") == "a/log"
        assert [(moved / name).stat().st_mode & 0o777 for name in ("empty", "b/0")] == [0o500, 0o640]
        assert [(moved / name).stat().st_mtime for name in ("b/0", "b", "")] == [86_400, 2 * 86_400, 3 * 86_400]
        assert not tree.exists()


@needs_root
async def test_what_may_not_be_removed_stays_and_the_answer_says_that_the_copy_is_whole(tmp_path: Path) -> None:
    async with desk_with_tree(tmp_path, 3) as desk:
        kept = desk.work / "tree/b"
        for path in (kept, *kept.iterdir()):
            os.chown(path, 0, 0)
        kept.chmod(0o1777)  # sticky: who may write in it may not remove what is root's
        answer = await desk.whole.answer("move_path", session_id=desk.sid, **MOVE)
        assert answer.structured["error_name"] == "FILE_ACCESS_DENIED"
        assert "tree: all of it was copied to the destination, and then" in answer.structured["error_message"]
        assert len(list((desk.work / "disk/tree/b").iterdir())) == len(list(kept.iterdir())) == 3
        assert not [name for name in desk.tree() if "moved" in name or "taken" in name]
