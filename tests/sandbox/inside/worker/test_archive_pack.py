"""A packed directory is what real tar programs unpack to the same tree; what does not belong in it is told."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from sandbox.files.errors import Changed, FileError, TooLarge
from sandbox.inside.worker.tar import BROKEN_OFF, member
from sandbox.inside.worker.tar_pipe import CHUNK_BYTES
from sandbox.kernel.files import Refused
from tests.support.archiving import (
    CLOSED_SECRETS,
    extract_all,
    pack_from,
    pack_here,
    pack_spec,
    plant,
    tree_of,
    unpack_here,
)
from tests.support.door import OTHER_UID, Door, needs_root, open_door, reachable

EIGHT_GIB = 8 << 30
LONG = "n" * 200
NAMES = (
    "plain",
    "with space\nand newline",
    "ü€😀",
    "caf\udce9",  # latin-1 on the disk: no UTF-8
    "-rf",
    "a" * 100,
    "ä" * 60,
    LONG,
    "\udcff" * 200,
    f"d/{'e' * 99}",
    f"{LONG}d/{LONG}/{LONG}/ü",
    f"{LONG}d/{LONG}/\udcff",
)


def extract_with_tar(data: bytes, folder: Path, locale: str = "C.UTF-8") -> subprocess.CompletedProcess[bytes]:
    folder.mkdir()
    command = ["tar", "--extract", "--preserve-permissions", "--no-same-owner", "--file=-"]
    return subprocess.run(command, input=data, cwd=folder, capture_output=True, env={"LC_ALL": locale}, check=False)


def plant_names(folder: Path, names: Iterable[str] = NAMES) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number * 511))
    (folder / "empty").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_gnu_tar_restores_every_name_byte_for_byte(tmp_path: Path, locale: str) -> None:
    source = plant_names(tmp_path / "source")
    data, done = pack_here(source)
    said = extract_with_tar(data, tmp_path / "out", locale)
    assert (said.returncode, said.stderr) == (0, b"")
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert done.counts["files"] == len(NAMES)
    assert done.counts["bytes"] == len(data)
    assert len(data) % 512 == 0


def test_pythons_tarfile_restores_every_name(tmp_path: Path) -> None:
    source = plant_names(tmp_path / "source")
    with tarfile.open(fileobj=io.BytesIO(pack_here(source)[0])) as archive:
        extract_all(archive, tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(source)


def test_modes_and_times_are_kept_and_owners_are_not(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {"d": {"f": b"x"}, "s": b"", "old": b"", "far": b""})
    (source / "d/f").chmod(0o640)
    (source / "s").chmod(0o6755)
    (source / "d").chmod(0o1750)
    os.utime(source / "d/f", ns=(0, 1_600_000_000_999_999_999))
    os.utime(source / "d", (0, 86_400))
    os.utime(source / "old", (0, -86_400))
    os.utime(source / "far", (0, 2**33 + 5))
    data, _ = pack_here(source)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {one.name: one for one in archive}
    assert all((one.uid, one.gid, one.uname, one.gname) == (0, 0, "", "") for one in found.values())
    assert {name: one.mode for name, one in found.items() if name not in {"far", "old"}} == {
        "d": 0o750,
        "d/f": 0o640,
        "s": 0o755,
    }
    said = extract_with_tar(data, tmp_path / "out")
    assert said.returncode == 0
    times = {name: (tmp_path / "out" / name).stat().st_mtime for name in ("d", "d/f", "old", "far")}
    assert times == {"d": 86_400, "d/f": 1_600_000_000, "old": -86_400, "far": 2**33 + 5}


def test_the_order_is_the_same_each_time(tmp_path: Path) -> None:
    names = [f"{i:03}" for i in range(60)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            plant(tmp_path / folder, {name: {"f": b"x"}})
            os.utime(tmp_path / folder / name / "f", (1, 1))
            os.utime(tmp_path / folder / name, (1, 1))
    assert pack_here(tmp_path / "one")[0] == pack_here(tmp_path / "two")[0]


def test_what_is_no_file_or_directory_is_left_out_and_named(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {"f": b"x", "outside": {}})
    (source / "link").symlink_to("/etc/passwd")
    (source / "folder link").symlink_to("/etc")
    os.mkfifo(source / "fifo")
    os.mknod(source / "socket", stat.S_IFSOCK)
    data, done = pack_here(source)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["f", "outside"]
    left_out = [
        ["fifo", "it is a fifo"],
        ["folder link", "it is a symlink"],
        ["link", "it is a symlink"],
        ["socket", "it is a socket"],
    ]
    assert (done.counts["left_out"], done.done["left_out"]) == (4, left_out)


def test_closed_paths_and_other_names_of_closed_files_are_left_out(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {".ssh": {"key": b"1"}, "d": {"secret": b"2", "f": b"3"}, "twin": b"4"})
    (source / "innocent").hardlink_to(source / "d/secret")
    (source / "sibling").hardlink_to(source / "twin")
    data, done = pack_here(source, rules=CLOSED_SECRETS)
    unpack_here(data, tmp_path / "out")
    assert tree_of(tmp_path / "out") == {"d": {"f": b"3"}, "sibling": b"4", "twin": b"4"}
    assert {name for name, _ in done.done["left_out"]} == {".ssh", "d/secret", "innocent"}
    assert done.counts["left_out"] == 3
    # Without the rule all of it is there: it is the policy that keeps it out.
    assert b"4" in pack_here(source)[0]
    assert pack_here(source)[1].counts.get("left_out", 0) == 0


@needs_root
async def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    source = plant(reachable(tmp_path) / "source", {"f": b"x", "mine": b"y", "shut": {"g": b"z"}})
    (source / "mine").chmod(0o600)
    (source / "shut").chmod(0o700)
    async with open_door(uid=OTHER_UID) as door:
        data, summary = await pack_from(door, source)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["f", "shut"]
    assert summary.left_out_count == 2
    assert [name for name, _ in summary.left_out] == ["mine", "shut"]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [({"max_entries": 3}, "archive_max_entries, 3"), ({"max_bytes": 6000}, "archive_max_bytes, 6000")],
)
def test_the_caps_on_entries_and_bytes_hold(tmp_path: Path, fields: dict[str, Any], limit: str) -> None:
    source = plant(tmp_path / "source", dict.fromkeys("abcd", b"x" * 600))
    with pytest.raises(Refused, match=limit) as caught:
        pack_here(source, **fields)
    assert (caught.value.kind, caught.value.number) == ("too_large", errno.EFBIG)
    enough = {"max_entries": 4} if "max_entries" in fields else {"max_bytes": 4 * (512 + 1024) + 1024}
    assert pack_here(source, **enough)[1].counts["files"] == 4


async def test_an_archive_that_breaks_off_between_files_is_no_archive_to_any_program(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", dict.fromkeys("abcd", b"x" * (CHUNK_BYTES // 2)))
    async with open_door() as door:
        data, error = await break_off(door, source, max_entries=3)
        # What fails before a byte went out is told instead, and there is nothing that could be taken for an archive.
        none, _ = await break_off(door, source, max_entries=1)
    assert none == b""
    assert isinstance(error, TooLarge)
    assert data.endswith(BROKEN_OFF)
    assert extract_with_tar(data, tmp_path / "out").returncode != 0
    # The control: an archive that merely stops passes for whole.
    assert extract_with_tar(data.removesuffix(BROKEN_OFF), tmp_path / "other").returncode == 0


async def break_off(
    door: Door, source: Path, meanwhile: Callable[[], None] = lambda: None, **fields: Any
) -> tuple[bytes, FileError]:
    """Read an archive that fails; *meanwhile* happens after its first piece."""
    data = b""
    with await door.files.resolve(str(source), read=True) as found:
        async with door.files.archives.open_pack(found, pack_spec(source, **fields), timeout_s=20) as packing:
            try:
                async for piece in packing:
                    if not data:
                        meanwhile()
                    data += piece
            except FileError as error:
                with pytest.raises(LookupError):
                    str(packing.summary)
                with pytest.raises(type(error)):
                    await anext(packing)
                return data, error
    pytest.fail("it came to its end")


@pytest.mark.parametrize("how", ["grow", "shrink", "touch", "replace content"])
async def test_a_file_that_changes_while_it_is_packed_breaks_the_archive_in_it(tmp_path: Path, how: str) -> None:
    size = 8 << 20  # more than the pipe and the pieces under way hold, so that it is half read
    source = plant(tmp_path / "source", {"a": b"first", "b": b"x" * size, "c": b"last"})
    async with open_door() as door:
        data, error = await break_off(door, source, lambda: change(source / "b", how))
    assert isinstance(error, Changed)
    assert "'b' was changed while it was packed" in error.sentence
    said = extract_with_tar(data, tmp_path / "out")
    assert said.returncode != 0
    assert b"Unexpected EOF" in said.stderr


def change(path: Path, how: str) -> None:
    size = path.stat().st_size
    match how:
        case "grow":
            with path.open("ab") as file:
                file.write(b"more")
        case "shrink":
            os.truncate(path, size - 1)
        case "touch":
            os.utime(path, (1, 1))
        case _:
            with path.open("r+b") as file:
                file.seek(size - 1)
                file.write(b"y")


@pytest.mark.parametrize("name", [b"large", b"l" * 200, b"\xff" * 200])
def test_files_of_more_than_eight_gib_have_their_size_in_a_record(name: bytes) -> None:
    size = EIGHT_GIB + 5
    header = member(name, directory=False, size=size, mode=0o644, mtime_s=-7)
    with tarfile.open(fileobj=io.BytesIO(header)) as archive:
        found = archive.next()
    assert found is not None
    assert (os.fsencode(found.name), found.size, found.mtime) == (name, size, -7)
    listed = subprocess.run(
        ["tar", "--list", "--verbose", "--quoting-style=literal", "--file=-"],
        input=header,
        capture_output=True,
        check=False,
    )
    assert str(size).encode() in listed.stdout
    assert name in listed.stdout


async def test_gzip_is_what_gzip_unpacks(tmp_path: Path) -> None:
    source = plant_names(tmp_path / "source")
    async with open_door() as door:
        data, summary = await pack_from(door, source, gzip=True)
        again, _ = await pack_from(door, source, gzip=True)
    assert data == again
    plain = subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True).stdout
    assert extract_with_tar(plain, tmp_path / "out").returncode == 0
    assert tree_of(tmp_path / "out") == tree_of(source)
    assert summary.content_bytes == len(plain) > len(data)


async def test_an_archive_nobody_reads_to_its_end_leaves_no_worker(tmp_path: Path) -> None:
    source = plant(tmp_path / "source", {"a": bytes(16 << 20)})
    async with open_door() as door:
        before = set(os.listdir("/proc/self/fd"))
        with await door.files.resolve(str(source), read=True) as found:
            async with door.files.archives.open_pack(found, pack_spec(source), timeout_s=60) as packing:
                assert await anext(packing)
        children = Path(f"/proc/{door.opener.pid}/task/{door.opener.pid}/children").read_text()
        assert not children.split()
        assert set(os.listdir("/proc/self/fd")) == before
