"""Archives as a session has them: the policy is asked about the place and each path, quota and limits hold."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker.contract.errors import BrokerError, ErrorCode
from broker.decisions import Denied
from broker.failures import failure_of
from broker.scope import Scope
from broker.session.archives import ArchiveSink, ArchiveSource
from broker.tools.transfers import open_archive_sink, open_archive_source
from sandbox.files.errors import BadArchive, Exists, HoldsClosedPaths, NotEmpty, NotFound, TooLarge, WrongKind
from tests.broker.tools.test_treetools import Desk, open_desk
from tests.broker.tools.test_treetools_disk import later
from tests.sandbox.files.test_sandbox_files_write import small_disk
from tests.support.door import needs_root
from tests.support.tarbytes import archive_of
from transfers.refusals import ArchiveTooLarge, QuotaExceeded
from transfers.upload_state import Declared

T = TypeVar("T")
POLICY = """
policy:
  allowed_paths: ["~/**", "{work}/**"]
  blocked_paths: ["**/.ssh/**", "**/secret"]
  file_limits:
    max_write_size: 8192
    max_session_bytes: 60000
    min_free_bytes: 0
    archive_max_entries: 20
    archive_max_bytes: 30720
    blocked_extensions: [exe]
"""


def scope_of(desk: Desk) -> Scope:
    host = desk.whole.gateway._host
    return Scope(host=host, principal="me", session=host.supervisor.get("me", desk.sid))


async def inside(desk: Desk, work: Callable[..., Awaitable[T]], *args: Any) -> T:
    """As a child of the session, as every tool is."""
    return await scope_of(desk).session.call(work, *args)


async def packed(desk: Desk, path: Path) -> tuple[bytes, ArchiveSource]:
    async def work() -> tuple[bytes, ArchiveSource]:
        source = await open_archive_source(scope_of(desk), str(path), gzip=False)
        try:
            data = b""
            async with source.pieces(0, None) as pieces:
                while piece := await pieces.next():
                    data += piece
                    source.sent(0, len(piece))
            assert await source.settle()
            return data, source
        finally:
            source.close()

    return await inside(desk, work)


async def unpacked(desk: Desk, path: Path, data: bytes) -> ArchiveSink:
    async def work() -> ArchiveSink:
        sink = await open_archive_sink(scope_of(desk), str(path), Declared(), gzip=False)
        try:
            for at in range(0, len(data), 1000):
                await sink.write(data[at : at + 1000])
            sha256 = await sink.finish()
            assert sha256 == hashlib.sha256(data).hexdigest() == await sink.finish()
            return sink
        finally:
            await sink.abort("the test is over")

    return await inside(desk, work)


def used(desk: Desk) -> int:
    return scope_of(desk).own.transfers.quota.used_bytes


async def test_a_directory_goes_out_and_comes_back(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        desk.plant(a__f="1", a__d__g="22", a___DOT_ssh__key="no", a__run_DOT_exe="may be read")
        desk.put("a/d/secret")
        (desk.work / "a/link").symlink_to("/etc")
        data, source = await packed(desk, desk.work / "a")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == ["d", "d/g", "f", "run.exe"]
        assert source.summary is not None
        assert {name for name, _ in source.summary.left_out} == {".ssh", "link", "d/secret"}
        assert (source.sha256, source.sent_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert (source.size_bytes, source.tag) == (None, "")
        with pytest.raises(HoldsClosedPaths, match=r"'run\.exe' closed to writing"):
            await unpacked(desk, desk.work / "b", data)
        (desk.work / "a/run.exe").unlink()
        sink = await unpacked(desk, desk.work / "b", (await packed(desk, desk.work / "a"))[0])
        assert sink.summary is not None
        assert (sink.summary.files, sink.summary.directories, sink.summary.content_bytes) == (2, 1, 3)
        assert desk.tree() >= {"b", "b/f", "b/d/g"}
        assert used(desk) == 3
        owner = desk.whole.foundation.user.uid
        assert {path.stat().st_uid for path in (desk.work / "b").rglob("*")} == {owner}


async def test_places_that_are_closed_taken_or_the_sessions_own_are_refused(tmp_path: Path) -> None:
    data = archive_of({"f": b"x"})
    async with open_desk(tmp_path, policy=POLICY) as desk:
        desk.plant(file="x", full__f="x")
        desk.put("d/secret/f")
        (desk.work / "empty").mkdir()
        (desk.work / "link").symlink_to("empty")
        desk.give()
        before = desk.tree()
        for path, error in (
            (Path("/etc/new"), Denied),
            (desk.work / "secret", Denied),
            (desk.work / "d/.ssh", Denied),
            (desk.work, Denied),
            (desk.work / "missing/new", NotFound),
            (desk.work / "file", Exists),
            (desk.work / "link", Exists),
            (desk.work / "full", NotEmpty),
        ):
            with pytest.raises(error):
                await unpacked(desk, path, data)
        for source, refusal in (
            (Path("/etc"), Denied),
            (desk.work / "d/secret", Denied),
            (desk.work / "file", WrongKind),
        ):
            with pytest.raises(refusal):
                await packed(desk, source)
        assert desk.tree() == before
        assert used(desk) == 0
        await unpacked(desk, desk.work / "empty", data)
        assert desk.tree() == before | {"empty/f"}


async def test_limits_hold_and_what_was_refused_is_not_on_the_account(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        small = archive_of({"f": b"x" * 8000})
        for data, error in (
            (archive_of({"f": b"x" * 9000}), TooLarge),
            (archive_of({f"{i}": b"" for i in range(21)}), TooLarge),
            (archive_of({f"{i}": b"x" * 7000 for i in range(6)}), TooLarge),
            (b"garbage" * 1000, BadArchive),
            (small[:5000], BadArchive),
        ):
            with pytest.raises(error) as caught:
                await unpacked(desk, desk.work / "new", data)
            assert failure_of(caught.value, "").code in {ErrorCode.FILE_TOO_LARGE, ErrorCode.INVALID_ARGUMENTS}
            assert (desk.tree(), used(desk)) == (set(), 0)
        for number in range(6):
            await unpacked(desk, desk.work / f"{number}", small)
        assert used(desk) == 48_000
        with pytest.raises(QuotaExceeded):
            await unpacked(desk, desk.work / "more", archive_of({f"{i}": b"x" * 8000 for i in range(2)}))
        assert used(desk) == 48_000
        assert not (desk.work / "more").exists()


async def test_a_directory_that_is_too_much_for_an_archive_is_said_so(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY) as desk:
        for number in range(21):
            desk.put(f"many/{number}")
        for number in range(4):
            desk.put(f"large/{number}", b"x" * 8192)
        for name in ("many", "large"):
            with pytest.raises(ArchiveTooLarge) as caught:
                await packed(desk, desk.work / name)
            assert failure_of(caught.value, "").code is ErrorCode.FILE_TOO_LARGE


async def test_a_sink_that_was_cut_off_takes_the_archive_from_its_beginning(tmp_path: Path) -> None:
    data = archive_of({"f": b"x" * 5000})
    async with open_desk(tmp_path, policy=POLICY) as desk:

        async def work() -> None:
            sink = await open_archive_sink(scope_of(desk), str(desk.work / "new"), Declared(), gzip=False)
            await sink.write(data[:4000])
            assert (sink.received_bytes, used(desk)) == (4000, 4000)
            await sink.abort("cut")
            assert (sink.received_bytes, used(desk), desk.tree()) == (0, 0, set())

        await inside(desk, work)
        await unpacked(desk, desk.work / "new", data)
        assert desk.tree() == {"new", "new/f"}


async def test_the_end_of_a_session_throws_away_what_is_half_unpacked(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    async with open_desk(tmp_path, policy=POLICY) as desk:
        sinks: list[ArchiveSink] = []

        async def work() -> None:
            sinks.append(await open_archive_sink(scope_of(desk), str(desk.work / "new"), Declared(), gzip=False))
            await sinks[0].write(archive_of({"d": {"f": b"x" * 5000}})[:4000])

        await inside(desk, work)
        await desk.ok("kill_session")
        assert desk.tree() == set()
        sinks[0].close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@needs_root
async def test_a_full_disk_is_told_with_its_numbers(tmp_path: Path) -> None:
    async with open_desk(tmp_path, policy=POLICY.replace("60000", "10000000").replace("8192", "1000000")) as desk:
        (desk.work / "disk").mkdir()
        with small_disk(desk.work / "disk"):
            desk.put("disk/f", b"x" * 50_000)
            desk = await later(desk)  # noqa: PLW2901  the one with the disk in its mounts
            with pytest.raises(BrokerError, match="bytes are to be written") as caught:
                await unpacked(desk, desk.work / "disk/new", archive_of({"a": b"x" * 100, "f": b"x" * 20_000}))
            assert caught.value.code is ErrorCode.FILE_WRITE_ERROR
            assert caught.value.details["needed_bytes"] == 20_100
            assert desk.tree() == {"disk", "disk/f"}
            assert used(desk) == 0
