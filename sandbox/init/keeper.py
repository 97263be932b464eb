"""One keeper as the broker sees it: its socket, the leader it holds ready, what it said of the last one."""

from __future__ import annotations

import contextlib
import os
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox import wire
from sandbox.kernel.processes import take_pid
from sandbox.polled import close_descriptor, close_socket
from sandbox.protocol.commands import FROM_KEEPER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandbox.cgroup.session import Leaf, Leaves
    from sandbox.protocol.commands import KillOrder, LeaderEnded, Ready, Short, SignalOrder, TreeGone, WayIn


@attrs.define(eq=False)
class Slot:
    """One keeper as the broker sees it. `serial` counts its commands; orders and news carry it.

    `keeper_pid` and `leader_pid` are numbers of the broker's pid namespace, 0 for what ended before it was known; a
    leader that is spawned has none yet. `launched` is the last serial that became a command.
    With control groups: `leaf` is that of the leader that waits, until a command has it; `next_leaf` that of the one
    after it, `promised` as soon as it is being made.
    """

    keeper_pid: int
    sock: socket.socket
    serial: int = 0
    leader_pid: int = 0
    launch: socket.socket | None = None  # to the leader that waits; None while there is none
    launched: int = 0
    ended: tuple[int, int] = (0, 0)  # serial and wait status of the last command whose leader ended
    empty_serial: int = 0  # the last command whose whole tree is gone
    gone: bool = False
    awaited: bool = False  # by a task of the pool, whose the next news are
    shortage: str = ""  # why there is no leader yet, if the kernel refused it
    leaves: Leaves | None = None
    leaf: Leaf | None = None
    next_leaf: Leaf | None = None
    promised: bool = False

    def read_news(self) -> None:
        """Take in what the keeper said, without waiting."""
        try:
            while not self.gone:
                received = wire.hear(self.sock, FROM_KEEPER)
                if received is None:
                    self._lost()
                else:
                    news, fds = received
                    NEWS[news["op"]](self, news, fds)
        except BlockingIOError:
            return
        except (wire.WireBroken, OSError):  # OSError: we have no descriptor left to look at what came with it
            self._lost()

    def _arm(self, news: Ready, fds: list[int]) -> None:
        self.disarm()
        self._advance(news["serial"])
        self.shortage = ""
        self.launch = socket.socket(fileno=fds[0])
        self.launch.setblocking(False)
        self.leader_pid = take_pid(fds[1]) if len(fds) > 1 else 0

    def _run_short(self, news: Short, _fds: list[int]) -> None:
        self.shortage = news["why"]

    def _end(self, news: LeaderEnded, _fds: list[int]) -> None:
        self._advance(news["serial"])  # a leader that died before it was ready
        if news["serial"] == self.launched:  # not what came to nothing after it, which nobody asks for
            self.ended = (news["serial"], news["status"])
        if news["empty"]:
            self.empty_serial = news["serial"]

    def _empty(self, news: TreeGone, _fds: list[int]) -> None:
        self.empty_serial = news["serial"]

    def _advance(self, serial: int) -> None:
        """Go on to the next leader, if *serial* is its: the leaf that waited for it is its own now."""
        if serial > self.serial:
            self.serial = serial
            self._release(self.leaf)
            self.leaf, self.next_leaf, self.promised = self.next_leaf, None, False

    def begin(self) -> None:
        """Learn that the leader that waited is a command from now on, and `launch` its owner's."""
        self.launch = None
        self.launched = self.serial

    def take_leaf(self) -> Leaf | None:
        """Return the leaf of the leader that waits; it is the caller's from now on."""
        leaf, self.leaf = self.leaf, None
        return leaf

    def enter_next(self, leaf: Leaf) -> None:
        """Give the keeper the way into the group of its next leader."""
        self.next_leaf = leaf
        way_in: WayIn = {"op": "leaf"}
        with contextlib.suppress(OSError):  # it is gone
            wire.send(self.sock, way_in, [leaf.entry])
        leaf.close_entry()

    def _release(self, leaf: Leaf | None) -> None:
        if leaf is not None and self.leaves is not None:
            self.leaves.release(leaf)

    def _lost(self) -> None:
        self.gone = True
        self.disarm()

    def disarm(self) -> None:
        """Let go of the waiting leader, if there is one."""
        if self.launch is not None:
            self.launch.close()
            self.launch = None

    def signal(self, serial: int, signum: int) -> None:
        """Have the process group of command *serial* signalled."""
        self._order({"op": "signal", "serial": serial, "signal": signum})

    def kill(self, serial: int) -> None:
        """Have the whole tree of command *serial* ended."""
        self._order({"op": "kill", "serial": serial})

    def _order(self, order: SignalOrder | KillOrder) -> None:
        with contextlib.suppress(OSError):  # it is gone, or its buffer is full of the same order
            wire.send(self.sock, order)

    async def wait_news(self) -> None:
        """Wait until the keeper said something, and take it in."""
        await trio.lowlevel.wait_readable(self.sock)
        self.read_news()

    async def wait_gone(self) -> None:
        """Wait until the keeper is gone, whoever else waits for its news."""
        while not self.gone:
            fd = os.dup(self.sock.fileno())  # trio lets one task wait per descriptor
            try:
                await trio.lowlevel.wait_readable(fd)
            finally:
                close_descriptor(fd)
            self.read_news()

    def shut(self) -> None:
        """Say that there will be no more orders: the keeper ends its tree, and its end closes the socket."""
        with contextlib.suppress(OSError):  # ENOTCONN: it is gone
            self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go: the keeper ends whatever it still has, and itself."""
        self._lost()
        close_socket(self.sock)
        for leaf in (self.leaf, self.next_leaf):
            self._release(leaf)
        self.leaf = self.next_leaf = None


NEWS: Mapping[str, Callable[[Slot, Any, list[int]], None]] = MappingProxyType(
    {"ready": Slot._arm, "short": Slot._run_short, "ended": Slot._end, "empty": Slot._empty}  # noqa: SLF001  its own
)
"""By kind of what a keeper says, the method that takes it in."""
