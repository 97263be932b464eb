"""SHA-256 of files, computed by processes of the session (broker side).

A file may be of any size, and hashing it takes seconds of a processor for each gigabyte: seconds that the session is
to have used, not the broker. So a worker does it, inside the walls, in the session's control group, behind everything
else that wants the processor. It is asked for one bounded piece after the other, and does nothing when nobody asks.

The hash so far cannot leave the worker. A caller that was cut off and asks again goes on with the same one, if it is
still there.

    with closing(files.hashes.of(path)) as hashing:
        length, sha256 = await hashing.upto(fd, size_bytes)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox import wire
from sandbox.files.errors import FileError, WriteFailed, from_refusal, is_refusal, shown
from sandbox.files.worker_client import WorkerProcess

if TYPE_CHECKING:
    from sandbox.files.opener_client import Exchange
    from sandbox.protocol.files import AnyJob, FromWorker, Wish

HASHERS = 4  # of one session at a time, at work or with a hash to go on with
PIECE_BYTES = 8 * 1024 * 1024  # of one wish: a few milliseconds
LIFE_S = 3600.0  # of a worker, by its own clock and the kernel's
_DIGEST = re.compile("[0-9a-f]{64}").fullmatch


class Hashes:
    """The hashes of one session."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._at_work = trio.CapacityLimiter(HASHERS)
        self._waiting: dict[FileHash, None] = {}  # with a worker that has nothing to do, the longest first

    def of(self, asked: str) -> FileHash:
        """Begin the hash of a file, which the caller closes; *asked* is what it calls it, for an error's text."""
        return FileHash(asked, self)

    async def whole(self, asked: str, fd: int, length: int) -> tuple[int, str]:
        """Do as `FileHash.upto`, once. Cancellation: the worker is ended."""
        with closing(self.of(asked)) as hashing:
            return await hashing.upto(fd, length)

    def close(self) -> None:
        """End the workers that wait; those at work end with their callers."""
        for one in list(self._waiting):
            one.close()

    async def start(self, asked: str, fd: int) -> _Worker:
        """Have a worker at the file. Raises: FileError, as the opener."""
        worker = await _Worker.start(self._exchange, asked)
        job: AnyJob = {"op": "hash", "timeout_s": LIFE_S, "grace_s": 1.0}
        try:
            worker.ask(job, fd)
        except BaseException:
            worker.end()
            raise
        return worker

    def turn(self) -> trio.CapacityLimiter:
        """Return the limit that is held while a worker works."""
        return self._at_work

    def make_room(self) -> None:
        """End workers that have waited for longest, until there may be one more. With a turn held."""
        while self._waiting and len(self._waiting) + self._at_work.borrowed_tokens > HASHERS:
            next(iter(self._waiting)).close()

    def waits(self, one: FileHash) -> None:
        """Take a note that the worker of *one* has nothing to do."""
        self._waiting[one] = None

    def waits_no_more(self, one: FileHash) -> None:
        """Forget that note."""
        self._waiting.pop(one, None)


@attrs.define(eq=False)
class FileHash:
    """The hash of one file. One task at a time."""

    _asked: str
    _hashes: Hashes
    _worker: _Worker | None = attrs.field(default=None, init=False)

    async def upto(self, fd: int, length: int) -> tuple[int, str]:
        """Return how many of the first *length* bytes of the file there are, and their SHA-256, hexadecimal.

        Args:
            fd: the file, open for reading; the same file in every call.
        Raises: FileError: the file cannot be read; the worker was ended, or was none; as the opener.
        Cancellation: the worker works PIECE_BYTES further at most, and waits for the next call; one that did nothing
            since this call began is ended.
        """
        async with self._hashes.turn():
            self._hashes.waits_no_more(self)
            if self._worker is not None and self._worker.has_exited():
                self.close()
            with self._kept_if_it_works():
                if self._worker is None:
                    self._hashes.make_room()
                    self._worker = await self._hashes.start(self._asked, fd)
                worker = self._worker
                while not worker.ended and worker.at < length:
                    await worker.advance(length)
                if not worker.sha256:  # of nothing: it was not asked yet
                    await worker.advance(length)
                return worker.at, worker.sha256

    @contextmanager
    def _kept_if_it_works(self) -> Iterator[None]:
        """Keep the worker, to go on with, if it came further: one that did not may be stopped, or at a bad disk."""
        before = 0 if self._worker is None else self._worker.at
        try:
            yield
        finally:
            if self._worker is not None and not self._worker.broken and self._worker.at > before:
                self._hashes.waits(self)
            else:
                self.close()

    def close(self) -> None:
        """End the worker at once, also in the middle of its work. Safe to repeat."""
        self._hashes.waits_no_more(self)
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


@attrs.define(eq=False)
class _Worker(WorkerProcess):
    """A process at one file."""

    at: int = attrs.field(default=0, init=False)
    sha256: str = attrs.field(default="", init=False)
    ended: bool = attrs.field(default=False, init=False)
    """Whether there are no bytes behind `at`."""
    broken: bool = attrs.field(default=False, init=False)
    """Whether nothing can be asked of it any more."""
    _wish: int = attrs.field(default=0, init=False)
    """Up to where it was asked for and has not answered; 0: nothing."""

    async def advance(self, length: int) -> None:
        """Have it hash one piece more, or hear of the one that it was asked for. Raises: FileError."""
        try:
            if not self._wish:
                self._wish = min(self.at + PIECE_BYTES, length)
                wish: Wish = {"until": self._wish}
                self.ask(wish)
            self._take(await self._answer())
        except (FileError, wire.WireBroken, trio.ClosedResourceError) as fault:
            self.broken = True
            if isinstance(fault, FileError):
                raise
            raise self._ended() from fault

    def _take(self, body: FromWorker) -> None:
        at, sha256 = body.get("at"), body.get("sha256")
        if not (type(at) is int and self.at <= at <= self._wish and isinstance(sha256, str) and _DIGEST(sha256)):
            raise wire.WireBroken("an answer came that no worker of ours gives")
        self.ended = at < self._wish
        self.at, self.sha256, self._wish = at, sha256, 0

    def ask(self, message: AnyJob | Wish, *fds: int) -> None:
        """Send *message*, or say that the worker ended. Raises: FileError."""
        try:
            self.send(message, *fds)
        except ConnectionError as fault:
            raise self._ended() from fault

    async def _answer(self) -> FromWorker:
        """Wait for the answer; its findings, of which it has none, are passed over."""
        while (body := await self.hear()) is not None:
            if "piece" in body:
                continue
            if is_refusal(body):
                raise from_refusal(self.asked, body)
            return body
        raise self._ended()

    def _ended(self) -> WriteFailed:
        return WriteFailed(self.asked, f"{shown(self.asked)}: the process that hashed it was ended", "ESRCH")
