"""One upload being performed: its machine, its part file, and the turn that its chunks take.

A second chunk waits its turn (first come, first served) instead of being refused as busy: a client that lost
an answer repeats the chunk while the first attempt may still be writing, and a client that pipelines has
several under way. The one is then acknowledged as a repeat, the other goes on in order, and neither needs a
retry loop. How many can wait is bounded by the calls the broker takes at a time.
"""

from __future__ import annotations

import enum
import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar, TypeVarTuple, assert_never

import attrs
import trio

from transfers import disk
from transfers.digest import Data, Digest
from transfers.refusals import (
    DigestMismatch,
    NoRoom,
    OffsetMismatch,
    QuotaExceeded,
    RanShort,
    SizeMismatch,
    TooLarge,
    TransferError,
    UploadInDoubt,
    UploadLost,
)
from transfers.threads import NoThread, run_in_thread
from transfers.upload_state import Acknowledge, Commit, Refuse, State, Step, Sync, Upload, Verify, Why, Write

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

COMMIT_BOUND_S = 10
"""Replacing a file is a rename and the fsync of a folder; its data is on the disk before that begins."""
DISCARD_BOUND_S = 5


class Cause(enum.Enum):
    """The cause for which an upload was given up; the value tells a person, where nothing more is known."""

    LOST = "it was lost"
    IN_DOUBT = "whether it was put in place is not known"
    MISMATCH = "it is not what was declared"
    UNANSWERED = "its first chunk was not answered"
    IDLE = "no chunk came in time"
    EXPIRED = "its URL expired"
    CANCELLED = "it was cancelled"
    SESSION_ENDED = "its session ended"


class ReplacementUnknown(OSError):
    """A commit failed, and the destination may have been replaced, or may not stay replaced."""


class Destination(Protocol):
    """The target of an upload: a private part file, and the file it may replace. The broker hands it in.

    Ownership: the store closes `fd`, exactly once, after `commit` or `discard` returned or failed; neither may
    close it. One of the two is called; `discard` also after a commit that failed.
    """

    @property
    def fd(self) -> int:
        """The part file, open for writing and empty."""

    def in_turn(self) -> AbstractAsyncContextManager[None]:
        """Be the only one who changes the destination, from the last chunk to the end of `commit`.

        What entering it raises comes through, and the upload is as it was.
        """

    async def commit(self) -> None:
        """Replace the destination by the part file, atomically, and make the replacement durable.

        The data was synced before. Called shielded, for at most COMMIT_BOUND_S seconds.
        Raises: OSError, and the destination is as it was; ReplacementUnknown, and nobody knows.
        """

    async def discard(self) -> None:
        """Remove the part file, if there is anything to remove. Raises nothing but OSError.

        Called shielded, for at most DISCARD_BOUND_S seconds.
        """


@attrs.frozen(kw_only=True)
class Progress:
    """The answer to a chunk; *sha256* of the whole file once it *is_complete*."""

    transfer_id: str
    path: str
    received_bytes: int
    is_complete: bool
    sha256: str | None


@attrs.frozen(kw_only=True)
class Discarded:
    """An upload that was given up for *cause*; *why* says more of it than the cause, where more is known.

    *leftover* says why its part file could not be removed, or is empty.
    """

    transfer_id: str
    path: str
    received_bytes: int
    cause: Cause
    why: str
    leftover: str


@attrs.define(eq=False, kw_only=True)
class Quota:
    """Owns one count. It knows no file: who writes says how much, beforehand, and what came of it."""

    limit_bytes: int
    used_bytes: int = attrs.field(default=0, init=False)

    def take(self, size_bytes: int) -> None:
        """Count *size_bytes* as written. Raises: QuotaExceeded, and nothing is counted."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise QuotaExceeded(size_bytes, self.used_bytes, self.limit_bytes)
        self.used_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Say that *size_bytes* of what was taken are not on the disk."""
        self.used_bytes -= size_bytes

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[None]:
        """Take *size_bytes* for the work inside, which writes all of them, or fails and has written none."""
        self.take(size_bytes)
        try:
            yield
        except BaseException:
            self.give_back(size_bytes)
            raise


@attrs.define(eq=False, kw_only=True)
class Part:
    """Owns one upload, and the descriptor of its part file until that is committed or discarded."""

    path: str
    used_at: float
    idle_s: float
    upload: Upload
    _destination: Destination
    _quota: Quota
    _reserve_bytes: int
    _limiter: trio.CapacityLimiter
    _on_discard: Callable[[Discarded], None]
    transfer_id: str = attrs.field(factory=lambda: secrets.token_urlsafe(16), init=False)
    turn: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _pin: disk.Pin = attrs.field(init=False)
    _put_away: bool = attrs.field(default=False, init=False)
    _cause: Cause = attrs.field(default=Cause.LOST, init=False)

    def __attrs_post_init__(self) -> None:
        self._pin = disk.Pin(self._destination.fd)

    async def take(self, offset: int, data: Data, *, is_last: bool) -> Progress:
        """Perform one chunk; call it with the turn held.

        Raises:
            OffsetMismatch, TooLarge, QuotaExceeded, NoRoom, RanShort: nothing changed.
            UploadLost, UploadInDoubt: the upload is over; `put_away` must follow.

        Cancellation: what a thread has begun is finished, and counts. So is a replacement that has begun.
        """
        async with self._destination.in_turn() if is_last else nullcontext():
            try:
                step = self.upload.offer(offset, data, is_last=is_last)
                while not isinstance(step, Acknowledge):
                    if isinstance(step, Refuse):
                        raise self._refusal(step, offset, len(data))
                    step = await self._perform(step)
            finally:
                self.upload.withdraw()
        return Progress(
            transfer_id=self.transfer_id,
            path=self.path,
            received_bytes=step.received_bytes,
            is_complete=step.sha256 is not None,
            sha256=step.sha256,
        )

    async def put_away(self, cause: Cause, why: str = "") -> None:
        """Close the descriptor; before that remove the part file, unless it was committed.

        Call it in a shielded scope with a deadline: what does not answer by then is left over and reported.
        """
        if self._put_away:
            return
        leftover = "its removal was not answered in time"
        self._put_away = True
        try:
            if self.upload.state is not State.COMPLETE:
                self._lose(cause, why)
                leftover = await self._remove()
        finally:
            self._close(leftover)

    def give_up(self, cause: Cause) -> None:
        """Close the descriptor of an upload for which there is no time left; its part file may stay behind."""
        if not self._put_away:
            self._put_away = True
            if self.upload.state is not State.COMPLETE:
                self._lose(cause)
            self._close("there was no time to remove it")

    def _lose(self, cause: Cause, why: str = "") -> None:
        if not self.upload.is_over:
            self._cause = cause
            self.upload.lost(why or cause.value)

    async def _perform(self, step: Write | Verify | Sync | Commit) -> Step:
        """Perform one effect and report it. What the disk says against it, but that it is full, loses the upload."""
        try:
            match step:
                case Write():
                    return self.upload.wrote(step, await self._write(step))
                case Verify():
                    same = await run_in_thread(step.matches, limiter=self._limiter)
                    return self.upload.verified(step, same=same)
                case Sync():
                    await self._on_disk(os.fsync)
                    return self.upload.synced()
                case Commit():
                    await self._commit()
                    return self.upload.committed()
                case _:
                    assert_never(step)
        except disk.Full as full:
            raise NoRoom(self.path, full.needed_bytes, full.free_bytes, self._reserve_bytes) from full
        except NoThread as short:
            raise RanShort(self.path) from short
        except OSError as fault:
            self.upload.lost(_text(fault), in_doubt=isinstance(fault, ReplacementUnknown))
            raise self._lost() from fault

    async def _write(self, write: Write) -> Digest:
        with self._quota.taken(len(write.data)):
            return await self._on_disk(disk.write_chunk, write, self._reserve_bytes)

    async def _on_disk(self, work: Callable[[int, *Ts], T], *args: *Ts) -> T:
        with self._pin.use() as fd:
            return await run_in_thread(work, fd, *args, limiter=self._limiter)

    async def _commit(self) -> None:
        with trio.move_on_after(COMMIT_BOUND_S, shield=True) as bound:
            await self._destination.commit()
        if bound.cancelled_caught:
            raise ReplacementUnknown(errno.ETIMEDOUT, f"no answer in {COMMIT_BOUND_S} s")

    async def _remove(self) -> str:
        try:
            await self._destination.discard()
        except OSError as fault:  # there is nobody left to tell but the audit
            return _text(fault)
        return ""

    def _close(self, leftover: str) -> None:
        self._pin.close()
        if self.upload.state is not State.COMPLETE:
            self._quota.give_back(self.upload.received_bytes)
            gone = Discarded(
                transfer_id=self.transfer_id,
                path=self.path,
                received_bytes=self.upload.received_bytes,
                cause=Cause.IN_DOUBT if self.upload.is_in_doubt else self._cause,
                why=self.upload.why_lost,
                leftover=leftover,
            )
            self._on_discard(gone)

    def _lost(self) -> UploadLost | UploadInDoubt:
        upload = self.upload
        if upload.is_in_doubt:
            return UploadInDoubt(self.path, upload.why_lost, upload.received_bytes, upload.sha256_so_far)
        return UploadLost(self.path, upload.why_lost)

    def _refusal(self, refuse: Refuse, offset: int, length: int) -> TransferError:
        if refuse.why is Why.LOST:
            return self._lost()
        if refuse.why is Why.TOO_LARGE:
            return TooLarge("upload", offset + length, self.upload.max_bytes)
        if refuse.why is Why.DIGEST:
            self._cause = Cause.MISMATCH
            return DigestMismatch(self.path, self.upload.sha256_so_far, self.upload.declared.sha256)
        if refuse.why in {Why.BEYOND, Why.SHORT}:
            declared = self.upload.declared.size_bytes
            return SizeMismatch(self.path, offset + length, declared, refuse.expected_offset)
        return OffsetMismatch(offset, refuse.expected_offset, refuse.why.value)


def _text(fault: OSError) -> str:
    return fault.strerror or str(fault)
