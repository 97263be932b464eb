"""A directory as a transfer: packed or unpacked as its bytes move.

The two classes are the ends of a stream as raw transfers know them (`Source`, `Sink`). An archive has no size before
its end. Who is cut off while it is packed begins again; while it is unpacked, the worker waits for the next bytes.
Knows no rule: `broker/tools/transfers.py` opens them for what was decided on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.files.archives import Archives, Packing, Summary, Unpacking
from sandbox.files.errors import Changed, FileError, TooLarge
from sandbox.files.files import EntryPlace, Resolved
from transfers.digest import Digest, new_digest
from transfers.refusals import (
    ArchiveTooLarge,
    DigestMismatch,
    SizeMismatch,
    SourceChanged,
    SourceUnreadable,
    TransferError,
)
from transfers.upload import Cause, Quota
from transfers.upload_state import Declared

if TYPE_CHECKING:
    from sandbox.protocol.files import Pack, UnpackAnywhere, UnpackBounded

ARCHIVE_S = 6 * 3600.0
"""Seconds from an archive's first byte to its last. Who says nothing is cut off long before."""


@attrs.define(eq=False, kw_only=True)
class ArchiveSource:
    """A directory that is packed whenever somebody reads."""

    _found: Resolved
    _archives: Archives
    _spec: Pack
    size_bytes: int | None = attrs.field(default=None, init=False)
    tag: str = attrs.field(default="", init=False)
    sent_bytes: int = attrs.field(default=0, init=False)
    sha256: str | None = attrs.field(default=None, init=False)
    why_no_sha256: str = attrs.field(default="", init=False)  # it is hashed while it goes out
    summary: Summary | None = attrs.field(default=None, init=False)
    """What was packed, when all of it was."""
    _pieces: ArchivePieces | None = attrs.field(default=None, init=False)

    @property
    def path(self) -> str:
        """The real path of the directory."""
        return self._found.path

    @property
    def next_offset(self) -> int:
        """Where to go on: at the beginning, until all of it went out."""
        return 0 if self.sha256 is None else self.sent_bytes

    @asynccontextmanager
    async def pieces(self, _start: int, _stop: int | None) -> AsyncIterator[ArchivePieces]:
        """Pack it, from the beginning: nobody can ask for less of what has no size.

        Raises, from `next`: ArchiveTooLarge, SourceChanged, SourceUnreadable.
        """
        self.sent_bytes = 0
        async with self._archives.open_pack(self._found, self._spec, timeout_s=ARCHIVE_S) as packing:
            self._pieces = ArchivePieces(self.path, packing)
            yield self._pieces

    def sent(self, _start: int, length: int) -> None:
        """Take a note that so many more bytes went out."""
        self.sent_bytes += length

    async def settle(self) -> bool:
        """Return whether all of it went out; then its SHA-256 is known."""
        await trio.lowlevel.checkpoint()
        pieces = self._pieces
        if pieces is None or pieces.summary is None or pieces.given_bytes != self.sent_bytes:
            return False
        self.sha256, self.summary = pieces.sha256, pieces.summary
        return True

    def close(self) -> None:
        """Let go of the directory; an archive that is being made goes on."""
        self._found.close()


class ArchivePieces:
    """One packing of a directory."""

    def __init__(self, path: str, packing: Packing) -> None:
        self._path = path
        self._packing = packing
        self._digest = new_digest()
        self.given_bytes = 0
        self.summary: Summary | None = None

    @property
    def sha256(self) -> str:
        """Of what was given so far."""
        return self._digest.hexdigest()

    async def next(self) -> bytes:
        """Return the next bytes, empty at the end. Raises: TransferError."""
        try:
            piece = await anext(self._packing, b"")
        except FileError as error:
            raise _refusal(self._path, error) from error
        self._digest.update(piece)  # here: these bytes pass through, and nowhere else all of them do
        self.given_bytes += len(piece)
        if not piece:
            self.summary = self._packing.summary
        return piece


def _refusal(path: str, error: FileError) -> TransferError:
    match error:
        case TooLarge():
            return ArchiveTooLarge(path, error.sentence)
        case Changed():
            return SourceChanged(path)
        case _:
            return SourceUnreadable(path, error.sentence)


@attrs.define(eq=False, kw_only=True)
class ArchiveSink:
    """A place where an archive is unpacked, all of it or nothing.

    What is refused or cancelled throws away what was received; then it may be sent again from its beginning. While
    requests are only cut off, the next one goes on. What was received is on the session's account.
    """

    _target: EntryPlace
    _archives: Archives
    _quota: Quota
    _declared: Declared
    _spec: UnpackAnywhere
    _full_disk_told: Callable[[int, int], AbstractAsyncContextManager[None]]
    """With the directory and the bytes that are needed, around what may find the disk full."""
    _in_turn: Callable[[], AbstractAsyncContextManager[None]]
    """Around the end, when the place gets what was received: nobody else of this broker changes it then."""
    received_bytes: int = attrs.field(default=0, init=False)
    summary: Summary | None = attrs.field(default=None, init=False)
    """What was unpacked, when all of it was."""
    _sha256: str = attrs.field(default="", init=False)
    _digest: Digest = attrs.field(factory=new_digest, init=False)
    _unpacking: Unpacking | None = attrs.field(default=None, init=False)

    @property
    def path(self) -> str:
        """The real path of the place."""
        return self._target.path

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises: FileError as they are refused, QuotaExceeded, SizeMismatch."""
        self._require_as_declared(self._declared.has_room(self.received_bytes + len(data)), len(data))
        async with self._all_or_nothing():
            self._quota.take(len(data))
            self.received_bytes += len(data)
            self._digest.update(data)  # here: these bytes pass through, and nowhere else all of them do
            await self._begun().write(data)

    async def finish(self) -> str:
        """Put the tree in its place, durably; return the SHA-256 of the archive. Safe to repeat.

        Raises: FileError; DigestMismatch, and it is over; SizeMismatch, and what is missing may follow.
        """
        if not self._sha256:
            self._require_as_declared(not self._declared.is_short(self.received_bytes), 0)
            async with self._in_turn(), self._all_or_nothing():
                self._require_digest()
                self.summary = await self._begun().finish()
                self._quota.give_back(self.received_bytes - self.summary.content_bytes)
                self._sha256 = self._digest.hexdigest()
            self.close()
        return self._sha256

    async def abort(self, _cause: Cause) -> None:
        """Throw away what was received; the place is as it was. After an end this does nothing."""
        await self._start_again()
        self.close()

    def close(self) -> None:
        """Let go of the place; what is being unpacked there ends with the session."""
        self._target.close()

    def _require_as_declared(self, as_declared: bool, more: int) -> None:  # noqa: FBT001  what was asked just before
        if not as_declared:
            size_bytes = self.received_bytes + more
            raise SizeMismatch(self.path, size_bytes, self._declared.size_bytes, self.received_bytes)

    def _require_digest(self) -> None:
        if self._declared.contradicts(self._digest):
            raise DigestMismatch(self.path, self._digest.hexdigest(), self._declared.sha256)

    def _begun(self) -> Unpacking:
        if self._unpacking is None:
            # Of a compressed archive the account sees only what came; the worker may not make more than there is left.
            left = self._quota.limit_bytes - self._quota.used_bytes + self.received_bytes
            spec: UnpackBounded = {**self._spec, "max_content_bytes": left}
            self._unpacking = self._archives.open_unpack(self._target, spec, timeout_s=ARCHIVE_S)
        return self._unpacking

    @asynccontextmanager
    async def _all_or_nothing(self) -> AsyncIterator[None]:
        """Throw everything away if what is inside fails or is cancelled; tell of a full disk what there is to tell."""
        done = False
        try:
            async with self._full_disk_told(self._target.fd, self.received_bytes):
                yield
            done = True
        finally:
            if not done:
                with trio.CancelScope(shield=True):  # bounded as the end of the worker is
                    await self._start_again()

    async def _start_again(self) -> None:
        if self._sha256:
            return
        unpacking, self._unpacking = self._unpacking, None
        received, self.received_bytes = self.received_bytes, 0
        self._digest = new_digest()
        self._quota.give_back(received)
        if unpacking is not None:
            await unpacking.aclose()
