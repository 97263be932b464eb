"""New content before it has its name (broker side).

Owns a part file from its first byte to its commit or discard. The bytes are written here, on a descriptor;
the naming is the opener's, inside the walls. Knows no rule: the place it is for was decided before.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from sandbox.files.errors import FileError, NoSpace, OpenerGone, Unanswered, unflushed
from sandbox.files.opener_client import COMMIT, DISCARD
from sandbox.files.pinned import OwnedDescriptor

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sandbox.files.disk import Data, Disk
    from sandbox.files.opener_client import Exchange
    from sandbox.files.pinned import FileFacts, FilePlace
    from sandbox.protocol.files import CommitPart, Content, DiscardPart


class Part(OwnedDescriptor):
    """New content that has no name yet. Leaving the context without `commit` leaves nothing behind."""

    def __init__(self, place: FilePlace, fd: int, hidden: str, exchange: Exchange, disk: Disk) -> None:
        super().__init__(place.asked, fd)
        self.path = place.path
        self._parent = OwnedDescriptor(place.asked, os.dup(place.fd))  # lives as long as the upload, not as the request
        self._name = place.name
        self._hidden = hidden
        self._flushed = False
        self._exchange = exchange
        self._disk = disk

    async def write(self, offset: int, data: Data) -> None:
        """Write *data* at *offset*. Raises: NoSpace, TooLarge, WriteFailed."""
        self._flushed = False
        await self._disk.write(self.asked, self.fd, offset, data)

    async def fill(self, *pieces: Data) -> None:
        """Make *pieces* the content of a new part, flushed: a commit that follows need not. Raises: as `write`."""
        await self._disk.fill(self.asked, self.fd, *pieces)
        self._flushed = True

    async def commit(self, *, replace: bool = True, expect: FileFacts | None = None) -> None:
        """Flush the content and give it its name, durably and in one step; a file there keeps its mode.

        With *expect*, only if the file there is still that one, unchanged: else it raises Changed.
        Raises: FileError, and the destination is as it was; OutcomeUnknown, and it is old or new.
            Exists when *replace* is false and the name is taken.
        Cancellation: not between the naming and its flush; both are bounded.
        """
        if not self._flushed:
            await self._disk.run(self.asked, os.fsync, self.fd)
        request: CommitPart
        request = {"name": self._name, "hidden": self._hidden, "replace": replace, "expect": _unchanged(expect)}
        with trio.CancelScope(shield=True):  # bounded by the exchange's own deadline
            answer = await self._exchange.ask(COMMIT, self.asked, request, (self.fd, self._parent.fd), changes=True)
            self._hidden = ""
            try:
                # A directory that may not be read cannot be flushed. Flushing the file again then writes
                # out the journal up to here, and the name with it, on every file system that has one.
                await self._disk.run(self.asked, os.fsync, answer.fds[0] if answer.fds else self.fd)
            except FileError as fault:
                raise unflushed(self.asked, fault) from fault
            finally:
                answer.close()
        self.close()

    async def discard(self) -> None:
        """Throw the content away; after a commit, or a second time, this does nothing."""
        hidden, self._hidden = self._hidden, ""
        self.close()
        if hidden:
            with trio.move_on_after(self._exchange.answer_s, shield=True):
                try:
                    await self._discard(hidden)
                except OpenerGone:
                    return  # it removed its parts as it went

    async def _discard(self, hidden: str) -> None:
        request: DiscardPart = {"hidden": hidden}
        await self._exchange.ask(DISCARD, self.asked, request)

    def close(self) -> None:
        """Close the descriptors only; `discard` also removes what has a hidden name."""
        super().close()
        self._parent.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with trio.move_on_after(self._exchange.answer_s, shield=True):
            await self.discard()
            if isinstance(value, NoSpace):
                await self._settle()

    async def _settle(self) -> None:
        """Wait until the room that the content took is given back, so that what is free now can be told.

        The opener keeps its own descriptor of a part a moment longer than we wait for it. It serves one request after
        the other, so with the answer to the next one it has closed that.
        """
        with suppress(OpenerGone, Unanswered):  # then nobody holds it any more, or the numbers are as they are
            await self._discard("")


def _unchanged(expect: FileFacts | None) -> Content | None:
    if expect is None:
        return None
    return {"dev": expect.dev, "ino": expect.ino, "size": expect.size_bytes, "mtime": expect.mtime_ns}
