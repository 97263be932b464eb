"""One command's keeper: subreaper of its tree, owner of its end. Child side, forked by the init.

It holds one command-to-be ready, reports how its leader ended and when the tree is empty, and then gets the next
one ready. It ends the tree when told, when the broker's socket closes, and when the init dies (SIGTERM, asked
for by PR_SET_PDEATHSIG: SIGKILL would leave the tree without anybody to end it).

There are two kinds. One lives within the limits of its commands and spawns them (`spawned.py`); the other has no limits
and forks, for each command, a process that takes on what it must have (`forked.py`).

What it is told and says is in `sandbox/protocol/commands.py`. An order whose serial is no longer current is ignored, so
that it cannot hit the next command. A kernel that has no process for the next leader is asked again until it has.

In a session with control groups every leader gets one of its own: the way into it comes in before a leader is forked,
and the leader enters and says ready by itself, because entering takes the kernel milliseconds.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import socket
from types import MappingProxyType

from sandbox import wire
from sandbox.inside.keeper import forked
from sandbox.inside.keeper.spawned import Spawn, signal_group
from sandbox.inside.keeper.wakeup import Wakeup
from sandbox.kernel import landlock, process, processes, rlimits
from sandbox.protocol.commands import EXIT_NOT_STARTED, RETRY_S, TO_KEEPER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from sandbox.protocol.commands import (
        KillOrder,
        LeaderEnded,
        ProcessLimits,
        Ready,
        Short,
        SignalOrder,
        TreeGone,
        WayIn,
    )


def main(
    sock_fd: int,
    *,
    abi: int,
    tasks_room: int,
    init_pid: int,
    grouped: bool,
    limits: ProcessLimits | None,
) -> NoReturn:
    """Keep commands until there is nobody to keep them for. *limits*: those of all of them, which are then spawned."""
    process.default_signals(signal.SIGTERM)  # the init's handler came along, and would swallow it until ours is there
    process.die_with(init_pid, signal.SIGTERM)
    process.prctl(process.SET_CHILD_SUBREAPER, 1)
    sock = socket.socket(fileno=process.keep_only(sock_fd))
    landlock.scope_signals(abi)
    if limits is not None:
        rlimits.apply(limits, tasks_room)
        os.umask(forked.UMASK)
    # The init has our user, so only the domain can be what refuses the signal.
    scoped = processes.scope_holds(init_pid)
    keeper = Keeper(sock, abi=abi, tasks_room=tasks_room, scoped=scoped, grouped=grouped, spawns=limits is not None)
    with contextlib.suppress(ConnectionError, wire.WireBroken):  # the broker is gone: what remains is to end
        keeper.serve()
    keeper.end_tree()
    os._exit(0)


class Forked:
    """A leader that is a process from the first moment on; otherwise as `Spawn`."""

    __slots__ = ("lock", "pid", "status")
    waits = False

    def __init__(self, pid: int) -> None:
        """Stand for the process *pid*."""
        self.pid = pid
        self.status: int | None = None
        self.lock = _thread.allocate_lock()

    def let_go(self) -> None:
        """Do nothing: its number was looked up before it was launched."""

    def revoke(self) -> None:
        """Do nothing: it is there, and is killed like everything else."""

    def signal(self, signum: int) -> None:
        """Signal its process group, unless it is reaped."""
        if self.pid:
            signal_group(self.pid, signum)


class Keeper:
    """The current command's tree, from the waiting leader to the last reaped orphan."""

    def __init__(
        self, sock: socket.socket, *, abi: int, tasks_room: int, scoped: bool, grouped: bool, spawns: bool
    ) -> None:
        """Own *sock*.

        *scoped*: kill(-1) stays inside our domain; *grouped*: every leader has a control group; *spawns*: none has
        anything of its own.
        """
        self._sock = sock
        self._abi = abi
        self._tasks_room = tasks_room
        self._scoped = scoped
        self._wakeup = Wakeup(sock)
        self._grouped = grouped
        self._spawns = spawns
        self._entry = -1  # the way into the next leader's group, once it came
        self._serial = 0
        self._leader: Forked | Spawn = Forked(0)
        self._told = True  # whether the broker knows how the leader ended, if it has
        self._keeping = False  # whether there is anything below us, or about to be
        self._short = False  # whether the next leader could not be had

    def serve(self) -> None:
        """Serve until the broker or the init is gone."""
        self._arm()
        while True:
            readable, signals = self._wakeup.wait(RETRY_S if self._short else None)
            if signal.SIGTERM in signals:
                return
            if signals:
                self._reap()
            if readable and not self._obey():
                return
            if self._short and not (readable or signals or self._keeping):
                self._arm()

    def end_tree(self) -> None:
        """Kill and reap everything below us; nothing begins from here on."""
        self._leader.revoke()
        if self._scoped:
            processes.end_domain(self._exited)
        else:
            processes.end_in_rounds(self._exited)

    def _arm(self) -> None:
        """Get the next leader ready, or say why not."""
        try:
            if self._spawns:
                self._start_spawn()
            else:
                self._fork_leader()
        except ConnectionError:
            raise
        except OSError as error:  # no process, or no descriptor
            if not self._short:
                self._short = True
                short: Short = {"op": "short", "why": error.strerror or str(error)}
                wire.send(self._sock, short)
        else:
            self._short = False

    def _start_spawn(self) -> None:
        ours, theirs = wire.pair()
        with ours:
            try:
                spawn = Spawn(theirs, self._abi, self._wakeup.poke)
            except OSError:
                theirs.close()
                raise
            self._serial += 1
            self._have(spawn)
            self._say_ready([ours.fileno()])

    def _have(self, leader_to_be: Forked | Spawn) -> None:
        self._leader = leader_to_be
        self._told = False
        self._keeping = True

    def _fork_leader(self) -> None:
        """Fork it, if there is a group for it or need be none."""
        if self._grouped and self._entry < 0:
            return
        ours, theirs = wire.pair()
        with ours, theirs:
            self._have(Forked(self._fork(ours, theirs)))
            if self._grouped:
                os.close(self._entry)
                self._entry = -1
            else:
                self._announce(self._leader.pid, ours)

    def _fork(self, ours: socket.socket, theirs: socket.socket) -> int:
        self._serial += 1
        keeper_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            self._serial -= 1
            raise
        if pid == 0:
            try:
                forked.main(
                    theirs.fileno(),
                    abi=self._abi,
                    tasks_room=self._tasks_room,
                    keeper_pid=keeper_pid,
                    arrive=(lambda: self._enter(ours)) if self._grouped else None,
                )
            finally:
                os._exit(EXIT_NOT_STARTED)
        return pid

    def _enter(self, ours: socket.socket) -> forked.Failure | None:
        """In the leader: enter its group, then say ready; a failure waits for who wants to launch something."""
        try:
            os.write(self._entry, b"0")
        except OSError as error:
            fault: forked.Failure | None = ("cgroup", error)
        else:
            fault = None
        self._announce(os.getpid(), ours)
        return fault

    def _announce(self, leader_pid: int, ours: socket.socket) -> None:
        pidfd = os.pidfd_open(leader_pid)  # its number in here may mean nothing outside
        try:
            self._say_ready([ours.fileno(), pidfd])
        finally:
            os.close(pidfd)

    def _say_ready(self, fds: list[int]) -> None:
        ready: Ready = {"op": "ready", "serial": self._serial}
        wire.send(self._sock, ready, fds)

    @property
    def _state(self) -> str:
        """Which orders may come now: a key of TO_KEEPER."""
        if not self._grouped:
            return "alone"
        return "wanting" if self._entry < 0 else "holding"

    def _obey(self) -> bool:
        received = wire.hear(self._sock, TO_KEEPER[self._state])
        if received is None:
            return False
        order, fds = received
        ORDERS[order["op"]](self, order, fds)
        return True

    def _enter_next(self, _order: WayIn, fds: list[int]) -> None:
        (self._entry,) = fds
        if not (self._keeping or self._short):
            self._arm()

    def _signal(self, order: SignalOrder, _fds: list[int]) -> None:
        if order["serial"] == self._serial:
            self._leader.signal(order["signal"])

    def _kill(self, order: KillOrder, _fds: list[int]) -> None:
        if order["serial"] == self._serial:
            self.end_tree()
            self._settle(empty=True)

    def _exited(self, pid: int, status: int) -> None:
        if pid == self._leader.pid:
            self._leader.pid = 0
            self._leader.status = status

    def _reap(self) -> None:
        with self._leader.lock:
            self._leader.let_go()
            empty = self._reap_children()
            waits = self._leader.waits
        if not waits:  # or it was the signal of one before, and came late
            self._settle(empty=empty)

    def _reap_children(self) -> bool:
        """Reap who has exited; return whether nobody is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                self._exited(pid, status)
        except ChildProcessError:
            return True

    def _settle(self, *, empty: bool) -> None:
        """Report what changed; once the tree is gone, prepare the next leader."""
        if self._leader.status is not None and not self._told:
            self._told = True
            ended: LeaderEnded = {"op": "ended", "serial": self._serial, "status": self._leader.status, "empty": empty}
            wire.send(self._sock, ended)
        elif empty:
            gone: TreeGone = {"op": "empty", "serial": self._serial}
            wire.send(self._sock, gone)
        if empty:
            self._keeping = False
            if not self._short:
                self._arm()


ORDERS: Mapping[str, Callable[[Keeper, Any, list[int]], None]] = MappingProxyType(
    {"leaf": Keeper._enter_next, "signal": Keeper._signal, "kill": Keeper._kill}  # noqa: SLF001  a table of its own
)
"""By kind of an order, the method that performs it. What may come when: TO_KEEPER."""
