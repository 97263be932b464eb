"""Locks on names: callers of all sessions who change one take turns, name by name.

Sessions open files in processes of their own, so that what one of them looked at may be replaced by another before it
is used. Whoever changes a name holds it from the look to the end of the change. Owns the locks, one for each name that
somebody holds or waits for and none else. Programs that write by themselves know nothing of them.

A name is an entry of a directory, told by device and inode, so that links, bind mounts and other spellings of its path
are the same one, and the same text in two sessions' private directories is two. Upper and lower case and the forms of
Unicode count as the same: file systems that take them for one exist, and elsewhere it costs a moment's wait.
"""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from typing import TypeAlias

import attrs
import trio

from broker.contract.errors import BrokerError, ErrorCode
from sandbox.files.files import EntryPlace, FilePlace

LOCK_WAIT_S = 20.0
"""Seconds that a caller waits for its turn; what holds a name longer has a file system or a process that hangs."""

Name: TypeAlias = tuple[int, int, str]
"""Device and inode of the directory, and the entry in it, folded."""


def name_of(place: FilePlace | EntryPlace) -> Name:
    """The name that is changed at *place*, which must stay open while it is held: inodes are used again."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", place.name).casefold())
    return (*place.parent.identity, folded)


@attrs.define(eq=False)
class _Lock:
    """A semaphore, not a trio.Lock: what ends a hold may be the answer to a question whose asker left."""

    free: trio.Semaphore = attrs.field(factory=lambda: trio.Semaphore(1, max_value=1))
    users: int = 0
    """Who hold it or wait for it."""


@attrs.define(eq=False)
class NameLocks:
    """The locks of one broker; first come, first served."""

    changes: int = attrs.field(default=0, init=False)
    """How many holds have ended: what was looked at since this stood still is what is there."""
    _locks: dict[Name, _Lock] = attrs.field(factory=dict, init=False)

    @property
    def names(self) -> int:
        """How many names are held or waited for."""
        return len(self._locks)

    @asynccontextmanager
    async def hold(
        self, names: Iterable[Name], asked: str, when_settled: Callable[[Callable[[], None]], None]
    ) -> AsyncIterator[None]:
        """Be the only one who changes *names*. Who needs more than one names all at once: they are taken in one order.

        Args:
            asked: what the caller calls them, for the error's text.
            when_settled: calls what it gets once nothing that the session was asked to change can happen any more,
                usually at once. A name whose holder left stays held until then, so that no change comes late over the
                next one's.
        Raises: BrokerError (FILE_BUSY) after LOCK_WAIT_S seconds; nothing is held then.
        Cancellation: of a wait gives the place in the line up.
        """
        with ExitStack() as held:
            with trio.move_on_after(LOCK_WAIT_S) as patience:
                for name in sorted(set(names)):
                    held.push(await self._take(name))
            if patience.cancelled_caught:
                raise BrokerError(
                    ErrorCode.FILE_BUSY,
                    f"{asked}: another call is changing it and was not done within {LOCK_WAIT_S:g} s. Nothing was "
                    "changed by this one: call again",
                    waited_s=LOCK_WAIT_S,
                )
            taken = held.pop_all()
        try:
            yield
        finally:
            when_settled(taken.close)

    async def _take(self, name: Name) -> Callable[..., None]:
        """Wait for the turn; return what gives it back."""
        lock = self._locks.setdefault(name, _Lock())
        lock.users += 1
        with ExitStack() as leaving:
            leaving.callback(self._leave, name, lock)
            await lock.free.acquire()
            leaving.pop_all()

        def give_back(*_: object) -> None:
            self.changes += 1
            lock.free.release()
            self._leave(name, lock)

        return give_back

    def _leave(self, name: Name, lock: _Lock) -> None:
        lock.users -= 1
        if not lock.users:
            del self._locks[name]
