"""A kernel that gives no process for a while costs whoever wants one time, and no session its life."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio

from sandbox import wire
from sandbox.commands.values import Exited
from sandbox.errors import SpawnFailed
from sandbox.init.keeper import Slot
from sandbox.init.launcher import open_launcher
from sandbox.kernel import processes
from tests.sandbox.init.test_sandbox_births import (
    AS_ROOT,
    PLAIN,
    World,
    all_armed,
    everything_below,
    needs_namespaces,
    plan_for,
    session_home,
    wait_exit,
    walls_for,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sandbox.plan.plan import SessionUser, Walls

pytestmark = pytest.mark.usefixtures("forked")  # its keepers need a process for each command, ahead of it
PYTHON = "/usr/bin/python3"
FORKS_REFUSED = "Resource temporarily unavailable"
PLANS = [pytest.param(PLAIN, id="plain"), pytest.param({}, id="namespaces", marks=needs_namespaces)]
LONELY_UID = 61_998  # nobody else's, so that nobody else's processes count
ROOM = 64
THREADS = 2 * ROOM
UNDER_WAY = """
import array, os, socket, time
fds, kept, full = array.array("i", [os.open("/dev/null", os.O_RDONLY)] * 253), [], False
while not full:
    kept.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    kept[-1][0].setblocking(False)
    try:
        while True:
            kept[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    except BlockingIOError:
        pass
    except OSError:
        full = True
os.close(1)
time.sleep(900)
"""
BOMB = f"""
import _thread, time
_thread.stack_size(65536)
for _ in range({THREADS}):
    _thread.start_new_thread(time.sleep, (900,))
time.sleep(900)
"""


@contextlib.contextmanager
def lonely_walls() -> Iterator[Walls]:
    with session_home() as (user, home):
        yield walls_for(_lonely(user, home), home)


def _lonely(user: SessionUser, home: str) -> SessionUser:
    if not AS_ROOT:
        return user
    os.chown(home, LONELY_UID, user.gid)
    return attrs.evolve(user, uid=LONELY_UID)


@contextlib.asynccontextmanager
async def two_sessions(**settings: Any) -> AsyncIterator[tuple[World, World]]:
    """One for a bomb, and one that must not fork when its user has ROOM processes more; both ready."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    with lonely_walls() as walls:
        try:
            room = processes.threads_of_user(walls.user.uid) + ROOM
            resource.setrlimit(resource.RLIMIT_NPROC, (room, hard))  # what they start with; commands get their own
            async with (
                open_launcher(plan_for(**settings)) as launcher,
                launcher.open_init(walls) as one,
                launcher.open_init(walls) as other,
            ):
                resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
                worlds = [World(launcher=launcher, init=init, walls=walls) for init in (one, other)]
                for world in worlds:
                    await world.run("/bin/true")
                    await all_armed(world)
                yield worlds[0], worlds[1]
        finally:
            resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))


@contextlib.asynccontextmanager
async def running(world: World, *argv: str) -> AsyncIterator[int]:
    """Run *argv* until the end of this block; gives its process."""
    started: list[int] = []

    async def run() -> None:
        await world.run(*argv, on_started=started.append, timeout_s=900)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await eventually(lambda: started)
        yield started[0]
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def bomb_in(world: World) -> AsyncIterator[None]:
    """Until the end of this block, a command of *world* has more threads than its user could have processes."""
    async with running(world, PYTHON, "-I", "-c", BOMB) as pid:
        await eventually(lambda: (bomb := processes.read_entry(pid)) is not None and bomb.threads > THREADS)
        yield


async def eventually(holds: Callable[[], Any]) -> None:
    while not holds():
        await trio.sleep(0.01)


async def expect_success(world: World) -> None:
    assert (await world.run("/bin/true")).how == Exited(0)


@pytest.mark.parametrize("settings", PLANS)
async def test_a_command_waits_until_its_keeper_gets_a_process(settings: dict[str, Any]) -> None:
    async with two_sessions(**settings) as (world, other):
        (slot,) = other.pool._free
        async with trio.open_nursery() as nursery, bomb_in(world):
            await expect_success(other)  # its process waited already
            nursery.start_soon(expect_success, other)
            await eventually(lambda: slot.shortage)
            assert slot.shortage == FORKS_REFUSED

        def has_a_process() -> bool:
            """Whether its keeper said so: unless a call waits for it (a further keeper served ours), nobody listens."""
            slot.read_news()
            return not slot.shortage

        await eventually(has_a_process)  # the kernel counts what was killed until it is reaped
        await expect_success(world)


@pytest.mark.parametrize("settings", PLANS)
async def test_a_command_waits_until_the_init_gets_a_process_for_its_keeper(settings: dict[str, Any]) -> None:
    async with two_sessions(**settings) as (world, other):
        async with running(other, "/bin/sleep", "900"), trio.open_nursery() as nursery, bomb_in(world):
            nursery.start_soon(expect_success, other)
            await eventually(lambda: other.pool._keepers.shortage)
            assert other.pool._keepers.shortage == FORKS_REFUSED
        assert not other.init._interpreter.exited()
        await expect_success(other)


@pytest.mark.parametrize("short", ["keeper", "init"])
async def test_a_shortage_that_lasts_is_said(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_sessions() as (world, other):
        async with contextlib.AsyncExitStack() as stack:
            if short == "init":
                await stack.enter_async_context(running(other, "/bin/sleep", "900"))
            await stack.enter_async_context(bomb_in(world))
            if short == "keeper":
                await expect_success(other)
            with monkeypatch.context() as patch:
                patch.setattr("sandbox.init.keeper_pool.TAKE_S", 1.0)
                with pytest.raises(SpawnFailed, match=f"{FORKS_REFUSED}.*limit on processes") as caught:
                    await other.run("/bin/true")
            assert caught.value.stage == "keeper"
        await expect_success(other)


@pytest.mark.parametrize("end", ["broker", "init", "keeper"])
async def test_who_waits_for_a_process_notices_the_end(end: str) -> None:
    async with two_sessions() as (world, other), bomb_in(world):
        (slot,) = other.pool._free
        await expect_success(other)
        other.pool._ask()
        slots = other.pool
        await eventually(lambda: slots._refresh() or (slot.shortage and slots._keepers.shortage))
        pids = everything_below(other.init)
        if end == "broker":
            assert await other.init.end()
        elif end == "init":
            os.kill(other.init.pid, signal.SIGKILL)
            await wait_exit(*pids)
        else:
            os.kill(slot.keeper_pid, signal.SIGTERM)
            await eventually(lambda: processes.read_entry(slot.keeper_pid) is None)  # the init reaps all the while


async def test_without_a_bomb_nobody_runs_short() -> None:
    async with two_sessions() as (_, other), running(other, "/bin/sleep", "900"):
        for _ in range(3):
            await expect_success(other)
        assert not other.pool._keepers.shortage
        assert not any(slot.shortage for slot in other.pool._free)


@contextlib.asynccontextmanager
async def descriptors_under_way(world: World) -> AsyncIterator[None]:
    """Until the end of this block, a command of *world* has as many descriptors under way as its user may."""
    async with running(world, PYTHON, "-I", "-c", UNDER_WAY) as pid:
        await eventually(lambda: not os.path.lexists(f"/proc/{pid}/fd/1"))
        yield


@pytest.mark.parametrize("settings", PLANS)
async def test_descriptors_that_another_session_has_under_way_change_no_outcome(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keeper cannot hand over what stands for a process, nor the next leader; the command ends as it ends."""
    monkeypatch.undo()  # spawned: their keeper has the limits of commands
    async with two_sessions(**settings) as (world, other), descriptors_under_way(world):
        for _ in range(3):
            done = await other.run("/bin/sh", "-c", "echo said; exit 3")
            assert (done.how, done.stdout.data) == (Exited(3), b"said\n")


async def test_a_leader_that_came_to_nothing_takes_no_command_its_end() -> None:
    ours, theirs = wire.pair()
    launch, waiting = wire.pair()
    with theirs, launch, waiting:
        ours.setblocking(False)
        slot = Slot(os.getpid(), ours)
        wire.send(theirs, {"op": "ready", "serial": 1}, [launch.fileno()])
        slot.read_news()
        assert slot.launch is not None
        with slot.launch:
            slot.begin()
        for serial, status in ((1, 3 << 8), (2, 0), (3, 0)):
            wire.send(theirs, {"op": "ended", "serial": serial, "status": status, "empty": True})
        slot.read_news()
        assert slot.ended == (1, 3 << 8)
        slot.close()
