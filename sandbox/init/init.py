"""One session's init as the broker sees it: the way to its commands and files, the signals it is asked for, its end.

Broker side. `launcher.py` brings one to life and owns it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

import trio

from sandbox.errors import ProcessNotFound
from sandbox.init.keeper_pool import Keepers, SlotPool
from sandbox.kernel import processes
from sandbox.kernel.rlimits import of_ours
from sandbox.polled import close_descriptor, wait_ended
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from sandbox.cgroup.session import Leaves
    from sandbox.init.spare import Interpreter
    from sandbox.plan.limits import Limits
    from sandbox.plan.plan import LayerReport

END_S = 5.0  # for keepers whose init did not survive


class Init:
    """One session's process, as its session sees it."""

    def __init__(
        self,
        interpreter: Interpreter,
        files_socket: socket.socket,
        layers: tuple[LayerReport, ...],
        limits: Limits,
        leaves: Leaves | None = None,
        *,
        mixed_network: bool,
        spawns: bool,
        own_task_count: bool,
    ) -> None:
        """Have the use of *interpreter* and *leaves*; `open_init` owns them.

        *mixed_network*: each command is told whether it has one. *spawns*: commands that need nothing of their own are
        spawned. *own_task_count*: see `Plan`.
        """
        self.pid = interpreter.pid
        self.files_socket = files_socket
        self.layers = layers
        self.limits = limits
        self.mixed_network = mixed_network
        self.terminal_maker_fd = interpreter.terminal_maker_fd
        keepers = Keepers(interpreter.sock)
        self.forking = SlotPool(keepers, leaves)
        self.spawning = SlotPool(keepers, spawns=True) if spawns else None
        self._interpreter = interpreter
        self._keepers = keepers
        self._own_task_count = own_task_count

    def get_ready(self) -> None:
        """Have what the first command needs on its way, for whoever has nothing more to wait for himself."""
        (self.spawning or self.forking).get_ready()

    def pool_for(self, limits: Limits | None, *, forked: bool) -> SlotPool:
        """Return where the slots are in which a command can be launched.

        Args:
            limits: its own, in the place of those of the session.
            forked: it must be forked in any case.
        """
        if self.spawning is None or forked:
            return self.forking
        own = self.limits.overridden(limits)
        same = own.of_process(grouped=False) == self.limits.of_process(grouped=False)
        return self.spawning if same else self.forking

    def room_of(self, limits: Limits) -> tuple[int, int | None] | None:
        """Return what a command with *limits* is told of the tasks beside its own; None: nothing of use is known.

        See `rlimits.room_beside` for the two.
        """
        if not self._own_task_count or limits.pids_max is None:
            return None
        session = self.limits.pids_max
        return of_ours(self._keepers.in_use), None if session is None else max(session - limits.pids_max, 0)

    @property
    def _pools(self) -> tuple[SlotPool, ...]:
        return (self.forking,) if self.spawning is None else (self.forking, self.spawning)

    def _keepers_with_trees(self) -> frozenset[int]:
        return frozenset(pid for pool in self._pools for pid in pool.keepers_with_trees())

    async def rest(self) -> None:
        """Give back, until cancelled, what commands needed that have ended."""
        async with trio.open_nursery() as nursery:
            for pool in self._pools:
                nursery.start_soon(pool.rest)

    async def wait_exited(self) -> None:
        """Wait until the process is gone: without `end`, somebody killed it and the session is over."""
        await self._interpreter.wait_exited()

    async def descendants(self) -> frozenset[int]:
        """List the processes of this session's commands, without the sandbox's own."""
        return await run_in_thread(_below, self._keepers_with_trees(), or_here=True)

    async def signal(self, pid: int, signum: int) -> None:
        """Send *signum* to a process of this session's commands.

        Args:
            pid: a number of ours, or, where it is none of this session's, of the session's pid namespace: what a
                command prints of itself and its children.
            signum: the signal.

        Raises:
            ProcessNotFound: it is none of them, or is gone.
        """
        await trio.lowlevel.checkpoint()
        keepers = self._keepers_with_trees()
        try:
            _signal_below(keepers, pid, signum)
        except ProcessNotFound:
            named = _named_inside(keepers, pid) if self._interpreter.flags else None
            if named is None:
                raise
            _signal_below(keepers, named, signum)

    async def ask_to_end(self) -> None:
        """Send SIGTERM to every process of the session's commands and wait until none is left.

        The caller bounds it, and kills those that stay.
        """
        asked: set[int] = set()
        while pids := await self.descendants():
            for pid in pids - asked:
                with contextlib.suppress(ProcessNotFound):  # it ended by itself meanwhile, which is what we want
                    await self.signal(pid, signal.SIGTERM)
                    asked.add(pid)
            # The others are none of the session's commands: a keeper that got ready for its next one meanwhile.
            if ours := pids & asked:
                await _wait_any(ours)

    async def end(self) -> bool:
        """End everything in the session; return whether all of it is gone. May be called again.

        Cancellation: shielded, bounded by END_S here and in `Interpreter.end`.
        """
        if self.forking.leaves is not None:
            await self.forking.leaves.kill_all()
        self._keepers.close()
        gone = await self._interpreter.end()
        joined = False
        with trio.move_on_after(END_S, shield=True), contextlib.suppress(OSError):  # no descriptor left to wait with
            for pool in self._pools:
                pool.shut()
            for pool in self._pools:
                await pool.wait_gone()
            joined = True
        for pool in self._pools:
            pool.close()
        return gone and joined


def _below(keepers: frozenset[int]) -> frozenset[int]:
    return frozenset(entry.pid for keeper in keepers for entry in processes.descendants(keeper) if not entry.zombie)


def _named_inside(keepers: frozenset[int], pid: int) -> int | None:
    """Return our number of the process that is *pid* in the session's namespace."""
    return next((ours for ours in _below(keepers) if processes.number_inside(ours) == pid), None)


def _signal_below(keepers: frozenset[int], pid: int, signum: int) -> None:
    """Pin the process, look where it belongs, signal what was pinned: no reused pid is ever hit."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError) as error:
        raise ProcessNotFound(pid) from error
    try:
        if not processes.is_below(pid, keepers):
            raise ProcessNotFound(pid)
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError as error:
        raise ProcessNotFound(pid) from error
    finally:
        os.close(pidfd)


async def _wait_any(pids: Iterable[int]) -> None:
    """Return when one of the processes has ended."""
    with contextlib.ExitStack() as stack:
        pidfds = []
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                return
            stack.callback(close_descriptor, pidfd)
            pidfds.append(pidfd)
        async with trio.open_nursery() as nursery:

            async def watch(pidfd: int) -> None:
                await wait_ended(pidfd)
                nursery.cancel_scope.cancel(reason="one has ended")

            for pidfd in pidfds:
                nursery.start_soon(watch, pidfd)
