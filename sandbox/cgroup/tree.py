"""Tree of our control groups: the delegated subtree found or named, the broker's own, sessions, commands.

    base                          delegated to us: our own cgroup, one above it, or `sandbox.cgroup_base`
      remote-broker-<token>       this broker's, locked as long as it lives
        broker                    the broker itself, when base is where it was: a group with members controls nothing
        session-1                 the limits of a session
          init                    the session's own processes
          command-1, command-2    one command each, with limits of its own

A session may use what its commands together may, and what its own processes need beside them, so that one command
reaches its own limit first. Several that each use up theirs reach the session's together; what the session then wants
to start itself, the next command included, waits for room (`inside/init/main.py`, `inside/keeper/keeper.py`).

A tree whose lock can be had belonged to a broker that is gone; the next one kills and removes it. Outside the walls.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
from typing import TYPE_CHECKING

import trio

from sandbox.cgroup.chores import Chores
from sandbox.cgroup.group import CgroupFault
from sandbox.cgroup.place import CONTROLLERS, OPTIONAL, REQUIRED, NoCgroup
from sandbox.cgroup.session import SessionGroup
from sandbox.kernel import processes
from sandbox.plan.limits import GROUP_FILES
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandbox.cgroup.group import Group
    from sandbox.plan.limits import GroupLimits

PREFIX = "remote-broker-"
HOME = "broker"
END_S = 5.0


class Tree:
    """This broker's part of the hierarchy. `absent`: files of limits that there are none of in it."""

    def __init__(self, top: Group, chores: Chores) -> None:
        """Use *top* and *chores*, which `open_tree` owns."""
        self.path = top.path
        self.controllers = top.enabled()
        self.absent = frozenset(name for name in GROUP_FILES if not os.path.exists(f"{top.path}/{name}"))
        self.chores = chores
        self._top = top
        self._numbers = itertools.count(1)

    @contextlib.asynccontextmanager
    async def open_session(self, limits: GroupLimits) -> AsyncIterator[SessionGroup]:
        """Make a session's group; everything in it is killed at the end of this block.

        Raises:
            CgroupFault: it cannot be made, or a limit does not hold.
        """
        group = self._top.create(f"session-{next(self._numbers)}")
        try:
            session = SessionGroup(group, self.absent)
            try:
                session.limit(limits)
                yield session
            finally:
                session.closed = True
        finally:
            with trio.move_on_after(END_S, shield=True):
                await self.chores.settled()  # none of them makes a leaf in a group that is being removed
                await _end(group)


async def _end(group: Group) -> None:
    """Kill everything in *group* and remove it. The caller bounds it."""
    await run_in_thread(group.kill, or_here=True)
    await group.wait_empty()
    with contextlib.suppress(CgroupFault):  # a process that hangs in the kernel; the next broker tries again
        await run_in_thread(group.remove, or_here=True)


async def sweep(base: Group) -> list[str]:
    """Kill and remove the trees below *base* whose brokers are gone; return them. Live ones hold their lock."""
    swept = []
    for group in base.children():
        if os.path.basename(group.path).startswith(PREFIX) and (lock := _lock(group.path)) is not None:
            try:
                with trio.move_on_after(END_S):
                    await _end(group)
                    swept.append(group.path)
            finally:
                os.close(lock)
    return swept


def _lock(path: str) -> int | None:
    """Lock a group's directory for as long as the descriptor is open; None: somebody has it, or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):  # locked, or removed between the two
        pass  # what both mean is said by the return below
    os.close(fd)
    return None


@contextlib.asynccontextmanager
async def open_tree(base: Group) -> AsyncIterator[Tree]:
    """Make this broker's tree below *base*, after removing those of brokers that are gone.

    Raises:
        CgroupFault: it cannot be made, or *base* has members that are not ours to move.
    """
    await sweep(base)
    top, lock = _make_top(base)
    added = (CONTROLLERS & base.controllers()) - base.enabled()
    try:
        _enable(base, top, added)
        top.enable(CONTROLLERS & top.controllers())
        async with trio.open_nursery() as nursery:
            chores = Chores()
            nursery.start_soon(chores.work_off)
            try:
                yield Tree(top, chores)
            finally:
                chores.stop()
    finally:
        with trio.move_on_after(END_S, shield=True):
            for child in top.children():
                if os.path.basename(child.path) != HOME:
                    await _end(child)
        with contextlib.suppress(CgroupFault):  # what cannot be undone now is swept by the next broker
            _dismantle(base, top, added)
        os.close(lock)


def _make_top(base: Group) -> tuple[Group, int]:
    """Make our tree's first group and lock it; another broker's sweep may be faster than the lock."""
    while True:
        top = base.create(PREFIX + secrets.token_hex(4))
        if (lock := _lock(top.path)) is not None:
            return top, lock


def _enable(base: Group, top: Group, names: frozenset[str]) -> None:
    """Control *names* below *base*; if its own members are in the way, they are us, and move into our tree."""
    try:
        _enable_each(base, names)
    except CgroupFault as fault:
        if not isinstance(fault.__cause__, OSError) or fault.__cause__.errno != errno.EBUSY:
            raise
        ours = {os.getpid(), *(entry.pid for entry in processes.descendants(os.getpid()))}
        if strangers := sorted(set(base.pids()) - ours):
            raise NoCgroup(
                base.path, f"{len(strangers)} processes that are not the broker's live here too, such as {strangers[0]}"
            ) from fault
        base.vacate(top.create(HOME))
        _enable_each(base, names)


def _enable_each(base: Group, names: frozenset[str]) -> None:
    """Control *names* below *base*, or without those that not everybody needs and this kernel refuses."""
    base.enable(names & REQUIRED)
    for name in names & OPTIONAL:
        with contextlib.suppress(CgroupFault):  # cpu is refused while real-time processes run; who needs it is told
            base.enable({name})


def _dismantle(base: Group, top: Group, added: frozenset[str]) -> None:
    """Undo what `open_tree` did; what lived in *base* goes back there once it controls nothing any more."""
    homes = [child for child in top.children() if os.path.basename(child.path) == HOME]
    top.enable(top.enabled(), sign="-")
    base.enable(added & base.enabled(), sign="-")
    for home in homes:
        home.vacate(base)
    top.remove()
