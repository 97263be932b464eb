"""What a crashed broker left is removed when it is found, and only that."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.files.files import Files
from sandbox.inside.unfinished import hidden
from tests.support.door import OTHER_UID, ROOT, needs_root, open_door, reachable

OLD, TREE, LINK, FIFO = (f"{hidden.HIDDEN_PREFIX}{digit * 24}" for digit in "abcd")

# A broker that dies in the middle of a write where files without a name cannot be had.
CRASHING = """
import sys, trio
sys.path[:0] = [sys.argv[1]]
from tests.support.door import open_door

async def main():
    async with open_door(tmpfile=False) as door:
        with await door.files.place(sys.argv[2]) as place:
            part = await door.files.part(place)
            await part.write(0, b"half")
            print(door.opener.pid, flush=True)
            await trio.sleep_forever()

trio.run(main)
"""


async def listing(files: Files, folder: Path) -> list[str]:
    with await files.resolve(str(folder), read=True) as found:
        return [entry.name for entry in (await files.list_directory(found, limit=99, include_hidden=True)).entries]


async def test_the_part_of_a_killed_broker_is_removed_when_its_directory_is_listed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASHING, str(ROOT), str(tmp_path / "f")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as crashing:
        assert crashing.stdout
        opener = int(crashing.stdout.readline())
        async with open_door() as door:
            (part,) = await listing(door.files, tmp_path)
            assert hidden.is_part(part)  # it has an owner, and stays
            assert await listing(door.files, tmp_path) == [part]
            os.kill(opener, signal.SIGKILL)
            crashing.kill()
            crashing.wait()
            await listing(door.files, tmp_path)
            assert await listing(door.files, tmp_path) == []


async def test_a_session_begins_with_a_sweep_of_files_and_tells_of_trees(tmp_path: Path) -> None:
    (tmp_path / OLD).write_text("half")
    tree = tmp_path / TREE
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/file").write_text("x")
    (tree / "deep").chmod(0o500)
    async with open_door() as door:
        with await door.files.resolve(str(tmp_path), read=True) as found:
            assert await door.files.names.sweep(found) == 1
            assert [path.name for path in tmp_path.iterdir()] == [tree.name]
            spec = {"limit": 100}
            await door.files.trees.run("sweep", str(tmp_path), spec, (found.directory(),), timeout_s=10)
    assert list(tmp_path.iterdir()) == []


async def test_what_is_owned_or_only_looks_alike_stays(tmp_path: Path) -> None:
    names = {OLD, OLD + "a", OLD[:-1], f"{hidden.HIDDEN_PREFIX}{'g' * 24}", f"x{OLD}"}
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / LINK).symlink_to("x")
    os.mkfifo(tmp_path / FIFO)
    with (tmp_path / OLD).open() as owned:
        fcntl.flock(owned, fcntl.LOCK_EX)
        async with open_door() as door:
            await listing(door.files, tmp_path)
            assert set(await listing(door.files, tmp_path)) == {*names, LINK, FIFO}
    async with open_door() as door:
        await listing(door.files, tmp_path)
        assert set(await listing(door.files, tmp_path)) == {*names, LINK, FIFO} - {OLD}


@needs_root
async def test_somebody_elses_part_stays(tmp_path: Path) -> None:
    reachable(tmp_path)
    (tmp_path / OLD).write_text("root's")
    (tmp_path / OLD).chmod(0o666)
    async with open_door(uid=OTHER_UID) as door:
        await listing(door.files, tmp_path)
        assert await listing(door.files, tmp_path) == [OLD]


@pytest.mark.parametrize("tmpfile", [True, False])
async def test_a_part_in_use_survives_every_sweep(tmp_path: Path, *, tmpfile: bool) -> None:
    (tmp_path / "f").write_text("old")
    async with open_door(tmpfile=tmpfile) as door, open_door() as other:
        with await door.files.place(str(tmp_path / "f")) as place:
            async with await door.files.part(place) as part:
                await part.write(0, b"new")
                await listing(other.files, tmp_path)
                await listing(door.files, tmp_path)
                await part.commit()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("f", "new")]
