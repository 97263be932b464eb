"""Bounded places: connections take turns for theirs, calls in flight are counted exactly.

`Places`: who gets in when all places are taken is the newcomer, in the place of who has been idle for longest. The
other way round, a few clients that hold their places and do nothing would keep everybody else out. Who is busy keeps
its place; where all are, the newcomer has to come back.

`Slots`: a call has left when its work *and* its answer are done. In the handshake era the work of a call goes on after
its client has left. Counting HTTP requests alone would let a client start calls without limit by leaving each at once;
so both the request and the work hold the slot.

Knows nothing of what the places are for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import attrs
import trio


class Occupant(Protocol):
    """Holder of a place."""

    def leave(self) -> None:
        """Go, at once or soon: the place is another's already. Asked of who is idle."""
        ...


T = TypeVar("T", bound=Occupant)


def longest_idle(idle: Iterable[T]) -> T | None:
    """Return the first, if there is one."""
    return next(iter(idle), None)


@attrs.define(eq=False)
class Places(Generic[T]):
    """The places there are. `_choose` is given who is idle, the longest first, and says who goes; None: nobody."""

    limit: int
    _choose: Callable[[Iterable[T]], T | None] = longest_idle
    _held: set[T] = attrs.field(factory=set, init=False)
    _idle: dict[T, None] = attrs.field(factory=dict, init=False)

    def holds(self, occupant: T) -> bool:
        """Whether *occupant* has a place, and has not been asked to leave."""
        return occupant in self._held

    def admit(self, newcomer: T) -> bool:
        """Give *newcomer* a place, idle for the time being; False: all are held by who is busy."""
        if len(self._held) >= self.limit:
            victim = self._choose(self._idle)
            if victim is None:
                return False
            self.remove(victim)
            victim.leave()
        self._held.add(newcomer)
        self._idle[newcomer] = None
        return True

    def busy(self, occupant: T) -> None:
        """Let *occupant* keep its place until it is idle; one that was asked to leave, too late, holds it again."""
        self._held.add(occupant)
        self._idle.pop(occupant, None)

    def idle(self, occupant: T) -> None:
        """Note that *occupant* does nothing from now on."""
        if occupant in self._held:
            self._idle.pop(occupant, None)
            self._idle[occupant] = None

    def remove(self, occupant: T) -> None:
        """Give its place back."""
        self._held.discard(occupant)
        self._idle.pop(occupant, None)


@attrs.define(eq=False)
class Slot:
    """The place of one call; free again when nobody holds it."""

    _slots: Slots
    _key: Hashable
    _holders: int = 0
    when_free: Callable[[], None] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the slot; several may, one after the other or at once."""
        self._holders += 1
        if self._holders == 1:
            self._slots.taken += 1
            self._slots.keys.add(self._key)
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._slots.leave(self._key)
                self.when_free()


@attrs.define(eq=False)
class Slots:
    """The places there are, and the keys of the calls that hold one (None for calls without)."""

    limit: int
    taken: int = 0
    keys: set[Hashable] = attrs.field(factory=set)
    _empty: trio.Event = attrs.field(factory=trio.Event)

    @property
    def full(self) -> bool:
        """Whether no further call may come in."""
        return self.taken >= self.limit

    def new(self, key: Hashable = None) -> Slot:
        """Return a slot that nobody holds yet. *key* tells calls apart that must not run twice at once."""
        return Slot(self, key)

    def leave(self, key: Hashable) -> None:
        """Count one call less."""
        self.taken -= 1
        self.keys.discard(key)
        if not self.taken:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until no call is in flight."""
        if self.taken:
            self._empty = trio.Event()
            await self._empty.wait()
