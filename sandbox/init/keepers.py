"""The keepers that a session's init was asked for, until they come. Broker side.

Owns the reading of the init's socket. Keepers come in the order in which they were asked for, so the pool that asked
first gets the first.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import trio

from sandbox import wire
from sandbox.kernel.processes import take_pid
from sandbox.protocol.commands import FROM_INIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandbox.cgroup.session import Leaf
    from sandbox.protocol.commands import KeeperForked, KeeperWanted, Short


class Pool(Protocol):
    """Who asks for keepers."""

    @property
    def size(self) -> int:
        """How many it has, and asked for."""

    def welcome(self, keeper_pid: int, sock: socket.socket, leaf: Leaf | None) -> None:
        """Take in one that came; *leaf* is its first command's."""

    def miss(self, leaf: Leaf | None) -> None:
        """Learn that one came which could not be taken in, and that *leaf* is free."""


class Keepers:
    """Asks an init for keepers, and hands out those that come.

    Attributes:
        gone: whether the init is.
        shortage: why those that were asked for do not come, if the kernel refused one.
        pools: all that ask.
        turn: held by the one task that waits for the init's socket.
    """

    def __init__(self, init_sock: socket.socket) -> None:
        """Borrow the init's socket."""
        self.gone = False
        self.shortage = ""
        self.turn = trio.Lock()
        self.pools: list[Pool] = []
        self._sock = init_sock
        self._asked: deque[tuple[Pool, Leaf | None]] = deque()

    @property
    def in_use(self) -> int:
        """How many keepers the session has, with those on their way."""
        return sum(pool.size for pool in self.pools)

    def ask(self, pool: Pool, *, spawns: bool, leaf: Leaf | None = None) -> None:
        """Ask for one, which will belong to *pool*.

        Args:
            pool: who gets it.
            spawns: see `sandbox/inside/keeper/keeper.py`.
            leaf: the group of its first command; its entry stays the caller's.

        Raises:
            OSError: the init is gone.
        """
        wanted: KeeperWanted = {"op": "keeper", "spawns": spawns}
        wire.send(self._sock, wanted, [] if leaf is None else [leaf.entry])
        self._asked.append((pool, leaf))

    async def wait(self) -> None:
        """Wait until the init said something, and take it in. Only with `turn`."""
        await trio.lowlevel.wait_readable(self._sock)
        self._collect()

    def close(self) -> None:
        """Have no more to do with the init, whose socket its owner closes."""
        self.gone = True

    def refresh(self) -> None:
        """Take in what the init said, unless a task waits for that: reading it here would leave it waiting."""
        if not self.turn.locked():
            self._collect()

    def _collect(self) -> None:
        try:
            while not self.gone:
                self._hear()
        except BlockingIOError:
            return
        except wire.WireBroken:
            self.gone = True

    def _hear(self) -> None:
        try:
            received = wire.hear(self._sock, FROM_INIT["asked" if self._asked else "idle"])
        except wire.Truncated:
            self._miss()
            return
        if received is None:
            self.gone = True
        else:
            news, fds = received
            NEWS[news["op"]](self, news, fds)

    def _run_short(self, news: Short, _fds: list[int]) -> None:
        self.shortage = news["why"]

    def _welcome(self, _news: KeeperForked, fds: list[int]) -> None:
        fd, pidfd = fds
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            keeper_pid = take_pid(pidfd)
        except OSError:
            sock.close()
            self._miss()
        else:
            self.shortage = ""
            pool, leaf = self._asked.popleft()
            pool.welcome(keeper_pid, sock, leaf)

    def _miss(self) -> None:
        """Learn that one came for which we have no descriptors left. It ends, because nobody holds its socket."""
        self.shortage = os.strerror(errno.EMFILE)
        pool, leaf = self._asked.popleft()
        pool.miss(leaf)


NEWS: Mapping[str, Callable[[Keepers, Any, list[int]], None]] = MappingProxyType(
    {"keeper": Keepers._welcome, "short": Keepers._run_short}  # noqa: SLF001  a table of its own methods
)
"""By kind of what an init says while it serves, who takes it in."""
