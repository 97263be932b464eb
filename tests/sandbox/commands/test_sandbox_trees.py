"""Whatever shape a command's tree has: at the deadline, on a kill and at the session's end nothing is left."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from sandbox.commands.run import open_command
from sandbox.commands.running import Command
from sandbox.commands.values import Exited, TimedOut
from sandbox.kernel import processes
from tests.sandbox.init.test_sandbox_births import (
    ABI,
    World,
    needs_signal_scope,
    open_world,
    stray_fds,
    survivors,
    wait_exit,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("launched")
PYTHON = "/usr/bin/python3"
PRELUDE = """
import os, signal, sys, time
def ready():
    os.write(1, b'ready')
def child(body):
    if os.fork() == 0:
        body()
        os._exit(0)
def forever():
    while True: time.sleep(86400)
"""
# Each ends up as a tree that says `ready` once it stands; the leader lives on unless the name says otherwise.
SHAPES = {
    "single": "ready(); forever()",
    "ignores_sigterm": "signal.signal(15, 1); child(forever); ready(); forever()",
    "pipe_holder": "child(lambda: (signal.signal(15, 1), ready(), forever())); forever()",
    "setsid": "child(lambda: (os.setsid(), ready(), forever())); forever()",
    "double_fork": "child(lambda: (os.setsid(), child(lambda: (ready(), forever())))); os.wait(); forever()",
    "setsid_and_ignores": "child(lambda: (os.setsid(), signal.signal(15, 1), ready(), forever())); forever()",
    "stopped": "child(lambda: (ready(), os.kill(os.getpid(), 19))); os.kill(os.getpid(), 19)",
    "own_subreaper": "import ctypes; ctypes.CDLL(None).prctl(36, 1); "
    "child(lambda: child(lambda: (os.setsid(), ready(), forever()))); forever()",
    "closed_streams": "child(lambda: (ready(), os.closerange(0, 3), os.setsid(), forever())); forever()",
    "bomb_of_200": "for n in range(200):\n"
    "    child(lambda: (os.setsid() if n % 2 else signal.signal(15, 1), forever()))\n"
    "ready(); forever()",
}
# These fork all the while. They end in one stroke, or, before Landlock could scope signals, by luck.
RESTLESS = {
    "forks_while_killed": "signal.signal(15, 1); signal.signal(17, 1); ready()\n"
    "while True: child(lambda: time.sleep(.005))",
    "runner": "signal.signal(15, 1); ready()\nchild(lambda: [os._exit(0) for _ in iter(os.fork, 0)]); forever()",
    "setsid_chain": "ready()\nif os.fork(): forever()\nwhile True:\n    if os.fork(): os._exit(0)\n    os.setsid()",
}
DAEMONS = {
    "daemon": "child(lambda: (os.setsid(), child(lambda: (os.closerange(0, 3), forever())))); os.wait()",
    "daemon_with_the_pipe": "child(lambda: (os.setsid(), forever()))",
    "plain_child": "child(lambda: (os.closerange(0, 3), forever()))",
}
ALL = {**SHAPES, **RESTLESS}


def argv(shape: str, token: str) -> tuple[str, ...]:
    return (PYTHON, "-I", "-S", "-c", PRELUDE + {**ALL, **DAEMONS}[shape], token)


@pytest.fixture
def token() -> str:
    return "token-" + secrets.token_hex(8)


def shapes_for(abi: int) -> list[tuple[str, int]]:
    return [(shape, abi) for shape in (ALL if abi >= 6 else SHAPES)]


BOTH_WAYS = [*shapes_for(ABI), *(shapes_for(5) if ABI >= 6 else [])]


@asynccontextmanager
async def standing_tree(world: World, shape: str, token: str) -> AsyncIterator[Command]:
    async with open_command(world.init, world.exec_plan(*argv(shape, token)), output_bytes=99) as command:
        while not command.streams.stdout.captured().data:
            await command._advance()
        assert survivors(token)
        yield command


@pytest.mark.parametrize(("shape", "abi"), BOTH_WAYS)
async def test_every_shape_ends_within_its_grace(shape: str, abi: int, token: str) -> None:
    async with open_world(abi=abi) as world:
        async with standing_tree(world, shape, token) as command:
            await command.end(grace_s=0.1)
            assert survivors(token) == []
            assert command.tree_gone
            assert await command.drain(5)
        assert await world.init.descendants() == frozenset()
        assert (await world.run("/bin/true")).how == Exited(0)


@pytest.mark.parametrize("shape", ["single", "setsid_and_ignores", "bomb_of_200"])
async def test_the_deadline_ends_a_tree(shape: str, token: str) -> None:
    async with open_world() as world:
        ended = await world.run(*argv(shape, token), timeout_s=1.5, grace_s=0.1)
        assert survivors(token) == []
        assert (ended.how, ended.stdout.data, ended.drained) == (TimedOut(1.5), b"ready", True)


@pytest.mark.parametrize(("shape", "abi"), BOTH_WAYS)
async def test_cancellation_ends_every_shape_before_it_leaves(shape: str, abi: int, token: str) -> None:
    async with open_world(abi=abi) as world:
        before = stray_fds(world)
        with trio.CancelScope() as scope:
            async with standing_tree(world, shape, token):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert survivors(token) == []
        assert stray_fds(world) == before
        assert (await world.run("/bin/true")).how == Exited(0)


@pytest.mark.parametrize("shape", ALL if ABI >= 6 else SHAPES)
async def test_the_end_of_the_session_ends_every_shape(shape: str, token: str) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        async with standing_tree(world, shape, token):
            assert await world.init.end()
            assert survivors(token) == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("shape", DAEMONS)
@pytest.mark.parametrize("abi", [ABI, 5] if ABI >= 6 else [ABI])
async def test_daemons_outlive_their_command_but_not_their_session(shape: str, abi: int, token: str) -> None:
    async with open_world(abi=abi) as world:
        ended = await world.run(*argv(shape, token))
        assert ended.how == Exited(0)
        assert ended.drained == (shape != "daemon_with_the_pipe")
        assert ended.duration_ms < 2000
        daemons = survivors(token)
        assert len(daemons) == 1
        assert await world.init.descendants() == frozenset(daemons)
        assert (await world.run("/bin/true")).how == Exited(0)
        await world.init.signal(daemons[0], 0)
        assert await world.init.end()
        assert survivors(token) == []


async def test_a_daemon_can_be_ended_and_its_keeper_serves_again(token: str) -> None:
    async with open_world() as world:
        await world.run(*argv("daemon", token))
        (daemon,) = survivors(token)
        await world.init.signal(daemon, signal.SIGKILL)
        await wait_exit(daemon)
        (slot,) = world.pool._lingering
        while slot.launch is None:
            await slot.wait_news()
        assert await world.init.descendants() == frozenset()
        assert world.pool._lingering == []


async def test_a_killed_keeper_ends_its_command_and_its_orphans(token: str) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        async with standing_tree(world, "double_fork", token) as command:
            pids = survivors(token)
            assert len(pids) == 2
            os.kill(command.slot.keeper_pid, signal.SIGKILL)
            await command.wait_ended()
            assert command.exit_code == -signal.SIGKILL
        await wait_exit(*pids)
        assert (await world.run("/bin/true")).how == Exited(0)
        nursery.cancel_scope.cancel()


async def test_a_killed_init_ends_running_commands(token: str) -> None:
    async with open_world() as world:
        async with standing_tree(world, "double_fork", token) as command:
            pids = survivors(token)
            os.kill(world.init.pid, signal.SIGKILL)
            await command.wait_ended()
        await wait_exit(*pids)
        assert command.tree_gone


@needs_signal_scope
@pytest.mark.parametrize("shape", ["forks_while_killed", "setsid_chain", "bomb_of_200"])
async def test_a_restless_command_killed_beside_others_ends_alone(shape: str, token: str) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        other = "token-" + secrets.token_hex(8)
        running = trio.Event()

        async def neighbour() -> None:
            await world.run(*argv("single", other), on_started=lambda _: running.set(), timeout_s=60)

        nursery.start_soon(neighbour)
        await running.wait()
        await world.run(*argv(shape, token), timeout_s=0.7, grace_s=0.05)
        assert survivors(token) == []
        assert len(survivors(other)) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.bounded(120)
async def test_a_command_cancelled_at_any_step_leaves_nothing(token: str) -> None:
    plan_argv = ("/bin/sh", "-c", f": {token}; setsid sleep 86400 & sleep 86400")
    async with open_world() as world:
        await world.run("/bin/true")
        before = stray_fds(world)
        cancelled = 0
        for step in [*range(40), *range(40, 400, 12)]:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, step, scope)
                    await world.run(*plan_argv, stdin=b"x" * 100_000, timeout_s=0.2, grace_s=0)
            assert survivors(token) == []
            cancelled += scope.cancelled_caught
            assert not world.pool._busy
            assert stray_fds(world) == before
        assert cancelled > 40  # the later ones reach the deadline and what comes after it
        assert (await world.run("/bin/true")).how == Exited(0)


async def cancel_after(steps: int, scope: trio.CancelScope) -> None:
    for _ in range(steps):
        await trio.lowlevel.checkpoint()
    scope.cancel()


BROKER = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import trio
from tests.sandbox.init.test_sandbox_births import open_world, survivors
from tests.sandbox.commands.test_sandbox_trees import ALL, DAEMONS, SHAPES, argv
from sandbox.machine.capabilities import probe
async def main():
    async with open_world() as world, trio.open_nursery() as nursery:
        for shape in DAEMONS:
            await world.run(*argv(shape, sys.argv[1]))
        up = 0
        def started(pid):
            nonlocal up
            up += 1
        shapes = ALL if probe().landlock_abi >= 6 else SHAPES
        for shape in shapes:
            async def run(shape=shape):
                await world.run(*argv(shape, sys.argv[1]), timeout_s=600, on_started=started)
            nursery.start_soon(run)
        while up < len(shapes) or len(survivors(sys.argv[1])) < 220:
            await trio.lowlevel.checkpoint()
        os.write(1, f"up {{world.home.parent}}".encode())  # print writes piece by piece when it does not buffer
trio.run(main)
"""


@pytest.mark.bounded(60)
async def test_nothing_survives_a_killed_broker_for_two_seconds(token: str) -> None:
    command = [sys.executable, "-c", BROKER, token]
    broker = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert broker.stdout is not None
    word, _, place = (await broker.stdout.receive_some(200)).decode().strip().partition(" ")
    assert word == "up"
    pids = [entry.pid for entry in processes.descendants(broker.pid)]
    assert len(pids) > 200
    broker.kill()
    with trio.fail_after(2):
        await wait_exit(broker.pid, *pids)
        while left := survivors(token):
            await wait_exit(*left)
    await broker.wait()
    shutil.rmtree(place)  # a killed broker cannot


def test_descendants_are_found_and_spared() -> None:
    """A parent, its child and a grandchild, holding still until the pipe closes."""
    script = "import os, sys; os.fork() or os.fork(); os.write(1, b'x'); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(3) == b"xxx"
        me = os.getpid()
        family = [entry.pid for entry in processes.descendants(process.pid)]
        assert len(family) == 2
        assert all(processes.is_below(pid, {me}) and processes.is_below(pid, {process.pid}) for pid in family)
        assert not processes.is_below(me, {process.pid})
        assert not processes.is_below(process.pid, set(family))
        assert [entry.pid for entry in processes.descendants(process.pid, spare={family[0]})] != family
        assert not {process.pid, *family} & {entry.pid for entry in processes.descendants(me, spare={process.pid})}
        process.stdin.close()
