"""A pool of a session's slots, each of them one keeper of one kind.

A slot is free (its keeper has a leader ready, or is getting one ready), busy (a command owns it), or lingering (its
command ended and left daemons, which live until the session ends). A call that finds no leader ready makes the
pool grow, calls that do let it shrink again slowly, and rest lets it shrink at once: forking stays off the path of a
call, and an idle session pays for one keeper of the usual kind. `Keepers` has those that the init was asked for, until
they come.
"""

from __future__ import annotations

import math
import os
import socket
from collections import deque
from contextlib import suppress
from errno import EAGAIN, EMFILE
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from sandbox import wire
from sandbox.errors import SpawnFailed
from sandbox.init.keeper import Slot
from sandbox.kernel.processes import take_pid
from sandbox.protocol.commands import FROM_INIT, NO_ROOM, RETRY_S

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from sandbox.cgroup.session import Leaf, Leaves
    from sandbox.protocol.commands import KeeperForked, KeeperWanted, Short

SHRINK = 0.99  # of the pool's size per command: from 8 to 7 in 13
REST_S = 3.0  # after which slots that no call had use for are let go: each is a process and two descriptors
TAKE_S = 10.0  # usually no time at all, 1.5 ms when the pool grows
SLOTS_MAX = 64  # commands at once and commands that left daemons, together


class SlotPool:
    """Slots of one kind. Keepers come from the init on request.

    With *leaves*, each keeper comes with a control group for its first command, and gets the next one's while a
    command runs.
    """

    def __init__(self, keepers: Keepers, leaves: Leaves | None = None, *, spawns: bool = False) -> None:
        """Begin with no slot and none on its way. *spawns*: see `sandbox/inside/keeper/keeper.py`."""
        self.leaves = leaves
        self._keepers = keepers
        self._spawns = spawns
        self._closed = False
        self._owed = 0  # keepers asked for that did not come yet
        self._waiting = 0  # tasks that wait for a slot
        self._free: list[Slot] = []
        self._busy: set[Slot] = set()
        self._lingering: list[Slot] = []
        self._need = 1.0  # slots, without lingering ones, that calls have had use for lately
        self._peak = 0  # of busy ones, since the last rest
        self._grown = trio.Event()  # there is more than one
        keepers.pools.append(self)

    def get_ready(self) -> None:
        """Have a slot on its way, if there is none. A call that comes before asks for it itself, and waits."""
        if not self.size:
            with suppress(SpawnFailed):  # the init is gone, which whoever needs a slot learns
                self._ask()

    async def take(self) -> Slot:
        """Return a slot whose leader waits; the caller gives it back or discards it.

        Raises:
            SpawnFailed: the init is gone or stuck, or the session holds too many daemons already; at stage NO_ROOM,
                the limits of the session leave these keepers no room, and other ones may serve.
        """
        if (ready := self._take_nowait()) is not None:
            return ready
        try:
            with trio.fail_after(TAKE_S):
                return await self._take()
        except trio.TooSlowError:
            raise self._not_in_time() from None

    def _not_in_time(self) -> SpawnFailed:
        why, number = "", None
        if refused := self._keepers.shortage or self._refused():
            number = EAGAIN
            why = (
                f": the kernel refuses one ({refused}); a limit on processes or open files is used up, of the user, "
                "the control group, the container or the machine: try again when fewer run"
            )
        elif self.leaves is not None and self.leaves.fault is not None:
            why = f": {self.leaves.fault}"
        return SpawnFailed("keeper", f"no process was ready within {TAKE_S:g} s{why}", number)

    async def _take(self) -> Slot:
        self._grow()
        self._waiting += 1
        try:
            while (ready := self._take_nowait()) is None:
                if self._spawns and (why := self._refused()):
                    raise SpawnFailed(NO_ROOM, why)
                await self._wait_any()
            return ready
        finally:
            self._waiting -= 1

    def _refused(self) -> str:
        """Say why keepers have no next leader, if the kernel refused one."""
        return next((slot.shortage for slot in self._free if slot.shortage and slot.launch is None), "")

    def _take_nowait(self) -> Slot | None:
        self._refresh()
        ready = next((slot for slot in self._free if slot.launch is not None and not slot.awaited), None)
        if ready is not None:
            self._free.remove(ready)
            self._busy.add(ready)
            self._peak = max(self._peak, len(self._busy))
        elif self._keepers.gone:
            raise SpawnFailed("keeper", "the session's process is gone")
        return ready

    def give_back(self, slot: Slot) -> None:
        """Return a slot after its command: free if the tree is gone or never was, lingering otherwise."""
        self._busy.discard(slot)
        if slot.gone or self._closed:
            slot.close()
        elif slot.empty_serial < slot.serial and slot.launch is None:
            self._lingering.append(slot)
        elif self._live() >= math.ceil(self._need):
            slot.close()
        else:
            self._free.append(slot)
            self.provide(slot)
        self._need = max(1.0, self._need * SHRINK)

    async def rest(self) -> None:
        """Let go of slots that no call had use for in the last REST_S seconds, again and again, until cancelled."""
        while True:
            await self._grown.wait()
            self._peak = len(self._busy)
            await trio.sleep(REST_S)
            self._need = max(1.0, min(self._need, self._peak + 1.0 if self._peak else 1.0))
            spare = [slot for slot in self._free if not slot.awaited]
            while spare and self._live() > math.ceil(self._need):
                self._free.remove(spare[-1])
                spare.pop().close()
            if self._live() <= 1:
                self._grown = trio.Event()

    def provide(self, slot: Slot) -> None:
        """Have a leaf made for the command after the one that *slot* has, if it has none yet."""
        if self.leaves is not None and not (slot.promised or slot.gone):
            slot.promised = True
            self.leaves.make_soon(partial(self._hand_over, slot))

    def _hand_over(self, slot: Slot, leaf: Leaf | None) -> None:
        if leaf is None:
            slot.promised = False
        elif self.leaves is not None and slot.gone:
            self.leaves.release(leaf)
        else:
            slot.enter_next(leaf)

    def discard(self, slot: Slot) -> None:
        """Let go of a slot that cannot be trusted any more."""
        self._busy.discard(slot)
        slot.close()

    def keepers_with_trees(self) -> Iterator[int]:
        """Give the keepers that have a command's processes below them."""
        self._refresh()
        for slot in (*self._busy, *self._lingering):
            if not slot.gone:
                yield slot.keeper_pid

    def shut(self) -> None:
        """Have every keeper end its tree and itself."""
        for slot in self._all():
            slot.shut()

    async def wait_gone(self) -> None:
        """Wait until every keeper has, after `shut`; the caller bounds it."""
        for slot in self._all():
            await slot.wait_gone()

    def close(self) -> None:
        """Let go of every slot."""
        self._closed = True
        for slot in self._all():
            slot.close()
        self._free, self._busy, self._lingering = [], set(), []

    def _all(self) -> tuple[Slot, ...]:
        return (*self._free, *self._busy, *self._lingering)

    @property
    def size(self) -> int:
        """How many slots there are, with those on their way."""
        return self._live() + len(self._lingering)

    def _live(self) -> int:
        """Count the slots that serve or will."""
        return len(self._free) + len(self._busy) + self._owed

    def _refresh(self) -> None:
        """Take in all news but those that a task waits for: reading them here would leave it waiting."""
        self._keepers.refresh()
        for slot in (*self._free, *self._lingering):
            if not slot.awaited:
                slot.read_news()
        for slot in [slot for slot in self._free if slot.launch is None]:
            self.provide(slot)
        for slot in [slot for slot in self._lingering if slot.gone or slot.launch is not None]:
            self._lingering.remove(slot)
            self.give_back(slot)
            if self.leaves is not None:
                self.leaves.tidy()
        for slot in [slot for slot in self._free if slot.gone and not slot.awaited]:
            self._free.remove(slot)
            slot.close()

    def welcome(self, keeper_pid: int, sock: socket.socket, leaf: Leaf | None) -> None:
        """Have a further slot."""
        self._owed -= 1
        if self.leaves is None:
            self._free.append(Slot(keeper_pid, sock))
        else:
            self._free.append(Slot(keeper_pid, sock, leaves=self.leaves, next_leaf=leaf, promised=True))
        if self._live() > 1:
            self._grown.set()

    def miss(self, leaf: Leaf | None) -> None:
        """Do without one that was asked for."""
        self._owed -= 1
        if leaf is not None and self.leaves is not None:
            self.leaves.release(leaf)

    def _grow(self) -> None:
        """Nothing is ready. Have one on its way for us, and one to spare where a call outran a used slot."""
        coming = len(self._free) + self._owed - self._waiting
        outrun = bool(self._free) and all(slot.serial for slot in self._free)
        if coming < 1 or (coming < 2 and outrun):
            self._need = max(self._need, self._live() + 1.0)
            if self._keepers.in_use < SLOTS_MAX:
                self._ask()

    async def _wait_any(self) -> None:
        """Wait for news of a slot that nobody else waits for, or for a further slot."""
        slot = self._unclaimed()
        if slot is None:
            await self._wait_keeper()
            return
        slot.awaited = True
        try:
            await slot.wait_news()
        finally:
            slot.awaited = False

    async def _wait_keeper(self) -> None:
        if not self._owed and self._keepers.shortage:
            await trio.sleep(RETRY_S)
        if not self._owed:  # somebody was faster, and took the one that came for us
            if self._keepers.in_use >= SLOTS_MAX:
                raise SpawnFailed("keeper", f"{SLOTS_MAX} commands of this session run or left processes behind")
            self._ask()
        async with self._keepers.turn:
            if self._owed and self._unclaimed() is None:
                await self._keepers.wait()

    def _unclaimed(self) -> Slot | None:
        return next((slot for slot in self._free if not slot.awaited), None)

    def _ask(self) -> None:
        if self.leaves is not None:
            self.leaves.make_soon(self._ask_with)
        else:
            try:
                self._keepers.ask(self, spawns=self._spawns)
            except OSError as error:
                raise SpawnFailed("keeper", "the session's process is gone") from error
        self._owed += 1

    def _ask_with(self, leaf: Leaf | None) -> None:
        """Ask for a keeper whose first command has *leaf*."""
        if leaf is None:
            self._owed -= 1
            return
        try:
            self._keepers.ask(self, spawns=self._spawns, leaf=leaf)
        except OSError:  # the init is gone, which whoever waits learns from the end of its socket
            self._owed -= 1
        leaf.close_entry()


class Keepers:
    """Asks an init for keepers, and hands out those that come. Owns the reading of the init's socket.

    Keepers come in the order in which they were asked for, so the pool that asked first gets the first.

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
        self.pools: list[SlotPool] = []
        self._sock = init_sock
        self._asked: deque[tuple[SlotPool, Leaf | None]] = deque()

    @property
    def in_use(self) -> int:
        """How many keepers the session has, with those on their way."""
        return sum(pool.size for pool in self.pools)

    def ask(self, pool: SlotPool, *, spawns: bool, leaf: Leaf | None = None) -> None:
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
        self.shortage = os.strerror(EMFILE)
        pool, leaf = self._asked.popleft()
        pool.miss(leaf)


NEWS: Mapping[str, Callable[[Keepers, Any, list[int]], None]] = MappingProxyType(
    {"keeper": Keepers._welcome, "short": Keepers._run_short}  # noqa: SLF001  a table of its own methods
)
"""By kind of what an init says while it serves, the method that takes it in."""
