"""A directory as a transfer: decided on and pinned when it is opened, packed or unpacked as its bytes move.

The two classes are the ends of a stream as raw transfers know them (`Source`, `Sink`). An archive has no size before
its end and cannot go on in the middle: who is cut off begins again, until the transfer is over.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from broker.decisions import require_path
from broker.filerules import full_disk_told, require_not_own, tree_spec
from broker.host import Host, Scope
from sandbox.archives import Archives, Packing, Summary, Unpacking
from sandbox.file_errors import Changed, Exists, FileError, TooLarge
from sandbox.files import EntryPlace, Resolved
from transfers.quota import Quota
from transfers.refusals import ArchiveTooLarge, SourceChanged, SourceUnreadable, TransferError

ARCHIVE_S = 6 * 3600.0
"""Seconds from an archive's first byte to its last. Who says nothing is cut off long before."""


async def open_archive_source(scope: Scope, path: str) -> ArchiveSource:
    """Pin the directory *path* to pack it.

    Raises: Denied; WrongKind when it is no directory. Ownership: the caller closes the source.
    """
    files = scope.own.files
    found = await files.resolve(path, read=True)
    try:
        require_path(scope.host, found.path, "read")
        found.directory()
    except BaseException:
        found.close()
        raise
    spec = {**tree_spec(scope.host, found.path), **_caps(scope.host)}
    return ArchiveSource(found=found, archives=files.archives, spec=spec)


async def open_archive_sink(scope: Scope, path: str) -> ArchiveSink:
    """Pin the place *path*, a free name or an empty directory, to unpack there.

    Raises: Denied; Exists when something else has the name. Ownership: the caller aborts or closes the sink.
    """
    host, own = scope.host, scope.own
    target = await own.files.names.entry(path)
    try:
        require_path(host, target.path, "make")
        _require_new_or_empty(scope, target)
    except BaseException:
        target.close()
        raise
    spec = {
        **tree_spec(host, target.path),
        **_caps(host),
        "new_path": target.path,
        "replace_empty": target.existing is not None,
        "mode": None if target.existing is None else target.existing.mode,
        "max_file_bytes": host.policy.file_limits.max_write_size,
        "reserve_bytes": host.policy.file_limits.min_free_bytes,
    }
    return ArchiveSink(host=host, target=target, archives=own.files.archives, quota=own.transfers.quota, spec=spec)


def _require_new_or_empty(scope: Scope, target: EntryPlace) -> None:
    """Whether a directory is empty shows when the archive takes its place; then it is not replaced unless it is."""
    there = target.existing
    if there is None:
        return
    if there.kind != "directory":
        sentence = f"{target.asked}: a {there.kind} has this name; an archive becomes a new directory"
        raise Exists(target.asked, sentence, "EEXIST")
    require_not_own(scope, target.path)


def _caps(host: Host) -> dict[str, Any]:
    limits = host.policy.file_limits
    return {"max_entries": limits.archive_max_entries, "max_bytes": limits.archive_max_bytes, "gzip": False}


@attrs.define(eq=False, kw_only=True)
class ArchiveSource:
    """A directory that is packed whenever somebody reads."""

    _found: Resolved
    _archives: Archives
    _spec: dict[str, Any]
    size_bytes: int | None = attrs.field(default=None, init=False)
    tag: str = attrs.field(default="", init=False)
    sent_bytes: int = attrs.field(default=0, init=False)
    sha256: str | None = attrs.field(default=None, init=False)
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
        self._digest = hashlib.sha256()
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
        self._digest.update(piece)
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

    Whatever fails or is cancelled throws away what was received; then it may be sent again from its beginning.
    """

    _host: Host
    _target: EntryPlace
    _archives: Archives
    _quota: Quota
    _spec: dict[str, Any]
    resumable: bool = attrs.field(default=False, init=False)
    received_bytes: int = attrs.field(default=0, init=False)
    summary: Summary | None = attrs.field(default=None, init=False)
    """What was unpacked, when all of it was."""
    _sha256: str = attrs.field(default="", init=False)
    _digest: Any = attrs.field(factory=hashlib.sha256, init=False)
    _unpacking: Unpacking | None = attrs.field(default=None, init=False)

    @property
    def path(self) -> str:
        """The real path of the place."""
        return self._target.path

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises: FileError as they are refused, QuotaExceeded."""
        async with self._all_or_nothing():
            self._quota.take(len(data))
            self.received_bytes += len(data)
            self._digest.update(data)
            await self._begun().write(data)

    async def finish(self) -> str:
        """Put the tree in its place, durably; return the SHA-256 of the archive. Safe to repeat. Raises: FileError."""
        if not self._sha256:
            async with self._all_or_nothing():
                self.summary = await self._begun().finish()
                self._quota.give_back(self.received_bytes - self.summary.content_bytes)
                self._sha256 = self._digest.hexdigest()
            self.close()
        return self._sha256

    def digest(self) -> str:
        """The SHA-256 of what was received so far."""
        return str(self._digest.hexdigest())

    async def abort(self, _why: str) -> None:
        """Throw away what was received; the place is as it was. After an end this does nothing."""
        await self._start_again()
        self._target.close()

    def close(self) -> None:
        """Let go of the place at the session's end, which also ends what is unpacked there."""
        self._target.close()

    def _begun(self) -> Unpacking:
        if self._unpacking is None:
            self._unpacking = self._archives.open_unpack(self._target, self._spec, timeout_s=ARCHIVE_S)
        return self._unpacking

    @asynccontextmanager
    async def _all_or_nothing(self) -> AsyncIterator[None]:
        """Throw everything away if what is inside fails or is cancelled; tell of a full disk what there is to tell."""
        done = False
        try:
            async with full_disk_told(self._host, self._target.fd, self.received_bytes):
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
        self._digest = hashlib.sha256()
        self._quota.give_back(received)
        if unpacking is not None:
            await unpacking.aclose()
