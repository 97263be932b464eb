"""An archive of any tar program becomes the same tree, in one step, or nothing at all."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from sandbox.files.archives import Unpacking
from sandbox.files.errors import (
    BadArchive,
    Exists,
    FileError,
    HoldsClosedPaths,
    NoSpace,
    NotEmpty,
    TookTooLong,
    TooLarge,
)
from sandbox.inside.unfinished import hidden
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.sandbox.inside.worker.test_archive_pack import NAMES, plant_names
from tests.support.archiving import (
    CLOSED_SECRETS,
    Tree,
    pack_from,
    pack_spec,
    plant,
    refused,
    tree_of,
    unpack_here,
    unpack_spec,
    unpack_to,
)
from tests.support.door import OTHER_UID, Door, descriptors, needs_root, open_door, reachable
from tests.support.tarbytes import archive_of

GNU_FORMATS = ("v7", "oldgnu", "gnu", "ustar", "posix")
PYTHON_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def gnu_tar(source: Path, *options: str) -> bytes:
    command = ["tar", "--create", "--file=-", *options, "."]
    return subprocess.run(command, cwd=source, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout


def python_tar(source: Path, form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        archive.add(source, arcname=".")
    return file.getvalue()


@pytest.mark.parametrize("form", GNU_FORMATS)
def test_what_gnu_tar_packs_in_any_format_is_unpacked(tmp_path: Path, form: str) -> None:
    short_only = form in {"v7", "ustar"}  # which have no long names
    names = [name for name in NAMES if not short_only or len(os.fsencode(name)) < 90]
    source = plant_names(tmp_path / "source", names)
    done = unpack_here(gnu_tar(source, f"--format={form}"), tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert done.counts["files"] == len(names)


@pytest.mark.parametrize("form", PYTHON_FORMATS)
def test_what_python_packs_in_any_format_is_unpacked(tmp_path: Path, form: str) -> None:
    source = plant(tmp_path / "source", {"d": {"ü" * 40: b"x"}, "a" * 90: b"y", "e": {}})
    unpack_here(python_tar(source, PYTHON_FORMATS[form]), tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(source)


def test_what_bsd_tar_and_git_say_beside_names_is_passed_over(tmp_path: Path) -> None:
    """Attributes, owners, other times, a comment for the whole archive."""
    file = io.BytesIO()
    said = {
        "LIBARCHIVE.creationtime": "1600000000.5",
        "LIBARCHIVE.xattr.user.note": "aGVsbG8=",
        "SCHILY.xattr.user.note": "hello\nworld",
        "SCHILY.fflags": "nodump",
        "atime": "1.5",
        "ctime": "2.5",
        "mtime": "1600000000.123456789123",
        "uname": "somebody",
        "uid": "4294967296",
        "hdrcharset": "BINARY",
    }
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "f" * 40}) as archive:
        info = tarfile.TarInfo("f")
        info.pax_headers = said
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    done = unpack_here(file.getvalue(), tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"f": b"abc"}
    assert (tmp_path / "out/f").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert done.counts["files"] == 1


def test_modes_are_masked_and_times_kept(tmp_path: Path) -> None:
    tree: Tree = {"d": {"f": b"x", "e": {"g": b"y"}}}
    unpack_here(archive_of(tree, mode=0o7777, mtime=86_400, uid=0, gid=0), tmp_path / "all")
    unpack_here(archive_of(tree, mode=0, mtime=-5), tmp_path / "none")
    umask = os.umask(0o022)
    os.umask(umask)
    every, nothing = ((tmp_path / top) for top in ("all", "none"))
    assert {path.stat().st_mode & 0o7777 for path in every.rglob("*")} == {0o777 & ~umask}
    assert {path.stat().st_mtime for path in every.rglob("*")} == {86_400}
    assert {path.stat().st_mtime for path in nothing.rglob("*")} == {-5}
    assert [oct((nothing / name).stat().st_mode & 0o7777) for name in ("d", "d/e", "d/f")] == ["0o700", "0o700", "0o0"]
    assert every.stat().st_mode & 0o7777 == 0o777 & ~umask


def test_directories_need_no_entry_and_any_order_will_do(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("a/b/c/f", "x", "a/g", "./a/b/./h", "a//i"):
            archive.addfile(tarfile.TarInfo(name))
        for name in (".", "a/b/c", "a", "./a/b/"):
            info = tarfile.TarInfo(name)
            info.type, info.mtime, info.mode = tarfile.DIRTYPE, 86_400, 0o500
            archive.addfile(info)
    unpack_here(file.getvalue(), tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"a": {"b": {"c": {"f": b""}, "h": b""}, "g": b"", "i": b""}, "x": b""}
    for name in ("a", "a/b", "a/b/c"):
        assert (tmp_path / "out" / name).stat().st_mtime == 86_400
        assert (tmp_path / "out" / name).stat().st_mode & 0o7777 == 0o700


async def test_a_tree_makes_the_whole_way_there_and_back(tmp_path: Path) -> None:
    source = plant_names(tmp_path / "source")
    async with open_door() as door:
        before = descriptors()
        for packed in (False, True):
            data, summary = await pack_from(door, source, gzip=packed)
            target = tmp_path / f"out {packed}"
            unpacked = await unpack_to(door, target, data, gzip=packed)
            assert tree_of(target) == tree_of(source)
            assert (unpacked.files, unpacked.directories) == (summary.files, summary.directories)
        assert descriptors() == before


async def test_an_empty_directory_is_replaced_and_keeps_its_mode_and_nothing_else_is(tmp_path: Path) -> None:
    data = archive_of({"f": b"x"})
    (tmp_path / "empty").mkdir(mode=0o750)
    plant(tmp_path / "full", {"old": b""})
    plant(tmp_path, {"file": b"old"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    async with open_door() as door:
        await unpack_to(door, tmp_path / "empty", data, replace_empty=True, mode=0o750)
        with pytest.raises(NotEmpty):
            await unpack_to(door, tmp_path / "full", data, replace_empty=True)
        for name in ("file", "link"):
            for replace in (True, False):
                with pytest.raises(Exists):
                    await unpack_to(door, tmp_path / name, data, replace_empty=replace)
        with pytest.raises(Exists):
            await unpack_to(door, tmp_path / "full", data)
    assert tree_of(tmp_path) == {"empty": {"f": b"x"}, "full": {"old": b""}, "file": b"old", "elsewhere": {}}
    assert (tmp_path / "empty").stat().st_mode & 0o7777 == 0o750
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("tree", "kind"),
    [
        ({"a": b"", "secret": b""}, "blocked"),
        ({"a": {"secret": {}}}, "blocked"),
        ({"a": {".ssh": {"authorized_keys": b"key"}}}, "blocked"),
        ({"tool.exe": b""}, "blocked"),
        ({"tool.EXE.1": b""}, "blocked"),
    ],
)
def test_one_closed_path_refuses_the_whole_archive(tmp_path: Path, tree: Tree, kind: str) -> None:
    assert refused(archive_of(tree), tmp_path / "out", rules=CLOSED_SECRETS).kind == kind
    unpack_here(archive_of(tree), tmp_path / "out")  # without the rule it is taken


def test_a_closed_directory_that_has_no_entry_of_its_own_is_closed_too(tmp_path: Path) -> None:
    only_below = {**CLOSED_SECRETS, "allowed": f"{tmp_path}/out(?:/a/b/[\\s\\S]*)?"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/b/f"))
    assert refused(file.getvalue(), tmp_path / "out", rules=only_below).why == "the policy keeps 'a' closed"


@pytest.mark.parametrize(
    ("fields", "limit", "enough"),
    [
        ({"max_entries": 2}, "archive_max_entries, 2", {"max_entries": 3}),
        ({"max_bytes": 10_239}, "archive_max_bytes, 10239", {"max_bytes": 10_240}),
        ({"max_file_bytes": 1000}, "max_write_size is 1000", {"max_file_bytes": 1001}),
    ],
)
def test_the_caps_hold_for_entries_bytes_and_files(
    tmp_path: Path, fields: dict[str, int], limit: str, enough: dict[str, int]
) -> None:
    data = archive_of({"d": {"f": b"x" * 1001}, "g": b""})
    assert len(data) == 10_240
    for number, packed in enumerate((data, gzip.compress(data))):
        refusal = refused(packed, tmp_path / "out", gzip=bool(number), **fields)
        assert refusal.kind == "too_large"
        assert limit in refusal.why
        unpack_here(packed, tmp_path / f"out{number}", gzip=bool(number), **enough)


async def test_a_bomb_goes_off_in_one_buffer(tmp_path: Path) -> None:
    """Ten gigabytes of zeros in ten megabytes: refused at its cap, in time and memory of what is taken."""
    header = tarfile.TarInfo("zeros")
    header.size = 10 << 30
    bomb = gzip.compress(header.tobuf() + bytes(64 << 20), 9)
    assert len(bomb) < 200_000
    async with open_door() as door:
        with pytest.raises(TooLarge, match="zeros"):
            await unpack_to(door, tmp_path / "out", bomb, gzip=True, max_file_bytes=1 << 30)
        with pytest.raises(TooLarge, match="archive_max_bytes"):
            await unpack_to(door, tmp_path / "out", bomb, gzip=True, max_bytes=8 << 20)
    assert not os.listdir(tmp_path)


async def test_a_refusal_ends_the_sending(tmp_path: Path) -> None:
    data = archive_of({"secret": b""}) + bytes(64 << 20)
    async with open_door() as door:
        before = descriptors()
        with await door.files.names.entry(str(tmp_path / "out")) as entry:
            spec = unpack_spec(tmp_path / "out", rules=CLOSED_SECRETS)
            async with door.files.archives.open_unpack(entry, spec, timeout_s=20) as unpacking:
                with pytest.raises(HoldsClosedPaths):
                    await unpacking.write(data)
                with pytest.raises(HoldsClosedPaths):
                    await unpacking.finish()
        assert descriptors() == before
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("whole", [False, True], ids=["half sent", "all sent"])
async def test_leaving_without_finish_leaves_nothing(tmp_path: Path, *, whole: bool) -> None:
    """Even where the archive came to its end: that it is wanted is said by `finish` alone."""
    data = archive_of({f"d{i}": {"f": b"x" * 2000} for i in range(100)})
    async with open_door() as door:
        for _ in range(5):
            with await door.files.names.entry(str(tmp_path / "out")) as entry:
                spec = unpack_spec(tmp_path / "out")
                async with door.files.archives.open_unpack(entry, spec, timeout_s=20) as unpacking:
                    await unpacking.write(data if whole else data[: len(data) // 2])
                    if not whole:
                        while not os.listdir(tmp_path):
                            await trio.lowlevel.checkpoint()
            assert not os.listdir(tmp_path)


async def test_a_cancelled_caller_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    tree: Tree = {f"d{i}": {"f": b"x" * 2000} for i in range(50)}
    data = archive_of(tree)
    outcomes = set()
    async with open_door() as door:
        before = descriptors()
        for delay_ms in (0, 1, 2, 4, 8, 16, 32, 64, 10_000):
            with trio.move_on_after(delay_ms / 1000) as cut:
                await unpack_to(door, tmp_path / "out", data)
            outcomes.add(cut.cancelled_caught)
            assert os.listdir(tmp_path) in ([], ["out"])
            if (tmp_path / "out").exists():
                assert tree_of(tmp_path / "out") == tree
                shutil.rmtree(tmp_path / "out")
        assert descriptors() == before
    assert outcomes == {True, False}


async def test_time_that_is_up_leaves_nothing(tmp_path: Path) -> None:
    """We send on, a byte at a time, and the worker does not wait for ever."""
    header = tarfile.TarInfo("f")
    header.size = 16 << 20
    async with open_door() as door:
        with await door.files.names.entry(str(tmp_path / "out")) as entry:
            spec = unpack_spec(tmp_path / "out")
            async with door.files.archives.open_unpack(entry, spec, timeout_s=0.2) as unpacking:
                await unpacking.write(header.tobuf())
                with pytest.raises(TookTooLong):
                    await dribble(unpacking)
    assert not os.listdir(tmp_path)


async def dribble(unpacking: Unpacking) -> None:
    while True:
        await unpacking.write(b"x")


def workers(door: Door) -> Iterator[int]:
    tasks = Path(f"/proc/{door.opener.pid}/task/{door.opener.pid}/children")
    return map(int, tasks.read_text().split())


async def test_what_a_killed_worker_leaves_has_no_name_and_is_swept(tmp_path: Path) -> None:
    data = archive_of({"d": {"f": b"x" * 2000}, "g": b"y"})
    async with open_door() as door:
        with await door.files.names.entry(str(tmp_path / "out")) as entry:
            async with door.files.archives.open_unpack(entry, unpack_spec(tmp_path / "out"), timeout_s=20) as unpacking:
                await unpacking.write(data[:4096])
                while not list(tmp_path.glob("*/d/f")):
                    await trio.lowlevel.checkpoint()
                for pid in workers(door):
                    os.kill(pid, signal.SIGKILL)
                with pytest.raises(FileError, match="was ended"):
                    await unpacking.finish()
        (left,) = os.listdir(tmp_path)
        assert hidden.is_part(left)
        await unpack_to(door, tmp_path / "other", data)
        with await door.files.resolve(str(tmp_path), read=True) as found:
            await door.files.trees.run("sweep", "", {"limit": 100}, (found.directory(),), timeout_s=20)
    assert os.listdir(tmp_path) == ["other"]


async def test_an_archive_under_way_is_not_swept_nor_packed(tmp_path: Path) -> None:
    data = archive_of({"d": {"f": b"x" * 2000}, "g": b"y"})
    async with open_door() as door:
        with await door.files.names.entry(str(tmp_path / "out")) as entry:
            async with door.files.archives.open_unpack(entry, unpack_spec(tmp_path / "out"), timeout_s=20) as unpacking:
                await unpacking.write(data[:4096])
                while not list(tmp_path.glob("*/d/f")):
                    await trio.lowlevel.checkpoint()
                packed, summary = await pack_from(door, tmp_path)
                assert (len(packed), summary.left_out_count) == (1024, 1)
                with await door.files.resolve(str(tmp_path), read=True) as found:
                    await door.files.trees.run("sweep", "", {"limit": 100}, (found.directory(),), timeout_s=20)
                await unpacking.write(data[4096:])
                await unpacking.finish()
    assert tree_of(tmp_path) == {"out": {"d": {"f": b"x" * 2000}, "g": b"y"}}


@needs_root
async def test_a_full_disk_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as disk:
        async with open_door() as door:
            with pytest.raises(NoSpace, match=r"'large' has 100000 bytes and \d+ are free"):
                await unpack_to(door, disk / "out", archive_of({"small": b"x" * 5000, "large": b"x" * 100_000}))
            many: Tree = {f"{i}": b"x" * 100 for i in range(100)}
            with pytest.raises(NoSpace):
                await unpack_to(door, disk / "out", archive_of(many))
            assert not os.listdir(disk)
            await unpack_to(door, disk / "out", archive_of({"fits": b"x" * 5000}))
        assert tree_of(disk) == {"out": {"fits": b"x" * 5000}}


@needs_root
async def test_everything_belongs_to_the_session_user_whoever_packed_it(tmp_path: Path) -> None:
    reachable(tmp_path)
    data = archive_of({"d": {"f": b"x"}}, uid=0, gid=0, uname="root", gname="root")
    async with open_door(uid=OTHER_UID) as door:
        await unpack_to(door, tmp_path / "out", data)
    assert {path.stat().st_uid for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))} == {OTHER_UID}


async def test_a_directory_that_is_moved_meanwhile_gets_nothing(tmp_path: Path) -> None:
    """What was decided on is a path: where it no longer leads there, the decision is void."""
    (tmp_path / "folder").mkdir()
    async with open_door() as door:
        with await door.files.names.entry(str(tmp_path / "folder/out")) as entry:
            async with door.files.archives.open_unpack(
                entry, unpack_spec(tmp_path / "folder/out"), timeout_s=20
            ) as unpacking:
                await unpacking.write(archive_of({"f": b""}))
                (tmp_path / "folder").rename(tmp_path / "moved")
                with pytest.raises(FileError, match="was moved meanwhile"):
                    await unpacking.finish()
    assert tree_of(tmp_path) == {"moved": {}}


async def test_a_link_that_is_planted_in_the_growing_tree_is_not_followed(tmp_path: Path) -> None:
    """A command of the same session may write there: it gains nothing by it."""
    outside = plant(tmp_path / "outside", {"f": b"precious"})
    data = archive_of({"a": {}, "b": {"f": b"evil" * 1000}})
    (tmp_path / "place").mkdir()
    async with open_door() as door:
        with await door.files.names.entry(str(tmp_path / "place/out")) as entry:
            async with door.files.archives.open_unpack(
                entry, unpack_spec(tmp_path / "place/out"), timeout_s=20
            ) as unpacking:
                await unpacking.write(data[:512])
                while not (found := list((tmp_path / "place").glob("*/a"))):
                    await trio.lowlevel.checkpoint()
                (found[0].parent / "b").symlink_to(outside)
                await unpacking.write(data[512:])
                with pytest.raises(BadArchive):
                    await unpacking.finish()
    assert tree_of(tmp_path) == {"outside": {"f": b"precious"}, "place": {}}


def peak_bytes(pid: int) -> int:
    """The most memory that a process had; nothing of one that has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


@pytest.mark.bounded(120)
async def test_memory_is_one_buffer_whatever_goes_through(tmp_path: Path) -> None:
    """A file of 24 MiB, and a name list that is longer than the buffer."""
    source = plant(tmp_path / "source", {f"{i:0200}": b"" for i in range(500)})
    with (source / "large").open("wb") as file:
        file.truncate(24 << 20)
    async with open_door() as door:
        idle = peak_bytes(door.opener.pid)
        with (
            await door.files.resolve(str(source), read=True) as found,
            await door.files.names.entry(str(tmp_path / "out")) as entry,
        ):
            async with (
                door.files.archives.open_pack(found, pack_spec(source), timeout_s=60) as packing,
                door.files.archives.open_unpack(entry, unpack_spec(tmp_path / "out"), timeout_s=60) as unpacking,
            ):
                peaks = [idle]
                async for piece in packing:
                    peaks += [peak_bytes(pid) for pid in workers(door)]
                    await unpacking.write(piece)
                await unpacking.finish()
    assert max(peaks) - idle < 16 << 20
    assert (tmp_path / "out/large").stat().st_size == 24 << 20
