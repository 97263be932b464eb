"""The table of one session's uploads: how many, for how long, and what is left when the session ends.

It knows no session class: the session opens it through `store.open_transfers`, calls `sweep` now and then,
and hands in a destination for each upload.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from transfers.digest import Data
from transfers.refusals import PathMismatch, TooLarge, TooManyTransfers, TransferNotFound, TransfersClosed
from transfers.settings import TransferSettings
from transfers.upload import DISCARD_BOUND_S, Cause, Destination, Discarded, Part, Progress, Quota
from transfers.upload_state import Declared, Upload

REMEMBERED_UPLOADS = 64
"""Ended uploads whose result is kept for a client that lost the last answer; the oldest goes first."""


@attrs.define(eq=False, kw_only=True)
class Uploads:
    """The uploads of one session.

    *on_discard* hears of each upload that was given up, in whatever way; it must neither raise nor block.
    """

    _settings: TransferSettings
    _quota: Quota
    _limiter: trio.CapacityLimiter
    _on_discard: Callable[[Discarded], None]
    _clock: Callable[[], float]
    _parts: dict[str, Part] = attrs.field(factory=dict, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def begin(
        self,
        path: str,
        destination: Destination,
        *,
        offset: int,
        data: Data,
        is_last: bool,
        limit_bytes: int | None = None,
        declared: Declared | None = None,
        idle_s: float | None = None,
    ) -> Progress:
        """Open an upload to *path* with its first chunk; all further ones must name the same *path*, byte for byte.

        *limit_bytes* is a narrower limit than `max_upload_bytes` for this file, if the caller has one; *idle_s*
        replaces `upload_idle_s` for it.

        Raises:
            TooManyTransfers, TooLarge, OffsetMismatch, QuotaExceeded, NoRoom, RanShort, UploadLost, UploadInDoubt,
                TransfersClosed: nothing is left open.

        Ownership: *destination* belongs to the store from the call on.
        Cancellation: the part file is discarded (at most DISCARD_BOUND_S seconds), since the client never
            learned the transfer_id; only a replacement that has begun is finished.
        """
        part = self._new_part(path, destination, limit_bytes, declared, idle_s)
        answered = False
        try:
            await self.sweep()
            self._admit(part)
            self._require_chunk(data)
            progress = await self._take(part, offset, data, is_last=is_last)
            answered = True
        finally:
            if not answered:
                self._parts.pop(part.transfer_id, None)
                with trio.move_on_after(DISCARD_BOUND_S, shield=True):
                    await part.put_away(Cause.UNANSWERED)
        return progress

    async def resume(self, transfer_id: str, path: str, *, offset: int, data: Data, is_last: bool) -> Progress:
        """Take the next, or a repeated, chunk of an upload.

        Raises:
            TransferNotFound, PathMismatch, OffsetMismatch, TooLarge, QuotaExceeded, NoRoom, RanShort: nothing changed.
            UploadLost, UploadInDoubt: the upload is over, now or since an earlier call.

        Cancellation: a chunk that is being written is written, and counts; a replacement that has begun is
            finished (at most COMMIT_BOUND_S seconds). Repeating the chunk tells how it went.
        """
        part = self._part(transfer_id)
        if part.path != path:
            raise PathMismatch(transfer_id, path, part.path)
        self._require_chunk(data)
        return await self._take(part, offset, data, is_last=is_last)

    async def append(self, transfer_id: str, *, offset: int, data: Data) -> Progress:
        """Take the next bytes of a stream: as `resume`, for who holds the transfer and cuts the pieces himself."""
        return await self._take(self._part(transfer_id), offset, data, is_last=False)

    async def finish(self, transfer_id: str) -> Progress:
        """Put the file in place with what was received; as `resume` with an empty last chunk, and repeatable.

        Raises:
            SizeMismatch: bytes are missing; what was received is kept.
            DigestMismatch: it is not what was declared; the upload is over.
        """
        part = self._part(transfer_id)
        return await self._take(part, None, b"", is_last=True)

    def received_bytes(self, transfer_id: str) -> int:
        """Tell how far an upload is. Raises: TransferNotFound, TransfersClosed."""
        return self._part(transfer_id).upload.received_bytes

    async def discard(self, transfer_id: str, cause: Cause) -> None:
        """Give an upload up; one that is over, or not known, needs nothing.

        Cancellation: shielded, at most DISCARD_BOUND_S seconds once its chunk under way has ended.
        """
        part = self._parts.get(transfer_id)
        if part is None or part.upload.is_over:
            return
        async with part.turn:
            self._parts.pop(transfer_id, None)
            with trio.move_on_after(DISCARD_BOUND_S, shield=True):
                await part.put_away(cause)

    async def sweep(self) -> None:
        """Discard uploads without a chunk for `upload_idle_s`; forget the results of ended ones as old.

        Every `begin` does this first; the session does it on a timer, so that abandoned ones free their disk.

        Cancellation: the one that is being discarded is (at most DISCARD_BOUND_S seconds); the others wait for the
            next sweep, or the caller would wait for all of them.
        """
        now = self._clock()
        for part in [p for p in self._parts.values() if p.used_at + p.idle_s <= now]:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not part.turn.locked():
                self._parts.pop(part.transfer_id, None)
                with trio.move_on_after(DISCARD_BOUND_S, shield=True):
                    await part.put_away(Cause.IDLE, f"no chunk came for {part.idle_s:g} s")

    async def close_all(self) -> None:
        """Discard every open upload; none can be begun afterwards.

        Cancellation: shielded, at most DISCARD_BOUND_S seconds for all of them. What does not answer by then
        is reported as left over, and its descriptor is closed all the same.
        """
        self._closed = True
        parts, self._parts = self._parts, {}
        with trio.move_on_after(DISCARD_BOUND_S, shield=True):
            for part in parts.values():
                async with part.turn:  # a chunk under way comes to its end first
                    await part.put_away(Cause.SESSION_ENDED)
        for part in parts.values():
            part.give_up(Cause.SESSION_ENDED)

    def _part(self, transfer_id: str) -> Part:
        part = self._parts.get(transfer_id)
        if part is None:
            raise TransfersClosed if self._closed else TransferNotFound(transfer_id)
        return part

    def _new_part(
        self,
        path: str,
        destination: Destination,
        limit_bytes: int | None,
        declared: Declared | None,
        idle_s: float | None,
    ) -> Part:
        max_bytes = self._settings.max_upload_bytes
        if limit_bytes is not None:
            max_bytes = min(max_bytes, limit_bytes)
        return Part(
            path=path,
            used_at=self._clock(),
            idle_s=self._settings.upload_idle_s if idle_s is None else idle_s,
            upload=Upload(max_bytes=max_bytes, declared=declared or Declared()),
            destination=destination,
            quota=self._quota,
            reserve_bytes=self._settings.reserve_bytes,
            limiter=self._limiter,
            on_discard=self._on_discard,
        )

    def _admit(self, part: Part) -> None:
        if self._closed:
            raise TransfersClosed
        if sum(not other.upload.is_over for other in self._parts.values()) >= self._settings.max_open:
            raise TooManyTransfers(self._settings.max_open)
        self._parts[part.transfer_id] = part

    def _require_chunk(self, data: Data) -> None:
        if len(data) > self._settings.max_chunk_bytes:
            raise TooLarge("chunk", len(data), self._settings.max_chunk_bytes)

    async def _take(self, part: Part, offset: int | None, data: Data, *, is_last: bool) -> Progress:
        """Offer a chunk when it is its turn; without an offset, behind what was received by then."""
        async with part.turn:
            try:
                at = part.upload.received_bytes if offset is None else offset
                return await part.take(at, data, is_last=is_last)
            finally:
                part.used_at = self._clock()
                if part.upload.is_over:
                    self._forget_oldest()
                    with trio.move_on_after(DISCARD_BOUND_S, shield=True):
                        await part.put_away(Cause.LOST)

    def _forget_oldest(self) -> None:
        ended = [part for part in self._parts.values() if part.upload.is_over]
        for part in sorted(ended, key=lambda part: part.used_at)[:-REMEMBERED_UPLOADS]:
            del self._parts[part.transfer_id]
