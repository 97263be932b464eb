"""One session's control groups: its own, and one for each command, made ahead of need and removed when it is empty.

A leaf holds a command and all it starts, daemons that outlive it included, and nothing of ours: its out-of-memory
kill takes everything in it, and the keeper must live to tell. The process that becomes the command enters by itself,
through a descriptor that the broker opened (the kernel asks what the opener may do), long before there is a command.
Outside the walls.
"""

from __future__ import annotations

import itertools
import os
from functools import partial
from typing import TYPE_CHECKING

import attrs

from sandbox.cgroup.group import CgroupFault
from sandbox.cgroup.place import CONTROLLERS
from sandbox.cgroup.usage import CommandUsage, shown_size
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.cgroup.chores import Chores
    from sandbox.cgroup.group import Group
    from sandbox.plan.limits import GroupLimits

# The init, the opener with its workers, and for each command that runs or lingers a keeper and its next process.
OWN_MEMORY_BYTES = 64 << 20
OWN_PIDS = 192


class SessionGroup:
    """One session's group. First `join`, then the init may make a cgroup namespace, then `settle`, then leaves."""

    def __init__(self, group: Group, absent: frozenset[str]) -> None:
        """Use *group*; nobody counts on the *absent* limits."""
        self.group = group
        self.closed = False
        self._absent = absent
        self._numbers = itertools.count(1)

    def limit(self, limits: GroupLimits) -> None:
        """Let all commands together use so much, and our own processes what they need. Raises CgroupFault."""
        self._limit(self.group, limits.with_room(OWN_MEMORY_BYTES, OWN_PIDS))

    def _limit(self, group: Group, limits: GroupLimits) -> None:
        if absent := set(group.limit(limits)) - self._absent:
            raise CgroupFault(group.path, f"there is no {' and no '.join(sorted(absent))}, so nothing limits there")

    async def join(self, pid: int) -> None:
        """Put the session's first process in, before it is told anything."""
        await run_in_thread(self.group.join, pid)

    async def settle(self) -> None:
        """Move what lives here into a leaf, so that commands can have limits of their own beside it."""
        await run_in_thread(self._settle)

    def _settle(self) -> None:
        self.group.vacate(self.group.create("init"))
        self.group.enable(CONTROLLERS & self.group.controllers())

    def make_leaf(self, limits: GroupLimits) -> Leaf:
        """Make a command's group, with its share of *limits*. Blocks. Raises CgroupFault."""
        if self.closed:
            raise CgroupFault(self.group.path, "the session is ending")
        group = self.group.create(f"command-{next(self._numbers)}")
        self._limit(group, attrs.evolve(limits.without_shared(limits), kill_together=True))
        return Leaf(group, limits, group.open_entry(), self.group)


@attrs.define(eq=False)
class Leaf:
    """One command's group. `entry`: the way in for one process, -1 once it was passed on."""

    group: Group
    limits: GroupLimits
    entry: int
    _session: Group

    def close_entry(self) -> None:
        """Let go of the way in, once it was passed on."""
        if self.entry >= 0:
            os.close(self.entry)
            self.entry = -1

    def usage(self) -> CommandUsage | None:
        """Return what the command used so far, and whether memory was its end; None: somebody removed the group."""
        try:
            return self._usage()
        except CgroupFault:  # nothing is known, which is what None says
            return None

    def _usage(self) -> CommandUsage:
        used = self.group.usage()
        return CommandUsage(
            memory_peak_bytes=used.memory_peak_bytes,
            cpu_user_ms=used.cpu_user_us // 1000,
            cpu_system_ms=used.cpu_system_us // 1000,
            oom_killed=used.oom_kills > 0,
            killed_by=self._whose_memory() if used.oom_kills else None,
        )

    def _whose_memory(self) -> str:
        """Say which limit it was: the kernel counts at the group whose limit was reached."""
        if self.group.counted("memory.events", "oom") and self.limits.memory_max_bytes:
            return f"memory limit {shown_size(self.limits.memory_max_bytes)} reached"
        if self._session.counted("memory.events.local", "oom"):
            return "memory limit of the session reached"
        return "out of memory: a limit above the session's, or the machine's, was reached"


class Leaves:
    """All leaves of a session. What blocks is done by its chores; nothing here waits."""

    def __init__(self, session: SessionGroup, limits: GroupLimits, chores: Chores) -> None:
        """Make leaves below *session*; each begins with *limits*."""
        self._session = session
        self._limits = limits
        self._chores = chores
        self._raised: dict[Leaf, GroupLimits] = {}  # leaves that may use more than the session could
        self._lingering: list[Leaf] = []  # commands that left daemons
        self.fault: CgroupFault | None = None  # why the last leaf could not be made

    def make_soon(self, then: Callable[[Leaf | None], None]) -> None:
        """Have a leaf made and *then* told; None: it could not be, and `fault` says why."""
        self._chores.soon(self._make, then)

    def _make(self) -> Leaf | None:
        try:
            leaf = self._session.make_leaf(self._limits)
        except CgroupFault as fault:
            self.fault = fault
            return None
        self.fault = None
        return leaf

    def limit(self, leaf: Leaf, limits: GroupLimits) -> None:
        """Give the waiting *leaf* the limits of its command, and the session room for what goes beyond its own.

        Raises:
            CgroupFault: one of them does not hold.
        """
        if limits == leaf.limits:
            return
        if limits.beyond(self._limits):
            self._raised[leaf] = limits
            self._session.limit(self._widened())
        leaf.group.limit(limits.without_shared(self._limits))
        leaf.limits = limits

    def _widened(self) -> GroupLimits:
        widest = self._limits
        for limits in self._raised.values():
            widest = widest.widened(limits)
        return widest

    def kill(self, leaf: Leaf) -> None:
        """Have everything in *leaf* killed, now or as soon as the kernel's lock allows."""
        self._chores.soon(partial(_kill, leaf.group), _ignore)

    async def kill_all(self) -> None:
        """Kill everything in the session, our own processes included."""
        await run_in_thread(_kill, self._session.group, or_here=True)

    def release(self, leaf: Leaf) -> None:
        """Have *leaf* removed, now or when what still lives in it has ended."""
        leaf.close_entry()
        self._lingering.append(leaf)
        self.tidy()

    def tidy(self) -> None:
        """Have the leaves removed that have become empty."""
        if self._lingering:
            self._chores.soon(partial(self._remove, tuple(self._lingering)), self._forget)

    def _remove(self, leaves: tuple[Leaf, ...]) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in leaves if _removed(leaf))

    def _forget(self, removed: tuple[Leaf, ...]) -> None:
        self._lingering = [leaf for leaf in self._lingering if leaf not in removed]
        narrowed = [leaf for leaf in removed if self._raised.pop(leaf, None) is not None]
        if narrowed:  # in a thread: the kernel takes back what is used beyond the limit before it answers
            self._chores.soon(partial(_limit, self._session, self._widened()), _ignore)


def _removed(leaf: Leaf) -> bool:
    try:
        leaf.group.remove()
    except CgroupFault:  # something lives in it
        return False
    return True


def _kill(group: Group) -> None:
    try:
        group.kill()
    except CgroupFault:  # who keeps the processes was told as well, and does without
        return


def _limit(session: SessionGroup, limits: GroupLimits) -> None:
    try:
        session.limit(limits)
    except CgroupFault:  # the session is ending; else it keeps the wider limit, and each leaf its own
        return


def _ignore(_result: object) -> None:
    """Do nothing: nobody waits for it."""
