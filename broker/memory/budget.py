"""How many bytes of large things may be held at the same time, over all clients: a sum, and a queue in front of it.

Whoever wants more than is free waits its turn, for a bounded time. Meanwhile the holder that has kept a client's pace
for longest (a body that trickles in, an answer that nobody reads) is told to give way, so that slow clients cannot keep
the others out. What is small is not counted: it goes past any queue.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import attrs
import trio

SMALL_BYTES = 64 * 1024
"""What is no larger is not counted."""
PATIENCE_S = 5.0
"""Seconds that a holder may keep its client's pace while others wait; then the one that has for longest gives way."""
LOOK_S = 0.5
"""Between two looks for one that has to."""


@attrs.define(eq=False)
class Hold:
    """Bytes that are held, until `release`; which may be called more than once."""

    _budget: ByteBudget
    size: int

    def resize(self, size: int) -> None:
        """Hold another number from now on, even if that is more than there is."""
        if self in self._budget.holds:
            self._budget.held += size - self.size
            self.size = size
            self._budget.grant()

    def keeps_pace(self, give_way: Callable[[], None]) -> None:
        """Note that from now on it depends on a client how long this is held; *give_way* ends that."""
        if self in self._budget.holds:
            self._budget.paced[self] = (trio.current_time(), give_way)

    def at_rest(self) -> None:
        """Note that it no longer depends on a client."""
        self._budget.paced.pop(self, None)

    def release(self) -> None:
        """Hold nothing any more."""
        self.at_rest()
        self.resize(0)
        self._budget.holds.discard(self)


@attrs.define(eq=False)
class _Waiter:
    size: int
    granted: trio.Event = attrs.field(factory=trio.Event)
    hold: Hold | None = None


@attrs.define(eq=False)
class ByteBudget:
    """The sum. `limit_bytes` is exceeded only by `take`, and by what turns out larger than it was said to be."""

    limit_bytes: int
    held: int = attrs.field(default=0, init=False)
    uses: int = attrs.field(default=0, init=False)
    """How often something was held so far."""
    holds: set[Hold] = attrs.field(factory=set, init=False)
    paced: dict[Hold, tuple[float, Callable[[], None]]] = attrs.field(factory=dict, init=False)
    _used: trio.Event = attrs.field(factory=trio.Event, init=False)
    _waiting: deque[_Waiter] = attrs.field(factory=deque, init=False)

    def take(self, size: int) -> Hold:
        """Hold *size* bytes that are there already."""
        hold = Hold(self, size)
        self.holds.add(hold)
        self.held += size
        self.uses += 1
        self._used.set()
        return hold

    def take_while_alive(self, buffers: Iterable[object]) -> None:
        """Hold what *buffers* take, each until nobody has it any more, whatever became of its call by then.

        They must be such as can be weakly referred to.
        """
        token = trio.lowlevel.current_trio_token()
        for buffer in buffers:
            hold = self.take(sys.getsizeof(buffer))
            # Whoever lets go of it last may be a thread.
            weakref.finalize(buffer, _run_soon, token, hold.release).atexit = False

    async def wait_quiet(self, quiet_s: float) -> None:
        """Return when something was held and nothing has been for *quiet_s* to twice as many seconds."""
        await self._used.wait()
        seen = -1
        while self.held or self.uses != seen:
            seen = self.uses
            await trio.sleep(quiet_s)
        self._used = trio.Event()

    async def reserve(self, size: int, *, wait_s: float) -> Hold | None:
        """Hold *size* bytes as soon as they are free; None: they were not, in *wait_s* seconds.

        More than the limit is as much as the limit. Cancellation: nothing is held.
        """
        waiter = _Waiter(min(size, self.limit_bytes))
        self._waiting.append(waiter)
        self.grant()
        try:
            with trio.move_on_after(wait_s):
                await self._wait(waiter)
        except trio.Cancelled:
            if waiter.hold is not None:
                waiter.hold.release()
            raise
        finally:
            if waiter.hold is None:
                self._waiting.remove(waiter)
                self.grant()
        return waiter.hold

    def grant(self) -> None:
        """Let those in whose turn it is."""
        while self._waiting and self.held + self._waiting[0].size <= self.limit_bytes:
            waiter = self._waiting.popleft()
            waiter.hold = self.take(waiter.size)
            waiter.granted.set()

    async def _wait(self, waiter: _Waiter) -> None:
        while not waiter.granted.is_set():
            with trio.move_on_after(LOOK_S):
                await waiter.granted.wait()
                return
            if self._waiting and self._waiting[0] is waiter:
                self._make_way()
        await trio.lowlevel.checkpoint()

    def _make_way(self) -> None:
        oldest = min(self.paced, key=lambda hold: self.paced[hold][0], default=None)
        if oldest is not None and self.paced[oldest][0] + PATIENCE_S <= trio.current_time():
            _, give_way = self.paced.pop(oldest)
            give_way()


def _run_soon(token: trio.lowlevel.TrioToken, release: Callable[[], None]) -> None:
    with suppress(trio.RunFinishedError):  # nobody counts any more
        token.run_sync_soon(release)
