"""A broker that is killed at some moment of births, commands and ends leaves nothing, however many times."""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import trio

from sandbox.files.files import open_files
from sandbox.init.launcher import Launcher, open_launcher
from sandbox.kernel import process, processes
from tests.sandbox.init.test_sandbox_births import PLAIN, World, needs_namespaces, plan_for, session_home, walls_for

if TYPE_CHECKING:
    from sandbox.plan.plan import Walls

pytestmark = pytest.mark.soak

ROUNDS = 40
SESSIONS = 3  # at once
MOMENTS_S = 0.3  # within which the blow falls: a birth takes a tenth of that
END_BOUND_S = 10


def broker(up: int, settings: dict[str, Any], walls: Walls) -> NoReturn:
    """Give birth to sessions, use them and end them, until killed. In a process of its own."""

    async def main() -> None:
        async with open_launcher(plan_for(**settings)) as launcher, trio.open_nursery() as nursery:
            for _ in range(SESSIONS):
                nursery.start_soon(live, launcher, walls)
            os.write(up, b"!")

    try:
        trio.run(main)
    finally:
        os._exit(1)


async def live(launcher: Launcher, walls: Walls) -> None:
    while True:
        async with launcher.open_init(walls) as init, open_files(init.files_socket) as files:
            launcher.warm_up_soon()
            world = World(launcher=launcher, init=init, walls=walls)
            await world.run("/bin/sh", "-c", "sleep 900 & setsid sleep 900 & exit 0")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(world.run, "/bin/sleep", "900", timeout_s=0.05))
                nursery.start_soon(world.run, "/bin/true")
                (await files.resolve("/")).close()


def reap_all() -> bool:
    """Reap who has ended; return whether nobody is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return True
    return False


@pytest.mark.parametrize("settings", [pytest.param(PLAIN, id="plain"), pytest.param({}, marks=needs_namespaces)])
def test_a_broker_killed_at_any_moment_leaves_nothing(settings: dict[str, Any]) -> None:
    moments = random.Random(11)  # noqa: S311  a moment is no secret
    process.prctl(process.SET_CHILD_SUBREAPER, 1)  # what it leaves is ours
    try:
        with session_home() as (user, home):
            walls = walls_for(user, home)
            for _ in range(ROUNDS):
                ours, theirs = os.pipe()
                pid = os.fork()
                if pid == 0:
                    broker(theirs, settings, walls)
                os.close(theirs)
                assert os.read(ours, 1) == b"!"
                os.close(ours)
                time.sleep(moments.uniform(0, MOMENTS_S))
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + END_BOUND_S
                while not reap_all():
                    assert time.monotonic() < deadline, [entry.pid for entry in processes.descendants(os.getpid())]
                    time.sleep(0.005)
    finally:
        process.prctl(process.SET_CHILD_SUBREAPER, 0)
