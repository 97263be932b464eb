"""Reading a little ahead of whoever sends: disk and digest work while the network does, and never further than that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from transfers.refusals import TransferError


@attrs.define(eq=False)
class ReadAhead:
    """The reading end. An error of the source arrives behind the bytes that were read before it."""

    _pieces: trio.MemoryReceiveChannel[bytes]
    error: TransferError | None = attrs.field(default=None, init=False)

    async def next(self) -> bytes:
        """Return the next piece, empty at the end. Raises: TransferError, the source's."""
        async for piece in self._pieces:
            return piece
        if self.error is not None:
            raise self.error
        return b""


@asynccontextmanager
async def reading_ahead(
    read: Callable[[int, int], Awaitable[bytes]], start: int, stop: int, piece_bytes: int
) -> AsyncIterator[ReadAhead]:
    """Call *read* (offset, length) for the bytes from *start* to *stop*, while the pieces before are used.

    Memory: three pieces, the one that is used, the one that waits, and the one that was read behind it.
    Cancellation: at leaving, what is read then comes to its end first.
    """
    give, take = trio.open_memory_channel[bytes](1)
    ahead = ReadAhead(take)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read_all, ahead, give, read, range(start, stop, piece_bytes), stop)
        yield ahead
        nursery.cancel_scope.cancel(reason="nobody wants the next piece")


async def _read_all(
    ahead: ReadAhead,
    give: trio.MemorySendChannel[bytes],
    read: Callable[[int, int], Awaitable[bytes]],
    offsets: range,
    stop: int,
) -> None:
    async with give:
        for offset in offsets:
            try:
                piece = await read(offset, min(offsets.step, stop - offset))
            except TransferError as error:  # handed over: it belongs to who reads, not to this task's nursery
                ahead.error = error
                return
            await give.send(piece)
