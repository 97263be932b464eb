"""A broker that runs out of descriptors for a while refuses what it cannot do, and loses nothing that it has."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from sandbox.errors import BirthFailed, SpawnFailed
from sandbox.files.disk import Disk
from sandbox.files.errors import FileError
from sandbox.files.files import open_files
from sandbox.init.launcher import open_launcher
from sandbox.kernel import processes
from tests.sandbox.init.test_sandbox_births import (
    all_armed,
    open_fds,
    open_world,
    plan_for,
    session_home,
    wait_exit,
    walls_for,
)
from tests.sandbox.test_sandbox_shortage import eventually, expect_success, running

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("launched")
TOO_MANY = "Too many open files"


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Have room for only *count* more in this process, the broker, until the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1, 2])
async def test_a_keeper_that_cannot_be_taken_in_is_asked_for_again(left: int) -> None:
    async with open_world() as world:
        await expect_success(world)
        await all_armed(world)
        async with running(world, "/bin/sleep", "900"), trio.open_nursery() as nursery:
            with descriptors_left(left):
                nursery.start_soon(expect_success, world)
                await eventually(lambda: world.pool._keepers.shortage == TOO_MANY)
        assert world.pool._owed == 0
        assert not world.init._interpreter.exited()
        await expect_success(world)


@pytest.mark.parametrize("left", [0, 1])
async def test_a_keeper_whose_next_leader_cannot_be_taken_in_is_replaced(left: int) -> None:
    """It dies of a signal where it is a process, and is not needed any more where it is none yet."""
    async with open_world() as world:
        await expect_success(world)
        await all_armed(world)
        (slot,) = world.pool._free
        before = slot.serial
        with descriptors_left(left):
            if slot.leader_pid:
                os.kill(slot.leader_pid, signal.SIGKILL)
            else:
                assert slot.launch is not None
                slot.launch.shutdown(socket.SHUT_WR)
            await eventually(lambda: world.pool._refresh() or slot.gone or slot.serial > before)
        await expect_success(world)
        if slot.gone:  # what comes with a leader that is no process yet is one descriptor less
            await wait_exit(slot.keeper_pid)
        else:
            assert left == 1


async def test_a_file_that_cannot_be_taken_in_is_refused_and_the_next_can() -> None:
    async with open_world() as world, open_files(world.init.files_socket) as files:
        (world.home / "file").write_text("content")
        path = str(world.home / "file")
        with await files.resolve(path, read=True):
            pass
        with descriptors_left(0), pytest.raises(FileError, match=TOO_MANY):
            await files.resolve(path, read=True)
        with await files.resolve(path, read=True) as found:
            assert await files.read(found, 0, 10) == b"content"


async def test_a_birth_that_runs_out_of_descriptors_fails_as_one_and_leaves_nothing() -> None:
    with session_home() as (user, home):
        before = open_fds()
        async with open_launcher(plan_for()) as launcher:
            async with launcher.open_init(walls_for(user, home)):
                pass
            launcher.warm_up()
            full = open_fds()
            for left in range(6):
                with descriptors_left(left), contextlib.suppress(BirthFailed):
                    async with launcher.open_init(walls_for(user, home)) as init:
                        assert not init._interpreter.exited()
                launcher.warm_up()
                assert launcher._spare is not None
                await launcher._spare.wait_ahead()
                assert open_fds() == full, left
            with descriptors_left(0), pytest.raises(BirthFailed, match=TOO_MANY):
                async with launcher.open_init(walls_for(user, home)):
                    pytest.fail("there is no socket to be had")
            async with launcher.open_init(walls_for(user, home)):
                pass
        assert open_fds() == before
        assert processes.descendants(os.getpid()) == []


async def test_a_launch_without_descriptors_is_refused_as_such() -> None:
    async with open_world() as world:
        await expect_success(world)
        await all_armed(world)
        with descriptors_left(0), pytest.raises(SpawnFailed, match=TOO_MANY):
            await world.run("/bin/true")
        await expect_success(world)


async def test_a_file_that_cannot_even_be_looked_at_is_told_by_its_path() -> None:
    with pytest.raises(FileError, match="notes: "):
        await Disk().read("notes", -1, 0, 1)
