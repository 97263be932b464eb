"""What was waited for is forgotten when it is closed: it wakes nobody who waits for the next file of its number."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from sandbox import wire
from sandbox.commands.values import Exited
from sandbox.errors import ProcessNotFound, SandboxError
from sandbox.init.launcher import open_launcher
from sandbox.init.spare import Interpreter, start_interpreter
from sandbox.polled import close_descriptor, wait_ended
from tests.sandbox.init.test_sandbox_births import World, all_armed, open_world, plan_for, session_home, walls_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

CHURN_SESSIONS = 1200
CHURN_AT_ONCE = 6


def stale(but: Collection[int] = ()) -> list[tuple[int, int]]:
    """Give what an epoll set of ours, not of *but*, polls that is not the file of that number: (set, number)."""
    found = []
    for listed in set(os.listdir("/proc/self/fdinfo")) - set(map(str, but)):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            lines = Path(f"/proc/self/fdinfo/{listed}").read_text().splitlines()
            for words in (line.split() for line in lines if line.startswith("tfd:")):
                number, inode = int(words[1]), int(next(word[4:] for word in words if word.startswith("ino:")), 16)
                if _inode(number) != inode:
                    found.append((int(listed), number))
    return found


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


@contextlib.contextmanager
def copies() -> Iterator[list[int]]:
    """Hold a copy of everything that is open, as a process does that is just being started."""
    held: list[int] = []
    try:
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own
                held.append(os.dup(int(name)))
        yield held
    finally:
        for fd in held:
            os.close(fd)


async def left(wait: Callable[[], Awaitable[Any]]) -> None:
    """Wait for something, and leave before it comes."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()


async def test_a_number_that_is_closed_alone_stays_polled_and_wakes_the_next() -> None:
    """The control: this is what the others must not do."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = os.dup(ours.fileno())
        await left(partial(trio.lowlevel.wait_readable, number))
        os.close(number)
        assert [fd for _, fd in stale()] == [number]
        number = os.dup(ours.fileno())
        await left(partial(trio.lowlevel.wait_readable, number))
        close_descriptor(number)
    assert stale() == []


async def test_who_leaves_a_process_or_a_keeper_forgets_it() -> None:
    async with open_world() as world:
        await world.run("/bin/true")
        await all_armed(world)
        (slot,) = world.pool._free
        await left(world.init.wait_exited)
        await left(slot.wait_gone)
        assert stale() == []


async def test_nothing_of_an_ended_session_is_polled_while_a_copy_of_it_lives() -> None:
    with contextlib.ExitStack() as stack:
        async with open_world() as world, trio.open_nursery() as nursery:
            nursery.start_soon(partial(world.run, "/bin/sleep", "900", timeout_s=900))
            while not world.pool._busy:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(world.init.wait_exited)
            await trio.testing.wait_all_tasks_blocked(0.01)
            held = stack.enter_context(copies())
            nursery.cancel_scope.cancel()
        assert stale(held) == []


async def test_who_waits_for_a_word_may_be_woken_for_nothing() -> None:
    ours, theirs = wire.pair()
    other, peer = socket.socketpair()
    with other, theirs:
        number = os.dup(other.fileno())
        await left(partial(trio.lowlevel.wait_readable, number))
        os.dup2(ours.fileno(), number)
        ours.close()
        ours = socket.socket(fileno=number)
        ours.setblocking(False)
        heard: list[Any] = []
        with ours:
            child = Interpreter(0, ours, -1, 0)

            async def hear() -> None:
                heard.append(await child.hear("being_born"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                await trio.testing.wait_all_tasks_blocked()
                peer.close()  # the end of the file that had this number
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert heard == []
                wire.send(theirs, {"op": "born"})
            assert heard == [({"op": "born"}, [])]


async def test_a_process_has_ended_only_when_it_has() -> None:
    other, peer = socket.socketpair()
    child = start_interpreter("import sys; sys.stdin.read(); __import__('time').sleep(900)")
    ended = trio.Event()
    with other:
        number = os.dup(other.fileno())
        await left(partial(trio.lowlevel.wait_readable, number))
        os.dup2(child._pidfd, number)

        async def wait() -> None:
            await wait_ended(number)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            peer.close()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not ended.is_set()
            child.kill()
        close_descriptor(number)
    assert await child.end()


async def test_a_session_that_has_ended_may_still_be_looked_at() -> None:
    """As a call does that found it a moment before."""
    async with open_world() as world:
        await world.run("/bin/sh", "-c", "sleep 86400 >/dev/null 2>&1 & echo started")
        keeper_pids = list(world.pool.keepers_with_trees())
        assert keeper_pids
    assert await world.init.descendants() == frozenset()
    for pid in keeper_pids:
        with pytest.raises(ProcessNotFound):
            await world.init.signal(pid, signal.SIGTERM)


@pytest.mark.soak
@pytest.mark.bounded(300)
async def test_sessions_that_come_and_go_disturb_no_other() -> None:
    """Some end in the middle of a command, some are killed; all others are born and run what they are asked."""
    failures: list[BaseException] = []
    with session_home() as (user, home):
        async with open_launcher(plan_for()) as launcher, trio.open_nursery() as nursery:
            walls = walls_for(user, home)

            async def come_and_go(kind: int) -> None:
                for _ in range(CHURN_SESSIONS // CHURN_AT_ONCE):
                    try:
                        async with launcher.open_init(walls) as init:
                            launcher.warm_up_soon()
                            await _live(World(launcher=launcher, init=init, walls=walls), kind)
                    except* (SandboxError, OSError, trio.BusyResourceError) as group:
                        failures.extend(group.exceptions)

            for kind in range(CHURN_AT_ONCE):
                nursery.start_soon(come_and_go, kind % 3)
    assert failures == []
    assert stale() == []


async def _live(world: World, kind: int) -> None:
    async with trio.open_nursery() as nursery:
        lost = trio.Event()

        async def watch() -> None:
            await world.init.wait_exited()
            lost.set()

        nursery.start_soon(watch)
        assert (await world.run("/bin/true")).how == Exited(0)
        if kind == 1:
            started = trio.Event()
            sleep = partial(world.run, "/bin/sleep", "900", timeout_s=900, on_started=lambda _: started.set())
            nursery.start_soon(sleep)
            await started.wait()
        assert not lost.is_set()
        if kind == 2:
            os.kill(world.init.pid, signal.SIGKILL)
            await lost.wait()
        nursery.cancel_scope.cancel()
