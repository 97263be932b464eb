"""How many calls are in flight, counted exactly: a call has left when its work *and* its answer are done.

In the handshake era the work of a call goes on after its client has left. Counting HTTP requests alone would
let a client start calls without limit by leaving each at once; so both the request and the work hold the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import attrs
import trio


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
