"""Workers end at their deadline, when their caller leaves and with their opener; copies are whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from sandbox.files.errors import BadPattern, Exists, NoSpace, OpenerGone, RanShort, TooLarge, WriteFailed
from sandbox.files.files import Work
from tests.sandbox.files.test_sandbox_files_write import full  # noqa: F401  a small disk, as a fixture
from tests.support.archiving import OPEN_RULES
from tests.support.door import Door, descriptors, open_door

MAX_FILE = 1 << 40


async def search(door: Door, folder: Path, pattern: str, timeout_s: float = 10, **fields: Any) -> Work:
    spec = {
        "rules": OPEN_RULES,
        "link_roots": [str(folder)],
        "pattern": pattern,
        "literal": False,
        "case_sensitive": True,
        "include": (),
        "exclude": (),
        "hidden": True,
        "context": 0,
        **fields,
    }
    with await door.files.resolve(str(folder), read=True) as found:
        return await door.files.trees.run("search", str(folder), spec, (found.directory(),), timeout_s=timeout_s)


async def copy_tree(
    door: Door,
    source: Path,
    target: Path,
    *,
    timeout_s: float = 20,
    total: int = MAX_FILE,
    reserve: int = 0,
) -> Work:
    with (
        await door.files.resolve(str(source), read=True) as found,
        await door.files.names.entry(str(target)) as entry,
    ):
        spec = {
            "rules": OPEN_RULES,
            "link_roots": [str(source)],
            "name": entry.name,
            "new_path": entry.path,
            "max_file_bytes": MAX_FILE,
            "max_total_bytes": total,
            "reserve_bytes": reserve,
        }
        fds = (found.directory(), entry.fd)
        return await door.files.trees.run("copy_tree", str(target), spec, fds, timeout_s=timeout_s, changes=True)


async def copy_file(
    door: Door, source: Path, target: Path, *, limit: int = MAX_FILE, timeout_s: float = 20, reserve: int = 0
) -> Work:
    with (
        await door.files.resolve(str(source), read=True) as found,
        await door.files.names.entry(str(target)) as entry,
    ):
        spec = {
            "name": entry.name,
            "replace": False,
            "keep_times": False,
            "max_file_bytes": limit,
            "reserve_bytes": reserve,
        }
        fds = (found.file(), entry.fd)
        return await door.files.trees.run("copy_file", str(target), spec, fds, timeout_s=timeout_s, changes=True)


def workers(door: Door) -> list[int]:
    """The living children of the opener."""
    tasks = Path(f"/proc/{door.opener.pid}/task/{door.opener.pid}/children")
    return [int(pid) for pid in tasks.read_text().split()]


async def test_a_search_that_backtracks_for_ever_keeps_what_it_found_and_ends(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("here\n")
    (tmp_path / "1").write_text("a" * 100 + "b")
    async with open_door() as door:
        before = descriptors()
        work = await search(door, tmp_path, r"here|(a|a)*$x|^(a+)+$", timeout_s=0.3)
        assert work.stopped == "time"
        assert not workers(door)
        assert descriptors() == before
        assert (await search(door, tmp_path, "here")).items[0][3] == "here"


async def test_opens_are_not_stalled_by_a_search(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a" * 100 + "b")
    async with open_door() as door, trio.open_nursery() as nursery:
        nursery.start_soon(search, door, tmp_path, r"^(a+)+$", 5)
        while not workers(door):
            await trio.lowlevel.checkpoint()
        with trio.fail_after(2):
            for _ in range(50):
                with await door.files.resolve(str(tmp_path / "1"), read=True) as found:
                    await door.files.read(found, 0, 1)
        assert workers(door)
        nursery.cancel_scope.cancel()
        # leaving waits for the worker's end


async def test_a_caller_that_leaves_takes_the_worker_along(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a" * 100 + "b")
    async with open_door() as door:
        with trio.move_on_after(0.3):
            await search(door, tmp_path, r"^(a+)+$", timeout_s=60)
        assert not workers(door)


async def test_workers_end_with_their_opener(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a" * 100 + "b")

    async def interrupted() -> None:
        with pytest.raises((OpenerGone, RanShort, WriteFailed)):
            await search(door, tmp_path, r"^(a+)+$", 60)

    async with open_door() as door:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupted)
            while not (pids := workers(door)):
                await trio.lowlevel.checkpoint()
            pidfds = [os.pidfd_open(pid) for pid in pids]
            door.opener.kill()
        for pidfd in pidfds:
            await trio.lowlevel.wait_readable(pidfd)
            os.close(pidfd)


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(?<=a+)b", "[z-a]"])
async def test_a_wrong_expression_is_refused(tmp_path: Path, pattern: str) -> None:
    async with open_door() as door:
        with pytest.raises((BadPattern, TooLarge)):
            await search(door, tmp_path, pattern)


async def test_many_searches_at_once_wait_their_turn(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x\n" * 10)
    async with open_door() as door, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(search, door, tmp_path, "x")
        await trio.lowlevel.checkpoint()


async def test_lines_are_numbered_across_blocks(tmp_path: Path) -> None:
    count = 300_000
    (tmp_path / "f").write_text("".join(f"line {i}\n" for i in range(1, count + 1)))
    async with open_door() as door:
        for literal in (True, False):
            work = await search(door, tmp_path, "99999", literal=literal)
            lines = [item[1] for item in work.items]
            assert lines == [i for i in range(1, count + 1) if "99999" in str(i)]
        around = await search(door, tmp_path, "line 150000", context=2)
        assert around.items[0][5:] == [["line 149998", "line 149999"], ["line 150001", "line 150002"]]


async def test_a_copy_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for i in range(200):
        (source / f"d{i}").mkdir(parents=True)
        (source / f"d{i}/f").write_bytes(os.urandom(200_000))
    (source / "d0").chmod(0o500)
    async with open_door() as door:
        work = await copy_tree(door, source, tmp_path / "target", timeout_s=0.001)
        assert work.stopped == "time"
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
        for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
            with trio.move_on_after(delay) as cut:
                await copy_tree(door, source, tmp_path / "target")
            if cut.cancelled_caught:
                assert {path.name for path in tmp_path.iterdir()} <= {"source", "target"}
            if (tmp_path / "target").exists():
                assert len(list((tmp_path / "target").rglob("*"))) == 400
                (tmp_path / "target/d0").chmod(0o700)
                shutil.rmtree(tmp_path / "target")


async def test_a_sparse_file_stays_sparse(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(10 << 30)
        file.write(b"end")
    async with open_door() as door:
        work = await copy_file(door, tmp_path / "sparse", tmp_path / "copy")
    assert work.done["bytes"] == (10 << 30) + 3
    copy = tmp_path / "copy"
    assert (copy.stat().st_size, copy.stat().st_blocks < 1000) == ((10 << 30) + 3, True)
    with copy.open("rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(10 << 30)
        assert file.read() == b"end"


async def test_a_copy_never_replaces_unless_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    async with open_door() as door:
        with pytest.raises(Exists):
            await copy_file(door, tmp_path / "a", tmp_path / "b")
        with pytest.raises(TooLarge):
            await copy_file(door, tmp_path / "a", tmp_path / "c", limit=0)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "a", "b": "b"}


async def test_a_copy_of_a_set_user_id_program_is_a_plain_program(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "program").write_bytes(b"x")
    for path in (source, source / "program"):
        path.chmod(0o6755)
    async with open_door() as door:
        await copy_tree(door, source, tmp_path / "tree")
        await copy_file(door, source / "program", tmp_path / "file")
    copies = (tmp_path / "tree", tmp_path / "tree/program", tmp_path / "file")
    assert [path.stat().st_mode & 0o7777 for path in copies] == [0o755] * 3


async def test_a_copy_onto_a_full_disk_says_how_much_there_is_and_leaves_nothing(
    full: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(1 << 20))
    with (source / "holes").open("wb") as file:
        file.truncate(1 << 30)
    before = sorted(path.name for path in full.iterdir())
    async with open_door() as door:
        for copy, what in ((copy_file, source / "large"), (copy_tree, source)):
            with pytest.raises(NoSpace, match=r"has \d+ bytes and \d+ are free"):
                await copy(door, what, full / "copy")
    assert sorted(path.name for path in full.iterdir()) == before
