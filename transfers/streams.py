"""The source and the sink of a raw transfer: two small protocols, so that a file and an archive plug in alike.

`filestreams.py` has those of a file. An archive has no size beforehand and cannot begin in the middle: its source
says so by `size_bytes` None and an empty `tag`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from transfers.upload import Cause

PIECE_BYTES = 1024 * 1024
"""Bytes that move at a time: below it the turns of loop and threads count, above it memory and the wait of others."""


class Pieces(Protocol):
    """Bytes in order, read a little ahead."""

    async def next(self) -> bytes:
        """Return the next bytes, empty at the end.

        Raises: what is wrong with the source.
        """


class Source(Protocol):
    """The content that a download sends. One request at a time reads it."""

    @property
    def size_bytes(self) -> int | None:
        """Return how many bytes there are; None if that shows only at the end."""

    @property
    def tag(self) -> str:
        """A strong validator of the content, as ETag without its quotes; empty if it cannot be read in parts."""

    @property
    def sent_bytes(self) -> int:
        """Return how many different bytes went out."""

    @property
    def next_offset(self) -> int:
        """The first byte that did not go out."""

    @property
    def sha256(self) -> str | None:
        """Of the whole, hexadecimal, when it is known."""

    @property
    def why_no_sha256(self) -> str:
        """Tell why all went out and it is not known; or nothing."""

    def pieces(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Pieces]:
        """Read from *start* up to, not including, *stop* (None: to the end)."""

    def sent(self, start: int, length: int) -> None:
        """Take a note that these bytes went out."""

    async def settle(self) -> bool:
        """Return whether all went out; if so, the SHA-256 is known now.

        Raises: what is wrong with the source.
        """

    def close(self) -> None:
        """Let go of it. Safe to repeat, and while it is read."""


class Sink(Protocol):
    """The destination that an upload fills. One request at a time writes it.

    Everything here raises `refusals`; what was given before stays given unless the refusal says otherwise.
    """

    @property
    def received_bytes(self) -> int:
        """Return how many bytes were taken; the next ones go behind them."""

    async def write(self, data: bytes) -> None:
        """Take the next bytes.

        Cancellation: they are taken or not, and `received_bytes` tells.
        """

    async def finish(self) -> str:
        """Put in place what was received, durably; return its SHA-256, hexadecimal. Safe to repeat."""

    async def abort(self, cause: Cause) -> None:
        """Throw away what was received; the destination is as it was. After an end this does nothing."""

    def close(self) -> None:
        """Let go of it at the session's end, which throws away what was received. Safe to repeat."""
