"""A file as the source of a raw download, and an upload as the sink of a raw one: the machines beneath both kinds."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar, TypeVarTuple

import attrs
import trio

from transfers import disk
from transfers.download_state import Answer, BeyondEnd, Changed, Download, HashRest
from transfers.downloads import Hashes, RestHash
from transfers.refusals import OffsetBeyondEnd, SourceChanged, SourceUnreadable, TransferError
from transfers.streams import PIECE_BYTES
from transfers.threads import run_in_thread
from transfers.upload import Cause
from transfers.uploads import Uploads

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


BURST_BYTES = 16 * 1024 * 1024
"""Bytes that one turn of a thread writes at most, to a client that takes it as fast: some 10 ms."""
SETTLE_S = 300.0
"""Seconds for which a file that went out is hashed behind the answer: some hundred gigabytes; none waits for it."""
MAX_GAPS = 256
"""A client that asks for more scattered pieces than this gets them, but the smallest is not remembered."""


class Socket(Protocol):
    """A socket to which a file is written without waiting."""

    async def burst(self, write: Callable[[int], T], limiter: trio.CapacityLimiter) -> T:
        """Run *write* in a thread with the descriptor of the socket."""


@attrs.define(eq=False, kw_only=True)
class FileSource:
    """One pinned regular file. Whatever is renamed over its path, these are the bytes that were decided on."""

    path: str
    size_bytes: int
    tag: str
    _pin: disk.Pin
    _download: Download
    _limiter: trio.CapacityLimiter
    _rest_hash: RestHash
    _coverage: Coverage = attrs.field(init=False)
    sha256: str | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._coverage = Coverage(self.size_bytes)

    @property
    def sent_bytes(self) -> int:
        """Return how many different bytes went out."""
        return self._coverage.covered_bytes

    @property
    def next_offset(self) -> int:
        """The first byte that did not go out."""
        return self._coverage.next_offset

    @asynccontextmanager
    async def pieces(self, start: int, stop: int | None) -> AsyncIterator[ReadAhead]:
        """Read in pieces of PIECE_BYTES; the last byte is read only while the file is the one it was.

        Raises, from `next`: SourceChanged, SourceUnreadable.
        """
        end = self.size_bytes if stop is None else stop
        async with reading_ahead(self.read, start, end, PIECE_BYTES) as ahead:
            yield ahead

    async def read(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at *offset*. Raises: SourceChanged, SourceUnreadable, OffsetBeyondEnd."""
        step = self._download.ask(offset, length)
        if isinstance(step, BeyondEnd):
            raise OffsetBeyondEnd(self.path, offset, step.size_bytes)
        if isinstance(step, Changed):
            raise SourceChanged(self.path)
        data, outcome = await self._on_disk(disk.read_chunk, step)
        if not self._download.took(step, outcome):
            raise SourceChanged(self.path)
        return data

    async def burst(self, socket: Socket, start: int, stop: int) -> disk.Burst:
        """Write from *start* towards *stop* to a socket, as much as it takes at once and BURST_BYTES at most.

        Nothing is hashed on the way; see `hash_some`. Raises: SourceChanged, SourceUnreadable, what the socket raises.
        """
        span = (start, min(stop, start + BURST_BYTES))
        try:
            with self._pin.use() as fd:
                work = partial(disk.send_burst, fd, span, self._download.identity)
                burst = await socket.burst(work, self._limiter)
        except OSError as fault:
            raise SourceUnreadable(self.path, fault.strerror or str(fault)) from fault
        if burst.stop is disk.Stop.CHANGED or self._download.is_changed:
            self._download.changed()
            raise SourceChanged(self.path)
        return burst

    async def hash_some(self) -> bool:
        """Hash a little of what went out and was not hashed; False when there is nothing.

        Here, not elsewhere: no byte is hashed that was not sent, at the pace at which the client takes them.
        """
        rest = self._download.rest()
        if not isinstance(rest, HashRest) or rest.hash_from >= self.next_offset:
            return False
        rest = attrs.evolve(rest, length=min(PIECE_BYTES, rest.length, self.next_offset - rest.hash_from))
        if isinstance(self._download.hashed(rest, await self._on_disk(disk.hash_rest, rest)), Changed):
            raise SourceChanged(self.path)
        return True

    @property
    def why_no_sha256(self) -> str:
        """Tell why all went out and there is no SHA-256; or nothing."""
        return self._rest_hash.why_none

    def sent(self, start: int, length: int) -> None:
        """Take a note that these bytes went out."""
        self._coverage.add(start, start + length)

    async def settle(self) -> bool:
        """Return whether the whole file went out; if so, hash what is left of it, and say its SHA-256.

        Without one, and with `why_no_sha256`, if that takes longer than SETTLE_S. Cancellation: as `RestHash.settle`.
        """
        if not self._coverage.is_whole:
            return False
        verdict: HashRest | Answer | Changed = self._download.rest()
        try:
            verdict = await self._rest_hash.settle(self._download, verdict, self._pin, SETTLE_S)
        except OSError as fault:
            raise SourceUnreadable(self.path, fault.strerror or str(fault)) from fault
        if isinstance(verdict, Changed):
            raise SourceChanged(self.path)
        self.sha256 = verdict.sha256 if isinstance(verdict, Answer) else None
        return True

    def close(self) -> None:
        """Let go of the file; a read under way closes it when it ends. A hash that is made elsewhere is ended."""
        self._rest_hash.close()
        self._pin.close()

    async def _on_disk(self, work: Callable[[int, *Ts], T], *args: *Ts) -> T:
        try:
            with self._pin.use() as fd:
                return await run_in_thread(work, fd, *args, limiter=self._limiter)
        except OSError as fault:
            raise SourceUnreadable(self.path, fault.strerror or str(fault)) from fault


async def open_file_source(
    path: str, fd: int, limiter: trio.CapacityLimiter, hashes: Hashes | None = None
) -> FileSource:
    """Look at the regular file *fd* of the real *path*, to send it; *hashes* makes the hash of what is not read here.

    Raises:
        UnsizedSource: a kernel file. SourceUnreadable: the file system failed.
    Ownership: *fd* belongs to the source, from the call on.
    """
    pin = disk.Pin(fd)
    with ExitStack() as undo:
        undo.callback(pin.close)
        try:
            with pin.use():
                identity = await run_in_thread(disk.identify, fd, path, limiter=limiter)
        except OSError as fault:
            raise SourceUnreadable(path, fault.strerror or str(fault)) from fault
        undo.pop_all()
    known = f"{identity.dev}:{identity.ino}:{identity.size_bytes}:{identity.mtime_ns}"
    tag = hashlib.sha256(known.encode()).hexdigest()[:32]
    return FileSource(
        path=path,
        size_bytes=identity.size_bytes,
        tag=tag,
        pin=pin,
        download=Download(identity),
        limiter=limiter,
        rest_hash=RestHash(path, hashes, limiter),
    )


@attrs.define(eq=False)
class Coverage:
    """The bytes 0 to *size_bytes* of a file, and which of them were covered."""

    size_bytes: int
    _spans: list[tuple[int, int]] = attrs.field(factory=list, init=False)

    @property
    def covered_bytes(self) -> int:
        """Return how many bytes are covered."""
        return sum(stop - start for start, stop in self._spans)

    @property
    def next_offset(self) -> int:
        """The first byte that is not covered."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    @property
    def is_whole(self) -> bool:
        """Tell whether every byte is covered; of an empty file none is missing."""
        return self.covered_bytes == self.size_bytes

    def add(self, start: int, stop: int) -> None:
        """Cover the bytes from *start* up to, not including, *stop*."""
        apart = [span for span in self._spans if span[1] < start or stop < span[0]]
        touched = [span for span in self._spans if not (span[1] < start or stop < span[0])]
        merged = (min([start, *(s for s, _ in touched)]), max([stop, *(e for _, e in touched)]))
        self._spans = sorted([*apart, merged])
        if len(self._spans) > MAX_GAPS:
            self._spans.remove(min(self._spans, key=lambda span: span[1] - span[0]))


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


@attrs.frozen
class FileSink:
    """An upload of one session's table."""

    _uploads: Uploads
    _transfer_id: str

    @property
    def received_bytes(self) -> int:
        """Return how many bytes were taken. Raises: TransferNotFound when it was swept or discarded."""
        return self._uploads.received_bytes(self._transfer_id)

    async def write(self, data: bytes) -> None:
        """Take the next bytes. Raises: see `Uploads.append`."""
        await self._uploads.append(self._transfer_id, offset=self.received_bytes, data=data)

    async def finish(self) -> str:
        """Put the file in place. Raises: see `Uploads.finish`."""
        progress = await self._uploads.finish(self._transfer_id)
        if progress.sha256 is None:
            raise RuntimeError("an upload that is finished has a digest")
        return progress.sha256

    async def abort(self, cause: Cause) -> None:
        """Discard the upload."""
        await self._uploads.discard(self._transfer_id, cause)

    def close(self) -> None:
        """Do nothing: the table discards its uploads when it closes."""
