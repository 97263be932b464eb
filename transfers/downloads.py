"""The table of one session's downloads: one pinned descriptor for each file being downloaded.

A client names no transfer, it repeats the call with a higher offset; so a download in progress is found by
its (real) path. Its chunks come from the descriptor that its first chunk opened, whatever is renamed over the
path meanwhile. Offset 0 starts anew. Descriptors are few and cheap to open again: the oldest idle one is
evicted for a new one, and a finished download keeps none. What is kept of both is the machine, so that the
file is recognised, or not, when a chunk is asked for once more.

Bytes that go out are hashed on their way. What is missing at the end may be any number of gigabytes that nobody asked
to see: `RestHash` hashes a little of it here, and all of a file where the session pays for it, if there is such a
place (`Hashes` is handed in). A file that goes out raw (`filestreams.py`) gets its hash in the same way.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar, TypeVarTuple

import attrs
import trio

from transfers import disk
from transfers.download_state import HASH_PIECE_BYTES, Answer, BeyondEnd, Changed, Download, HashRest, Told
from transfers.refusals import (
    OffsetBeyondEnd,
    SourceChanged,
    SourceUnreadable,
    TooManyTransfers,
    TransfersClosed,
)
from transfers.settings import TransferSettings
from transfers.threads import run_in_thread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

REMEMBERED_DOWNLOADS = 64
"""Downloads kept in mind beside the pinned ones, without a descriptor."""
HASH_S = 5.0
"""Seconds that the last chunk waits for the hash of what was not read before it, some gigabytes; then it goes without.

Asking for it again goes on where the hash stood, unless other files of the session were hashed meanwhile.
"""
HASHED_HERE_BYTES = HASH_PIECE_BYTES
"""No more than that of a file is hashed here: one step, the time of two large chunks. It would take longer to begin
elsewhere, where a hash begins with the file, whatever of it was hashed here: a running hash cannot be handed over."""


@attrs.frozen(kw_only=True)
class Chunk:
    """A piece of a file; *sha256* of the whole file with the last one, or *why_no_sha256*."""

    transfer_id: str
    path: str
    data: bytes = attrs.field(repr=False)
    offset: int
    size_bytes: int
    is_complete: bool
    sha256: str | None
    why_no_sha256: str = ""


@attrs.define(eq=False, kw_only=True)
class _Source:
    """One file being downloaded. *pin* while it is open, *download* once it was looked at."""

    path: str
    used_at: float
    rest_hash: RestHash
    transfer_id: str = attrs.field(factory=lambda: secrets.token_urlsafe(16), init=False)
    turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    pin: disk.Pin | None = attrs.field(default=None, init=False)
    download: Download | None = attrs.field(default=None, init=False)

    def unpin(self) -> None:
        self.rest_hash.close()
        if self.pin is not None:
            self.pin.close()
            self.pin = None


@attrs.define(eq=False, kw_only=True)
class Downloads:
    """The downloads of one session."""

    _settings: TransferSettings
    _limiter: trio.CapacityLimiter
    _clock: Callable[[], float]
    _hashes: Hashes | None = None
    _sources: dict[str, _Source] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def read(self, path: str, *, offset: int, chunk_bytes: int, open_file: Callable[[], Awaitable[int]]) -> Chunk:
        """Return the chunk of *path* at *offset*.

        *path* is the real path: a download in progress is found by it. *chunk_bytes* is clamped to
        1..`max_chunk_bytes`, and the last chunk is shorter. *open_file* opens the regular file for reading and is
        called only when it is not pinned; what it raises comes through.

        Raises:
            OffsetBeyondEnd, SourceChanged, SourceUnreadable, UnsizedSource, TooManyTransfers, TransfersClosed.

        Ownership: the descriptor that *open_file* returns belongs to the store.
        Cancellation: takes effect between two steps on the disk, each at most HASH_PIECE_BYTES long, and so does the
            limit HASH_S: no thread goes on behind the answer. A hash that is made elsewhere is ended.
        """
        self.sweep()
        source = self._source(path, anew=offset == 0)
        is_done = False
        async with source.turn:
            try:
                pin, download = await self._pinned(source, open_file)
                chunk = await self._chunk(source, pin, download, offset, self._clamp(chunk_bytes))
                is_done = chunk.sha256 is not None
            finally:
                self._let_go(source, is_done=is_done, anew=offset == 0)
        return chunk

    def sweep(self) -> None:
        """Let go of what had no chunk for `download_idle_s`."""
        horizon = self._clock() - self._settings.download_idle_s
        for source in list(self._sources.values()):
            if source.used_at <= horizon and not source.turn.locked():
                self._drop(source)

    def close_all(self) -> None:
        """Let go of every file; a read under way closes its own when it ends, and no other can begin."""
        self._closed = True
        for source in list(self._sources.values()):
            self._drop(source)

    def _clamp(self, chunk_bytes: int) -> int:
        return max(1, min(chunk_bytes, self._settings.max_chunk_bytes))

    def _source(self, path: str, *, anew: bool) -> _Source:
        known = self._sources.get(path)
        if known is not None and not anew:
            return known
        if known is not None:
            self._drop(known)
        rest_hash = RestHash(path, self._hashes, self._limiter)
        source = _Source(path=path, used_at=self._clock(), rest_hash=rest_hash)
        self._sources[path] = source
        return source

    def _drop(self, source: _Source) -> None:
        if not source.turn.locked():  # else the chunk under way lets go of it at its end
            source.unpin()
        if self._sources.get(source.path) is source:
            del self._sources[source.path]

    def _let_go(self, source: _Source, *, is_done: bool, anew: bool) -> None:
        """After a chunk: keep open only what may have a next one, and in mind only what may be repeated."""
        source.used_at = self._clock()
        replaced = self._sources.get(source.path) is not source  # by a new start, or by the session's end
        failed = source.download is None or source.download.is_changed
        if replaced or failed or is_done:
            source.unpin()
        if source.download is None or (is_done and anew):
            self._drop(source)

    async def _pinned(self, source: _Source, open_file: Callable[[], Awaitable[int]]) -> tuple[disk.Pin, Download]:
        if self._closed:  # since before, or since the chunk waits its turn
            raise TransfersClosed
        pin = source.pin
        if pin is None:
            self._make_room(source)
            source.pin = pin = disk.Pin(await open_file())
        if source.download is None:
            source.download = Download(await self._on_disk(source, pin, disk.identify, source.path))
        return pin, source.download

    def _make_room(self, newcomer: _Source) -> None:
        """Evict idle descriptors, oldest first, until one more may be open."""
        others = [s for s in self._sources.values() if s is not newcomer]
        in_use = sum(s.pin is not None or s.turn.locked() for s in others)
        idle = sorted((s for s in others if not s.turn.locked()), key=lambda s: s.used_at)
        for source in [s for s in idle if s.pin is not None][: max(0, in_use - self._settings.max_open + 1)]:
            source.unpin()
            in_use -= 1
        if in_use >= self._settings.max_open:
            raise TooManyTransfers(self._settings.max_open)
        for source in idle[: max(0, len(idle) - self._settings.max_open - REMEMBERED_DOWNLOADS)]:
            self._drop(source)

    async def _chunk(self, source: _Source, pin: disk.Pin, download: Download, offset: int, chunk_bytes: int) -> Chunk:
        step = download.ask(offset, chunk_bytes)
        if isinstance(step, BeyondEnd):
            raise OffsetBeyondEnd(source.path, offset, step.size_bytes)
        if isinstance(step, Changed):
            raise SourceChanged(source.path)
        data, outcome = await self._on_disk(source, pin, disk.read_chunk, step)
        verdict = download.got(step, outcome)
        if isinstance(verdict, HashRest):
            with _readable(source.path):
                verdict = await source.rest_hash.settle(download, verdict, pin, HASH_S)
        if isinstance(verdict, Changed):
            raise SourceChanged(source.path)
        return _to_chunk(source, data, offset, download.identity.size_bytes, verdict)

    async def _on_disk(self, source: _Source, pin: disk.Pin, work: Callable[[int, *Ts], T], *args: *Ts) -> T:
        with _readable(source.path), pin.use() as fd:
            return await run_in_thread(work, fd, *args, limiter=self._limiter)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise SourceUnreadable(path, fault.strerror or str(fault)) from fault


def _to_chunk(source: _Source, data: bytes, offset: int, size_bytes: int, answer: Answer | HashRest) -> Chunk:
    return Chunk(
        transfer_id=source.transfer_id,
        path=source.path,
        data=data,
        offset=offset,
        size_bytes=size_bytes,
        is_complete=offset + len(data) == size_bytes,
        sha256=answer.sha256 if isinstance(answer, Answer) else None,
        why_no_sha256=source.rest_hash.why_none if isinstance(answer, HashRest) else "",
    )


# --- the hash of what did not go out in order


class Hashing(Protocol):
    """The hash of one open file."""

    async def upto(self, fd: int, length: int) -> tuple[int, str]:
        """Return how many of the first *length* bytes there are, and their SHA-256, hexadecimal.

        Goes on where a call before was cut off, if that is still to be had.
        Raises: OSError, whose text says why there is none.
        """

    def close(self) -> None:
        """End the work at once. Safe to repeat."""


class Hashes(Protocol):
    """The place where files are hashed."""

    def of(self, path: str) -> Hashing:
        """Begin the hash of one file, which the caller closes; *path* is for the text of an error."""


@attrs.define(eq=False)
class RestHash:
    """The hash of the rest of one file. `why_none` says why the last try did not bring it."""

    _path: str
    _hashes: Hashes | None
    _limiter: trio.CapacityLimiter
    why_none: str = attrs.field(default="", init=False)
    _hashing: Hashing | None = attrs.field(default=None, init=False)

    async def settle(
        self, download: Download, verdict: HashRest | Answer | Changed, pin: disk.Pin, within_s: float
    ) -> HashRest | Answer | Changed:
        """Hash what is missing, in *within_s* seconds; a HashRest is what is missing yet.

        Raises: OSError: the file cannot be read here.
        Cancellation: between two steps of HASH_PIECE_BYTES here, and at once elsewhere; what was begun there is ended.
            At the limit it only stops, and another call goes on.
        """
        self.why_none = ""
        left = True
        try:
            with trio.move_on_after(within_s), pin.use() as fd:
                if self._hashes is not None and download.missing_bytes > HASHED_HERE_BYTES:
                    verdict = await self._elsewhere(self._hashes, download, verdict, fd)
                else:
                    while isinstance(verdict, HashRest):
                        rest = await run_in_thread(disk.hash_rest, fd, verdict, limiter=self._limiter)
                        verdict = download.hashed(verdict, rest)
            left = False
        finally:
            if left:
                self.close()
        if isinstance(verdict, HashRest):
            self.why_none = self.why_none or f"the file was not hashed to its end in {within_s:g} s"
        return verdict

    async def _elsewhere(
        self, hashes: Hashes, download: Download, verdict: HashRest | Answer | Changed, fd: int
    ) -> HashRest | Answer | Changed:
        if self._hashing is None:
            self._hashing = hashes.of(self._path)
        try:
            length, sha256 = await self._hashing.upto(fd, download.identity.size_bytes)
        except OSError as fault:  # its bytes went out all the same: the answer goes without their hash, and says so
            self.why_none = fault.strerror or str(fault)
            return verdict
        identity = await run_in_thread(disk.identity_of, fd, limiter=self._limiter)
        return download.told(Told(identity=identity, length=length, sha256=sha256))

    def close(self) -> None:
        """End what is at work elsewhere. Safe to repeat."""
        hashing, self._hashing = self._hashing, None
        if hashing is not None:
            hashing.close()
