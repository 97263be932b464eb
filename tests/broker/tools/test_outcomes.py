"""What is said when nobody knows whether a change was made: never that it was not."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from broker.contract.errors import ErrorCode
from broker.failures import failure_of
from broker.session.resources import PartDestination
from broker.tools.rules import told_what_it_makes
from sandbox.files.disk import Disk
from sandbox.files.errors import OutcomeUnknown, RanShort, from_errno
from sandbox.files.files import Work
from sandbox.kernel.files import STEP_BYTES
from tests.sandbox.files.test_sandbox_treework import OPEN_RULES, copy_tree
from tests.support.door import ANYTHING, AT_THE_FLUSH, FATAL, FAULT, Door, failing, open_door
from tests.transfers.test_transfers_upload_ends import files_limited_to
from tests.transfers.test_transfers_uploads import SETTINGS
from transfers.refusals import UploadInDoubt
from transfers.store import open_transfers
from transfers.upload import Cause, Discarded

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DIES = FAULT.format(**AT_THE_FLUSH, answer=FATAL)
CANNOT = FAULT.format(**AT_THE_FLUSH, answer=failing(errno.EMFILE))
BAD_FSYNC = FAULT.format(call="fsync", **ANYTHING, answer=failing(errno.EIO))
FATAL_FSYNC = FAULT.format(call="fsync", **ANYTHING, answer=FATAL)
Strike = Callable[[], None]


def nothing() -> None:
    """Let the change be."""


async def write(door: Door, folder: Path, strike: Strike = nothing) -> None:
    with await door.files.place(str(folder / "file")) as place:
        async with await door.files.part(place) as part:
            await part.fill(b"new")
            strike()
            with told_what_it_makes(b"new"):
                await part.commit()


async def move(door: Door, folder: Path, strike: Strike = nothing) -> None:
    with (
        await door.files.names.entry(str(folder / "file")) as source,
        await door.files.names.entry(str(folder / "moved")) as target,
    ):
        strike()
        await door.files.names.rename(source, target, replace=False)


async def remove(door: Door, folder: Path, strike: Strike = nothing) -> None:
    with await door.files.names.entry(str(folder / "file")) as entry:
        strike()
        await door.files.names.remove(entry)


async def make(door: Door, folder: Path, strike: Strike = nothing) -> None:
    with await door.files.resolve(str(folder)) as parent:
        strike()
        made, _ = await door.files.names.make(parent, "made")
        made.close()


Change = Callable[..., Awaitable[None]]
each_change = pytest.mark.parametrize(
    ("change", "left"),
    [
        pytest.param(write, {"file": "new"}, id="write"),
        pytest.param(move, {"moved": "old"}, id="move"),
        pytest.param(remove, {}, id="remove"),
        pytest.param(make, {"file": "old", "made": None}, id="make"),
    ],
)
OLD = {"file": "old"}
ONE_MORE = 4  # the standard ones, and the one of a request; what the opener began with does not count


def contents(folder: Path) -> dict[str, str | None]:
    return {path.name: path.read_text() if path.is_file() else None for path in folder.iterdir()}


@pytest.mark.once
@pytest.mark.parametrize("fault", [DIES, CANNOT], ids=["dies after it", "cannot answer"])
@each_change
async def test_a_change_that_was_made_is_never_said_not_to_be(
    tmp_path: Path, change: Change, left: dict[str, str | None], fault: str
) -> None:
    (tmp_path / "file").write_text("old")
    async with open_door(fault=fault) as door:
        with pytest.raises(OutcomeUnknown) as caught:
            await change(door, tmp_path)
    assert contents(tmp_path) == left
    failure = failure_of(caught.value, "i")
    assert (failure.code, failure.code.retryable) == (ErrorCode.FILE_OUTCOME_UNKNOWN, False)
    assert str(failure.details["path"]).startswith(str(tmp_path))


async def test_a_directory_that_was_made_and_cannot_be_looked_at_is_not_said_to_have_failed(tmp_path: Path) -> None:
    async with open_door(open_files=ONE_MORE) as door:
        with pytest.raises(OutcomeUnknown) as caught:
            await make(door, tmp_path)
        assert contents(tmp_path) == {"made": None}
        with pytest.raises(RanShort):  # the control: this one was there before
            await make(door, tmp_path)
    assert caught.value.errno_name == "EMFILE"


@pytest.mark.once
@each_change
async def test_a_change_that_may_still_come_is_not_said_to_have_failed(
    tmp_path: Path, change: Change, left: dict[str, str | None]
) -> None:
    (tmp_path / "file").write_text("old")
    async with open_door() as door:
        with pytest.raises(OutcomeUnknown, match="no answer in"):
            await change(door, tmp_path, door.stop)
        assert contents(tmp_path) == OLD
        door.go_on()
        with await door.files.names.entry(str(tmp_path / "x")):  # served one after the other
            assert contents(tmp_path) == left


class BadDisk(Disk):
    """A disk that fails to flush directories."""

    async def run(self, asked: str, call: Callable[[*Ts], T], *args: *Ts) -> T:
        result = await super().run(asked, call, *args)
        if call is os.fsync or call.__name__ == "_flush_all":
            raise from_errno(asked, errno.EIO)
        return result


@each_change
async def test_a_change_whose_directory_cannot_be_flushed_may_not_last(
    tmp_path: Path, change: Change, left: dict[str, str | None]
) -> None:
    (tmp_path / "file").write_text("old")
    async with open_door(disk=BadDisk()) as door:
        with pytest.raises(OutcomeUnknown, match="power cut") as caught:
            await change(door, tmp_path)
    assert contents(tmp_path) == left
    details = failure_of(caught.value, "i").details
    if change is write:  # what to compare the file with
        assert (details["size_bytes"], str(details["sha256"])[:8]) == (3, "11507a0e")
    assert details["errno_name"] == "EIO"


async def test_what_fails_before_the_change_is_said_to_have_failed(tmp_path: Path) -> None:
    """The control: an error that is known to have changed nothing stays what it was."""
    (tmp_path / "file").write_text("old")
    async with open_door() as door:
        with await door.files.place(str(tmp_path / "file")) as place:
            async with await door.files.part(place) as part:
                (tmp_path / "file").unlink()
                (tmp_path / "file").mkdir()
                with pytest.raises(Exception) as caught:
                    await part.commit()
    assert not isinstance(caught.value, OutcomeUnknown)


async def remove_tree(door: Door, folder: Path) -> Work:
    with await door.files.names.entry(str(folder)) as entry:
        assert entry.existing is not None
        rules = {"rules": OPEN_RULES, "link_roots": [str(folder)]}
        spec = {**rules, "name": entry.name, "identity": [*entry.existing.identity]}
        return await door.files.trees.run("remove", str(folder), spec, (entry.fd,), timeout_s=20, changes=True)


@pytest.mark.once
@pytest.mark.parametrize("fault", [BAD_FSYNC, FATAL_FSYNC], ids=["fails", "dies"])
async def test_a_worker_that_ends_at_the_flush_has_made_its_change(tmp_path: Path, fault: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("old")
    async with open_door(fault=fault) as door:
        with pytest.raises(OutcomeUnknown):
            await copy_tree(door, tree, tmp_path / "copy")
        assert contents(tmp_path / "copy") == OLD
        with pytest.raises(OutcomeUnknown, match="2 entries" if fault == BAD_FSYNC else None):
            await remove_tree(door, tree)
        assert not tree.exists()


async def test_an_append_that_cannot_be_taken_back_is_not_said_to_have_left_the_file_as_it_was() -> None:
    """The first step fits, the second does not, and the file may not be cut."""
    fd = os.memfd_create("file", os.MFD_ALLOW_SEALING)
    try:
        with files_limited_to(STEP_BYTES + 10):
            with pytest.raises(Exception) as whole:
                await Disk().append("file", fd, bytes(STEP_BYTES + 20))
            assert (isinstance(whole.value, OutcomeUnknown), os.fstat(fd).st_size) == (False, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            with pytest.raises(OutcomeUnknown, match=f"{STEP_BYTES + 10} of {STEP_BYTES + 20} bytes"):
                await Disk().append("file", fd, bytes(STEP_BYTES + 20))
        assert os.fstat(fd).st_size == STEP_BYTES + 10
    finally:
        os.close(fd)


@pytest.mark.once
async def test_an_upload_that_was_put_in_place_is_never_said_not_to_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    discarded: list[Discarded] = []
    limiter = trio.CapacityLimiter(1)
    async with (
        open_door(fault=DIES) as door,
        open_transfers(SETTINGS, limiter=limiter, on_discard=discarded.append) as transfers,
    ):
        uploads = transfers.uploads
        with await door.files.place(str(file)) as place:
            destination = PartDestination(await door.files.part(place), nullcontext)
        begun = await uploads.begin(str(file), destination, offset=0, data=b"ne", is_last=False)
        for _ in range(2):  # who repeats the last chunk is told the same
            with pytest.raises(UploadInDoubt) as caught:
                await uploads.resume(begun.transfer_id, str(file), offset=2, data=b"w", is_last=True)
    assert file.read_text() == "new"
    failure = failure_of(caught.value, "i")
    assert failure.code is ErrorCode.FILE_OUTCOME_UNKNOWN
    known = failure.details["path"], failure.details["size_bytes"], str(failure.details["sha256"])[:8]
    assert known == (str(file), 3, "11507a0e")
    assert [(gone.cause, gone.leftover) for gone in discarded] == [(Cause.IN_DOUBT, "")]
