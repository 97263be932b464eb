"""Work on control groups that waits for the kernel's one lock over all of them, done beside the loop, in order.

Making and removing a group, killing one and moving a process wait for that lock, and moving a process holds it for as
long as the kernel needs to be sure of all processors: 6 ms, measured. A call must not wait for that, and the loop must
not either; so it is asked for here, ahead of need or after the fact. Outside the walls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import attrs
import trio

from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@attrs.define(eq=False)
class Chores:
    """A queue of such work; whoever opens the tree runs it."""

    _queue: list[tuple[Callable[[], object], Callable[[object], None]]] = attrs.field(factory=list, init=False)
    _wanted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = attrs.field(factory=lambda: trio.CancelScope(shield=True), init=False)

    def soon(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Have *work* done in a thread, and *then* told in the loop what it returned. Neither may raise."""
        self._queue.append((work, then))  # type: ignore[arg-type]  # a pair fits together, which a list cannot say
        self._wanted.set()

    async def settled(self) -> None:
        """Wait until all is done that was asked for before."""
        done = trio.Event()
        self.soon(lambda: None, lambda _: done.set())
        await done.wait()

    async def work_off(self) -> None:
        """Work until `stop`, whatever is cancelled: sessions that are being cancelled still need it."""
        limiter = trio.CapacityLimiter(1)
        with self._scope:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                batch, self._queue = self._queue, []
                results = await run_in_thread(_perform, batch, limiter=limiter, or_here=True)
                for (_, then), result in zip(batch, results, strict=True):
                    then(result)

    def stop(self) -> None:
        """Stop; what still waits is not done any more, because the whole tree goes."""
        self._scope.cancel(reason="the tree goes")


def _perform(batch: list[tuple[Callable[[], object], Callable[[object], None]]]) -> list[object]:
    return [work() for work, _ in batch]
