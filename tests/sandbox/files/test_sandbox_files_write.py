"""Writing through a real opener process: all of it or nothing, whoever dies."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from sandbox.files.disk import Disk
from sandbox.files.errors import AccessDenied, Changed, Exists, NoSpace, OpenerGone, OutcomeUnknown, TooLarge, WrongKind
from sandbox.files.files import Files
from sandbox.kernel.files import free_bytes
from tests.support.door import OTHER_UID, ROOT, descriptors, needs_landlock, needs_root, open_door, reachable, read

both_ways = pytest.mark.parametrize("tmpfile", [True, False], ids=["O_TMPFILE", "hidden name"])


async def overwrite(files: Files, path: Path | str, data: bytes) -> str:
    with await files.place(str(path)) as place:
        await files.overwrite(place, data)
        return place.path


async def append(files: Files, path: Path | str, data: bytes) -> None:
    with await files.place(str(path)) as place:
        await files.append(place, data)


@both_ways
async def test_overwrite_makes_replaces_and_keeps_the_mode(tmp_path: Path, *, tmpfile: bool) -> None:
    old = tmp_path / "old"
    old.write_text("old content, longer")
    old.chmod(0o4751)
    async with open_door(tmpfile=tmpfile) as door:
        await overwrite(door.files, old, b"new")
        await overwrite(door.files, tmp_path / "fresh", b"fresh")
        before = descriptors()
        for _ in range(3):
            await overwrite(door.files, tmp_path / "fresh", b"fresher")
        assert descriptors() == before
    assert old.read_bytes() == b"new"
    assert stat.S_IMODE(old.stat().st_mode) == 0o751  # never a set-user-id bit for new content
    assert (tmp_path / "fresh").read_bytes() == b"fresher"
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh", "old"]


async def test_a_reader_sees_the_old_or_the_new_file_never_a_mix(tmp_path: Path) -> None:
    file = tmp_path / "f"
    contents = [bytes([65 + i]) * (50_000 + i) for i in range(4)]
    file.write_bytes(contents[0])
    stop, seen, wrong = threading.Event(), 0, []

    def look() -> None:
        nonlocal seen
        while not stop.is_set():
            try:
                content = file.read_bytes()
            except FileNotFoundError:
                content = b"missing"
            seen += 1
            if content not in contents:
                wrong.append(content[:20])

    async with open_door() as door, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, look)
        for i in range(150):
            await overwrite(door.files, file, contents[i % 4])
        stop.set()
    assert not wrong
    assert seen > 100


async def test_writing_follows_links_to_what_is_decided(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/target").write_text("old")
    (tmp_path / "absolute").symlink_to(tmp_path / "real/target")
    (tmp_path / "relative").symlink_to("real/../real/target")
    (tmp_path / "dangling").symlink_to("real/not yet")
    (tmp_path / "loop").symlink_to("loop")
    async with open_door() as door:
        for link in ("absolute", "relative"):
            assert await overwrite(door.files, tmp_path / link, link.encode()) == str(tmp_path / "real/target")
            assert (tmp_path / "real/target").read_text() == link
            assert (tmp_path / link).is_symlink()
        assert await overwrite(door.files, tmp_path / "dangling", b"now") == str(tmp_path / "real/not yet")
        assert (tmp_path / "real/not yet").read_text() == "now"
        with pytest.raises(Exception, match="symbolic links"):
            await door.files.place(str(tmp_path / "loop"))


async def test_a_link_that_takes_the_name_after_the_decision_is_not_followed(tmp_path: Path) -> None:
    outside, name = tmp_path / "outside", tmp_path / "name"
    outside.write_text("precious")
    async with open_door() as door:
        for existing in (False, True):
            if existing:
                name.write_text("here")
            with await door.files.place(str(name)) as place:
                name.unlink(missing_ok=True)
                name.symlink_to(outside)
                with pytest.raises(Changed):
                    await door.files.append(place, b"!")
                with pytest.raises(Changed):
                    await door.files.overwrite(place, b"!")
            name.unlink()
    assert outside.read_text() == "precious"


async def test_a_write_goes_to_the_directory_that_was_decided_on(tmp_path: Path) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").mkdir()
    async with open_door() as door:
        with await door.files.place(str(tmp_path / "allowed/f")) as place:
            (tmp_path / "allowed").rename(tmp_path / "moved")
            (tmp_path / "allowed").symlink_to("secret")
            await door.files.overwrite(place, b"x")
    assert (tmp_path / "moved/f").read_bytes() == b"x"
    assert not list((tmp_path / "secret").iterdir())


async def test_append_adds_to_the_end_or_makes_the_file(tmp_path: Path) -> None:
    async with open_door() as door:
        await append(door.files, tmp_path / "f", b"one ")
        await append(door.files, tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"one two"


async def test_append_refuses_another_file_than_the_decided_one(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("first")
    async with open_door() as door:
        with await door.files.place(str(file)) as place:
            (tmp_path / "other").write_text("other")
            (tmp_path / "other").replace(file)
            with pytest.raises(Changed, match="replaced"):
                await door.files.append(place, b"!")
        with await door.files.place(str(file)) as place:
            os.link(file, tmp_path / "second name")
            with pytest.raises(Changed):
                await door.files.append(place, b"!")
        with await door.files.place(str(tmp_path / "new")) as place:
            (tmp_path / "new").write_text("someone's")
            with pytest.raises(Changed):
                await door.files.append(place, b"!")
    assert (file.read_text(), (tmp_path / "new").read_text()) == ("other", "someone's")


async def test_only_regular_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    async with open_door() as door:
        for path in (tmp_path / "folder", tmp_path / "fifo", Path("/dev/null"), Path("/proc/self/comm")):
            for write in (overwrite, append):
                with pytest.raises(WrongKind):
                    await write(door.files, path, b"x")
        with pytest.raises(WrongKind):
            await door.files.place(f"{tmp_path}/folder/")


@needs_landlock
@pytest.mark.parametrize("uid", [0, pytest.param(OTHER_UID, marks=needs_root)])
@both_ways
async def test_everything_works_inside_the_walls_and_nothing_outside(
    tmp_path: Path, uid: int, *, tmpfile: bool
) -> None:
    reachable(tmp_path)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "f").write_text("old")
        (folder / "f").chmod(0o666)
    async with open_door(uid=uid, tmpfile=tmpfile, walls=inside) as door:
        await overwrite(door.files, inside / "f", b"new")
        await overwrite(door.files, inside / "g", b"n")
        await append(door.files, inside / "f", b"er")
        assert await read(door.files, inside / "f") == b"newer"
        with await door.files.resolve(str(inside), read=True) as found:
            assert (await door.files.list_directory(found, limit=10)).total_count == 2
        for attempt in (overwrite, append):
            for name in ("f", "g"):
                with pytest.raises(AccessDenied):
                    await attempt(door.files, outside / name, b"!")
        with await door.files.resolve(str(outside / "f"), read=True) as found, pytest.raises(AccessDenied):
            found.file()
    assert [(p.name, p.read_text()) for p in outside.iterdir()] == [("f", "old")]


@needs_root
async def test_a_group_is_kept_where_it_can_be_and_gets_nothing_where_not(tmp_path: Path) -> None:
    reachable(tmp_path)
    for name, group in (("own", OTHER_UID), ("foreign", 0)):
        (tmp_path / name).write_text("old")
        os.chown(tmp_path / name, OTHER_UID, group)
        (tmp_path / name).chmod(0o664)
        async with open_door(uid=OTHER_UID) as door:
            await overwrite(door.files, tmp_path / name, b"new")
        status = (tmp_path / name).stat()
        expected = 0o664 if name == "own" else 0o604
        assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (OTHER_UID, expected)


@needs_root
async def test_what_the_user_may_not_write_is_not_replaced(tmp_path: Path) -> None:
    reachable(tmp_path)
    (tmp_path / "theirs").write_text("root's")
    (tmp_path / "mine").write_text("x")
    os.chown(tmp_path / "mine", OTHER_UID, OTHER_UID)
    (tmp_path / "mine").chmod(0o444)
    (tmp_path / "drop").mkdir()
    (tmp_path / "drop").chmod(0o733)
    async with open_door(uid=OTHER_UID) as door:
        for path in (tmp_path / "theirs", tmp_path / "mine", Path("/etc/new file")):
            for write in (overwrite, append):
                with pytest.raises(AccessDenied):
                    await write(door.files, path, b"x")
        await overwrite(door.files, tmp_path / "drop/letter", b"dropped")  # a directory one may not read
    assert (tmp_path / "drop/letter").stat().st_uid == OTHER_UID
    assert (tmp_path / "drop/letter").read_bytes() == b"dropped"


@both_ways
async def test_an_upload_appears_whole_at_its_commit(tmp_path: Path, *, tmpfile: bool) -> None:
    async with open_door(tmpfile=tmpfile) as door:
        with await door.files.place(str(tmp_path / "f")) as place:
            part = await door.files.part(place)
        async with part:
            await part.write(3, b"def")
            await part.write(0, b"abc")
            assert not (tmp_path / "f").exists()
            await part.commit()
            assert (tmp_path / "f").read_bytes() == b"abcdef"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@both_ways
async def test_an_upload_that_is_not_committed_leaves_nothing(tmp_path: Path, *, tmpfile: bool) -> None:
    file = tmp_path / "f"
    file.write_text("old")
    async with open_door(tmpfile=tmpfile) as door:
        before = descriptors()
        with await door.files.place(str(file)) as place, trio.CancelScope() as scope:
            async with await door.files.part(place) as part:
                await part.write(0, b"new")
                scope.cancel()
                await trio.lowlevel.checkpoint()
        with await door.files.place(str(file)) as place, pytest.raises(Exists):
            await door.files.overwrite(place, b"new", replace=False)
        assert descriptors() == before
        assert file.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["f"]
        with await door.files.place(str(file)) as place:
            forgotten = await door.files.part(place)  # the session ends with it open
            forgotten.close()
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


async def test_a_write_cancelled_at_any_step_is_whole_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("old")
    async with open_door() as door:
        await read(door.files, file)
        before, steps, outcomes = descriptors(), 0, set()
        while outcomes != {b"old", b"new"} or steps < 60:  # later and later, until the write comes first
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, scope, steps)
                    await overwrite(door.files, file, b"new")
            outcomes.add(file.read_bytes())
            assert outcomes <= {b"old", b"new"}
            assert descriptors() == before
            assert [p.name for p in tmp_path.iterdir()] == ["f"]
            file.write_text("old")
            steps += 1 + steps // 10


async def test_a_naming_that_was_asked_for_is_awaited_even_when_cancelled(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("old")
    async with open_door() as door:
        with await door.files.place(str(file)) as place:
            async with await door.files.part(place) as part:
                await part.write(0, b"new")
                door.opener.send_signal(signal.SIGSTOP)
                async with trio.open_nursery() as nursery:
                    with trio.CancelScope(shield=True):
                        nursery.start_soon(part.commit)
                        await trio.testing.wait_all_tasks_blocked()
                        nursery.cancel_scope.cancel()
                        await trio.testing.wait_all_tasks_blocked()
                        door.opener.send_signal(signal.SIGCONT)
                assert file.read_text() == "new"  # known, not left to happen at some time later


async def _cancel_after(scope: trio.CancelScope, steps: int) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_killing_the_opener_in_mid_upload_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    async with open_door() as door:
        with await door.files.place(str(tmp_path / "f")) as place:
            async with await door.files.part(place) as part:
                await part.write(0, b"new")
                door.opener.kill()
                with pytest.raises((OpenerGone, OutcomeUnknown)):  # whether it was dead when it was asked, nobody knows
                    await part.commit()
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


BROKER = """
import sys
sys.path[:0] = [sys.argv[1]]
import trio
from tests.support.door import open_door
async def main():
    async with open_door(tmpfile=sys.argv[3] == "True") as door:
        with await door.files.place(sys.argv[2]) as place:
            part = await door.files.part(place)
            await part.write(0, b"half")
            print("ready", door.opener.pid, flush=True)
            await trio.sleep_forever()
trio.run(main)
"""


@both_ways
async def test_killing_the_broker_in_mid_upload_leaves_nothing(tmp_path: Path, *, tmpfile: bool) -> None:
    (tmp_path / "f").write_text("old")
    command = [sys.executable, "-c", BROKER, str(ROOT), str(tmp_path / "f"), str(tmpfile)]
    opener = _start_and_kill(command)
    await trio.lowlevel.wait_readable(opener)  # it ends with its socket
    os.close(opener)
    assert (tmp_path / "f").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def _start_and_kill(command: list[str]) -> int:
    """Kill a broker in the middle of its upload; return a pidfd of its opener."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as broker:
        assert broker.stdout
        opener = os.pidfd_open(int(broker.stdout.readline().split()[1]))
        broker.send_signal(signal.SIGKILL)
        return opener


@both_ways
async def test_a_part_whose_asker_left_before_the_answer_is_discarded(tmp_path: Path, *, tmpfile: bool) -> None:
    async with open_door(tmpfile=tmpfile) as door:
        with await door.files.place(str(tmp_path / "f")) as place:
            before = descriptors()
            door.opener.send_signal(signal.SIGSTOP)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(3):
                        nursery.start_soon(door.files.part, place)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            door.opener.send_signal(signal.SIGCONT)
            for _ in range(2):  # the first is answered before the discards, which are asked for meanwhile
                (await door.files.resolve(str(tmp_path))).close()
            assert list(tmp_path.iterdir()) == []
            assert descriptors() == before


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=777", "small", folder], check=True)
    try:
        yield folder
    finally:
        # Lazy: an opener may hold a descriptor there for a moment after its answer.
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@both_ways
async def test_a_full_disk_leaves_everything_as_it_was(full: Path, *, tmpfile: bool) -> None:
    file = full / "f"
    file.write_bytes(b"old" * 100)
    async with open_door(tmpfile=tmpfile) as door:
        for write in (overwrite, append):
            with pytest.raises(NoSpace) as caught:
                await write(door.files, file, b"x" * 100_000)
            assert caught.value.errno_name == "ENOSPC"
        with pytest.raises(NoSpace):
            await append(door.files, full / "new", b"x" * 100_000)
        assert file.read_bytes() == b"old" * 100
        assert [p.name for p in full.iterdir()] == ["f"]
        await overwrite(door.files, file, b"y" * 40_000)  # and the space is free again
    assert file.read_bytes() == b"y" * 40_000


async def test_a_file_over_the_size_limit_leaves_everything_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_door() as door:
        await read(door.files, file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            for write in (overwrite, append):
                with pytest.raises(TooLarge):
                    await write(door.files, file, b"x" * 20_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


async def test_content_in_pieces_is_written_one_behind_the_other(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        await Disk().fill("file", file.fileno(), b"first ", bytearray(b"second "), memoryview(b""), b"third")
    assert (tmp_path / "file").read_bytes() == b"first second third"


async def test_content_that_does_not_fit_is_refused_before_its_first_piece(tmp_path: Path) -> None:
    """By itself it would fit."""
    half = 1 << 29
    with (tmp_path / "file").open("wb") as file, mmap.mmap(-1, 2 * half) as large:
        disk = Disk(reserve_bytes=max(1, free_bytes(file.fileno()) - half))
        with memoryview(large) as pieces, pytest.raises(NoSpace):
            await disk.fill("file", file.fileno(), b"first", pieces)
    assert (tmp_path / "file").read_bytes() == b""
