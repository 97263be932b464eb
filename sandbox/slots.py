"""The pool of a session's slots, each of them one keeper.

A slot is free (its keeper has a leader ready, or is forking one), busy (a command owns it), or lingering (its
command ended and left daemons, which live until the session ends). A call that finds no leader ready makes the
pool grow, calls that do let it shrink again slowly: forking stays off the path of a call, and an idle session
pays for one pair of processes.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import trio

from sandbox import wire
from sandbox.faults import SpawnFailed
from sandbox.pids import take_pid
from sandbox.slot import Slot
from sandbox.wakeup import RETRY_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.cgroup_leaves import Leaf, Leaves

SHRINK = 0.99  # of the pool's size per command: from 8 to 7 in 13
TAKE_S = 10.0  # usually no time at all, 1.5 ms when the pool grows
SLOTS_MAX = 64  # commands at once and commands that left daemons, together


class SlotPool:
    """A session's slots. Keepers come from the init on request, one answer per request, in order.

    With *leaves*, each keeper comes with a control group for its first command, and gets the next one's while a
    command runs.
    """

    def __init__(self, init_sock: socket.socket, leaves: Leaves | None = None) -> None:
        """Borrow the init's socket; its first keeper comes unasked, unless it needs a leaf."""
        self._init_sock = init_sock
        self.leaves = leaves
        self._on_their_way: deque[Leaf] = deque()  # with keepers that were asked for
        self._init_gone = False
        self._closed = False
        self._owed = 0 if leaves else 1  # keepers asked for that did not come yet
        self._waiting = 0  # tasks that wait for a slot
        self._turn = trio.Lock()  # one task waits on the init's socket
        self._free: list[Slot] = []
        self._busy: set[Slot] = set()
        self._lingering: list[Slot] = []
        self._shortage = ""  # why keepers that were asked for do not come, if the kernel refused one
        self._need = 1.0  # slots, without lingering ones, that calls have had use for lately
        if leaves is not None:
            self._ask()

    async def take(self) -> Slot:
        """Return a slot whose leader waits; the caller gives it back or discards it.

        Raises:
            SpawnFailed: the init is gone or stuck, or the session holds too many daemons already.
        """
        if (ready := self._take_nowait()) is not None:
            return ready
        try:
            with trio.fail_after(TAKE_S):
                return await self._take()
        except trio.TooSlowError:
            raise SpawnFailed("keeper", f"no process was ready within {TAKE_S:g} s{self._why_not()}") from None

    def _why_not(self) -> str:
        refused = self._shortage or next((slot.shortage for slot in self._free if slot.shortage), "")
        if refused:
            return (
                f": the kernel refuses one ({refused}); a limit on processes or open files is used up, of the user, "
                "the control group, the container or the machine: try again when fewer run"
            )
        return f": {self.leaves.fault}" if self.leaves is not None and self.leaves.fault is not None else ""

    async def _take(self) -> Slot:
        self._grow()
        self._waiting += 1
        try:
            while True:
                await self._wait_any()
                if (ready := self._take_nowait()) is not None:
                    return ready
        finally:
            self._waiting -= 1

    def _take_nowait(self) -> Slot | None:
        self._refresh()
        ready = next((slot for slot in self._free if slot.launch is not None and not slot.awaited), None)
        if ready is not None:
            self._free.remove(ready)
            self._busy.add(ready)
        elif self._init_gone:
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
            yield slot.keeper_pid

    async def wait_gone(self) -> None:
        """Have every keeper end its tree and itself, and wait for that: the caller bounds it."""
        slots = (*self._free, *self._busy, *self._lingering)
        for slot in slots:
            slot.shut()
        for slot in slots:
            await slot.wait_gone()

    def close(self) -> None:
        """Let go of every slot."""
        self._closed = True
        for slot in (*self._free, *self._busy, *self._lingering):
            slot.close()

    def _live(self) -> int:
        """Count the slots that serve or will."""
        return len(self._free) + len(self._busy) + self._owed

    def _refresh(self) -> None:
        """Take in all news but those that a task waits for: reading them here would leave it waiting."""
        if not self._turn.locked():
            self._collect()
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

    def _collect(self) -> None:
        """Take the keepers that came."""
        try:
            while not self._init_gone:
                self._hear()
        except BlockingIOError:
            return
        except wire.WireBroken:
            self._init_gone = True

    def _hear(self) -> None:
        try:
            received = wire.receive(self._init_sock)
        except wire.Truncated:
            self._lose_keeper()
            return
        if received is None:
            self._init_gone = True
        elif received[0]["op"] == "short":
            self._shortage = received[0]["why"]
        else:
            self._welcome(*received[1])

    def _welcome(self, fd: int, pidfd: int) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            keeper_pid = take_pid(pidfd)
        except OSError:
            sock.close()
            self._lose_keeper()
        else:
            self._shortage = ""
            self._free.append(self._slot(keeper_pid, sock))
            self._owed -= 1

    def _lose_keeper(self) -> None:
        """Learn that one came for which we have no descriptors left. It ends, because nobody holds its socket."""
        self._shortage = os.strerror(errno.EMFILE)
        self._owed -= 1
        if self.leaves is not None:
            self.leaves.release(self._on_their_way.popleft())

    def _slot(self, keeper_pid: int, sock: socket.socket) -> Slot:
        if self.leaves is None:
            return Slot(keeper_pid, sock)
        return Slot(keeper_pid, sock, leaves=self.leaves, next_leaf=self._on_their_way.popleft(), promised=True)

    def _grow(self) -> None:
        """Nothing is ready. Have one on its way for us, and one to spare where a call outran a used slot."""
        coming = len(self._free) + self._owed - self._waiting
        outrun = bool(self._free) and all(slot.serial for slot in self._free)
        if coming < 1 or (coming < 2 and outrun):
            self._need = max(self._need, self._live() + 1.0)
            if self._live() + len(self._lingering) < SLOTS_MAX:
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
        if not self._owed and self._shortage:
            await trio.sleep(RETRY_S)
        if not self._owed:  # somebody was faster, and took the one that came for us
            if self._live() + len(self._lingering) >= SLOTS_MAX:
                raise SpawnFailed("keeper", f"{SLOTS_MAX} commands of this session run or left processes behind")
            self._ask()
        async with self._turn:
            if self._owed and self._unclaimed() is None:
                await trio.lowlevel.wait_readable(self._init_sock)
                self._collect()

    def _unclaimed(self) -> Slot | None:
        return next((slot for slot in self._free if not slot.awaited), None)

    def _ask(self) -> None:
        if self.leaves is not None:
            self.leaves.make_soon(self._ask_with)
        else:
            try:
                wire.send(self._init_sock, {"op": "keeper"})
            except OSError as error:
                raise SpawnFailed("keeper", "the session's process is gone") from error
        self._owed += 1

    def _ask_with(self, leaf: Leaf | None) -> None:
        """Ask for a keeper whose first command has *leaf*."""
        if leaf is None:
            self._owed -= 1
            return
        try:
            wire.send(self._init_sock, {"op": "keeper"}, [leaf.entry])
        except OSError:  # the init is gone, which whoever waits learns from the end of its socket
            self._owed -= 1
        else:
            self._on_their_way.append(leaf)
        leaf.close_entry()
