"""Who gets in when all places are taken: the newcomer, in the place of who has been idle for longest.

The other way round, a few clients that hold their places and do nothing would keep everybody else out. Who is busy
keeps its place; where all are, the newcomer has to come back. Knows nothing of what the places are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import attrs


class Occupant(Protocol):
    """Who holds a place."""

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
