"""Files are hashed by workers inside the walls: right, in bounded steps, and gone or quiet with whoever asked."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from sandbox import wire
from sandbox.files.errors import AccessDenied, FileError, OpenerGone, WriteFailed
from sandbox.files.hashes import HASHERS, PIECE_BYTES, FileHash, _Worker
from tests.sandbox.files.test_sandbox_treework import workers
from tests.support.door import OTHER_UID, Door, descriptors, needs_landlock, needs_root, open_door, reachable

MIB = 1024 * 1024
HUGE = 64 << 30


def sparse(path: Path, size_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def sha256sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


async def whole(door: Door, path: Path) -> str:
    async with opened(path) as fd:
        length, sha256 = await door.files.hashes.whole(str(path), fd, path.stat().st_size)
    assert length == path.stat().st_size
    return sha256


def state(pid: int) -> str:
    """As the kernel has it; Z also for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


async def gone(pid: int) -> None:
    with trio.fail_after(30):
        while state(pid) != "Z":
            await trio.lowlevel.checkpoint()


async def begun(hashing: FileHash, behind: int = 0) -> None:
    with trio.fail_after(30):
        while hashing._worker is None or hashing._worker.at <= behind:
            await trio.lowlevel.checkpoint()


async def at_work(door: Door) -> list[int]:
    with trio.fail_after(30):
        while not (pids := workers(door)):
            await trio.lowlevel.checkpoint()
    return pids


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("size_bytes", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 17])
async def test_a_file_has_the_sha256_that_it_has(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size_bytes))
    async with open_door() as door:
        before = descriptors()
        assert await whole(door, path) == sha256sum(path)
        assert descriptors() == before
        with trio.fail_after(30):
            while workers(door):
                await trio.lowlevel.checkpoint()


@needs_root
@needs_landlock
async def test_where_the_fast_library_cannot_be_read_pythons_own_hashes(tmp_path: Path) -> None:
    """Walls around one folder: nothing of the interpreter can be loaded any more."""
    path = reachable(tmp_path) / "file"
    path.write_bytes(os.urandom(2 * MIB))
    async with open_door(uid=OTHER_UID, walls=tmp_path) as door, opened(path) as fd, trio.open_nursery() as nursery:
        hashing = door.files.hashes.of(str(path))
        with closing(hashing):
            assert await hashing.upto(fd, MIB) == (MIB, hashlib.sha256(path.read_bytes()[:MIB]).hexdigest())
            (pid,) = workers(door)
            assert "libcrypto" not in Path(f"/proc/{pid}/maps").read_text()
            assert await hashing.upto(fd, 2 * MIB) == (2 * MIB, sha256sum(path))
        nursery.cancel_scope.cancel()


async def test_who_was_cut_off_goes_on_where_the_hash_stood_and_nobody_works_meanwhile(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large", HUGE)
    async with open_door() as door, opened(path) as fd:
        with closing(door.files.hashes.of(str(path))) as hashing:
            stood = [(0, [0])]
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hashing.upto, fd, HUGE)
                    await begun(hashing, behind=stood[-1][0])
                    nursery.cancel_scope.cancel()
                assert hashing._worker is not None
                stood.append((hashing._worker.at, workers(door)))
            assert stood[1][1] == stood[2][1] == stood[3][1]
            (pid,) = workers(door)
            with trio.fail_after(30):  # it waits in a receive, behind its piece
                while state(pid) != "S":
                    await trio.lowlevel.checkpoint()
            used_s = cpu_s(pid)
            await trio.to_thread.run_sync(time.sleep, 0.3)
            assert cpu_s(pid) == used_s
            at = hashing._worker.at if hashing._worker else 0
            length, sha256 = await hashing.upto(fd, at + PIECE_BYTES)
            assert (length, sha256) == (at + PIECE_BYTES, hashlib.sha256(bytes(at + PIECE_BYTES)).hexdigest())
        await gone(pid)


async def test_a_worker_ends_with_its_hash_stopped_or_not(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large", HUGE)
    async with open_door() as door, opened(path) as fd:
        for stopped in (False, True):
            hashing = door.files.hashes.of(str(path))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hashing.upto, fd, HUGE)
                (pid,) = await at_work(door)
                await begun(hashing)
                if stopped:
                    os.kill(pid, signal.SIGSTOP)
                nursery.cancel_scope.cancel()
            hashing.close()
            await gone(pid)


async def test_a_worker_that_does_nothing_is_not_waited_for_twice(tmp_path: Path) -> None:
    """Whoever can stop it: the call has its limit, and the next one another worker."""
    path = sparse(tmp_path / "large", 3 * PIECE_BYTES)
    async with open_door() as door, opened(path) as fd:
        with closing(door.files.hashes.of(str(path))) as hashing:
            await hashing.upto(fd, PIECE_BYTES)
            (pid,) = workers(door)
            os.kill(pid, signal.SIGSTOP)
            with trio.move_on_after(0.3) as limit:
                await hashing.upto(fd, 3 * PIECE_BYTES)
            assert limit.cancelled_caught
            await gone(pid)
            assert await hashing.upto(fd, 3 * PIECE_BYTES) == (3 * PIECE_BYTES, sha256sum(path))


async def test_a_worker_that_is_killed_is_told_of_and_the_next_begins_anew(tmp_path: Path) -> None:
    huge, path = sparse(tmp_path / "huge", HUGE), sparse(tmp_path / "large", 3 * PIECE_BYTES)
    async with open_door() as door, opened(huge) as fd, opened(path) as other:
        with closing(door.files.hashes.of("the file")) as hashing:

            async def kill(hashing: FileHash) -> None:
                await begun(hashing)
                for pid in await at_work(door):
                    os.kill(pid, signal.SIGKILL)
                    await gone(pid)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill, hashing)
                with pytest.raises(WriteFailed, match="the file: the process that hashed it was ended"):
                    await hashing.upto(fd, HUGE)
        with closing(door.files.hashes.of("the file")) as hashing:
            await hashing.upto(other, PIECE_BYTES)
            await kill(hashing)  # while it waits: nobody is told, and nothing is missing
            assert await hashing.upto(other, 3 * PIECE_BYTES) == (3 * PIECE_BYTES, sha256sum(path))


async def test_a_file_that_ends_early_is_told_with_its_length(tmp_path: Path) -> None:
    path = sparse(tmp_path / "file", 2 * PIECE_BYTES)
    async with open_door() as door, opened(path) as fd:
        with closing(door.files.hashes.of(str(path))) as hashing:
            await hashing.upto(fd, PIECE_BYTES)
            os.truncate(path, PIECE_BYTES + 5)
            assert await hashing.upto(fd, 2 * PIECE_BYTES) == (PIECE_BYTES + 5, sha256sum(path))


async def test_what_cannot_be_read_is_an_error_of_the_file(tmp_path: Path) -> None:
    async with open_door() as door:
        directory = os.open(tmp_path, os.O_RDONLY)
        with pytest.raises(FileError, match="Is a directory"):
            await door.files.hashes.whole("it", directory, 5)
        os.close(directory)
        pinned = os.open(tmp_path, os.O_PATH)
        with pytest.raises((AccessDenied, WriteFailed), match="Bad file descriptor"):
            await door.files.hashes.whole("it", pinned, 5)
        os.close(pinned)


async def test_many_at_once_are_a_few_workers_and_each_is_right(tmp_path: Path) -> None:
    paths = [tmp_path / f"file{number}" for number in range(16)]
    for path in paths:
        path.write_bytes(os.urandom(64) * (MIB // 8))
    most, sums = 0, {}

    async def one(door: Door, path: Path) -> None:
        sums[path] = await whole(door, path)

    async with open_door() as door:
        before = descriptors()
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(one, door, path)
            while len(sums) < len(paths):
                most = max(most, door.files.hashes.turn().borrowed_tokens)
                await trio.lowlevel.checkpoint()
        assert most == HASHERS
        assert sums == {path: sha256sum(path) for path in paths}
        assert descriptors() == before


async def test_those_that_wait_give_way_to_those_that_work(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large", 4 * PIECE_BYTES)
    async with open_door() as door, opened(path) as fd:
        all_of_them = [door.files.hashes.of(str(path)) for _ in range(HASHERS + 2)]
        for hashing in all_of_them:
            await hashing.upto(fd, PIECE_BYTES)
        with trio.fail_after(30):
            while len(workers(door)) > HASHERS:
                await trio.lowlevel.checkpoint()
        assert [hashing._worker is None for hashing in all_of_them] == [True, True, *[False] * HASHERS]
        for hashing in all_of_them:
            assert await hashing.upto(fd, 4 * PIECE_BYTES) == (4 * PIECE_BYTES, sha256sum(path))
            hashing.close()
            hashing.close()


async def test_workers_end_with_the_files_and_with_their_opener(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large", HUGE)
    before = descriptors()
    async with opened(path) as fd:
        async with open_door() as door:
            await door.files.hashes.of(str(path)).upto(fd, PIECE_BYTES)
            (pid,) = workers(door)
        await gone(pid)
        async with open_door() as door, trio.open_nursery() as nursery:
            hashing = door.files.hashes.of(str(path))

            async def die() -> None:
                (pid,) = await at_work(door)
                await begun(hashing)
                os.kill(pid, signal.SIGSTOP)
                door.opener.kill()
                await gone(pid)

            nursery.start_soon(die)
            with pytest.raises((WriteFailed, OpenerGone)):
                await hashing.upto(fd, HUGE)
    assert descriptors() == before


RIGHT = "0" * 64
NONSENSE = [
    b"J{}",
    b"Jno JSON",
    b'J{"at": "5", "sha256": "%s"}' % RIGHT.encode(),
    b'J{"at": true, "sha256": "%s"}' % RIGHT.encode(),
    b'J{"at": 11, "sha256": "%s"}' % RIGHT.encode(),
    b'J{"at": -1, "sha256": "%s"}' % RIGHT.encode(),
    b'J{"at": 5, "sha256": "%s"}' % RIGHT[1:].encode(),
    b'J{"at": 5, "sha256": null}',
    b'J{"refused": "", "errno": "13", "why": ""}',
    b'J{"refused": 5, "errno": 13, "why": ""}',
]


@asynccontextmanager
async def taken_over() -> AsyncIterator[tuple[_Worker, socket.socket]]:
    """A worker of which somebody else has the other end: it may say what it likes."""
    ours, theirs = wire.pair()
    ours.setblocking(False)
    with theirs:
        process = subprocess.Popen(["sleep", "60"])
        worker = _Worker("it", ours, os.pidfd_open(process.pid))
        try:
            yield worker, theirs
        finally:
            worker.end()
            assert process.wait(30) == -signal.SIGKILL


@pytest.mark.parametrize("said", NONSENSE)
async def test_a_worker_that_talks_nonsense_is_as_good_as_gone(said: bytes) -> None:
    async with taken_over() as (worker, other_end):
        other_end.send(said)
        with pytest.raises(WriteFailed, match="it: the process that hashed it was ended"):
            await worker.advance(10)
        assert worker.broken
        assert worker.sha256 == ""


async def test_what_a_worker_answers_is_taken_and_what_it_refuses_is_the_files_error() -> None:
    async with taken_over() as (worker, other_end):
        for said in ({"piece": [], "counts": {}}, {"at": 10, "sha256": RIGHT}):
            wire.send(other_end, said)
        await worker.advance(10)
        assert (worker.at, worker.sha256, worker.ended, worker.broken) == (10, RIGHT, False, False)
        wire.send(other_end, {"refused": "", "errno": errno.EACCES, "why": ""})
        with pytest.raises(AccessDenied, match="it: Permission denied"):
            await worker.advance(20)
        assert worker.broken
