"""Transfers over a URL: who may make which, and what became of it.

Owns the tokens, or rather only their digests, and the records of transfers, by session. A token is 256 random bits,
made once and told once; it is looked up by a keyed digest, so that neither a log, a dump of memory nor the time that a
look-up takes tells one. What moves the bytes is `transfers/`; its side on HTTP is `http/transfer_app.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import attrs
import trio

from broker.contract.encode import utc_text
from broker.contract.errors import BrokerError, ErrorCode
from broker.session.archives import ArchiveSink, ArchiveSource
from config.settings import TransferSettings
from sandbox.files.errors import FileError
from transfers.refusals import TooManyTransfers, TransferError, TransferNotFound, TransferOver, TransfersClosed
from transfers.streams import Sink, Source
from transfers.ticket import Ticket, TicketState
from transfers.upload import Cause

TOKEN_BYTES = 32
KEY_BYTES = 32
TURN_S = 1.0
REMEMBERED_TRANSFERS = 64
"""Ended ones of a session that can still be asked about; the oldest goes first."""
_CAUSES = MappingProxyType({TicketState.EXPIRED: Cause.EXPIRED, TicketState.CANCELLED: Cause.CANCELLED})


@attrs.define(eq=False, kw_only=True)
class RawTransfer(ABC):
    """One transfer of one session, on behalf of one principal.

    Whoever ends it, or finds out that it has expired, lets go of what it holds (`release`); `sweep` finds the rest.
    """

    ticket: Ticket
    path: str
    session_id: str
    principal: str
    client: str
    in_session: Callable[..., Awaitable[Any]]
    """`Session.call`: what it runs ends with the session."""
    archive: ArchiveSource | ArchiveSink | None = None
    """Its end inside, when it is a directory that goes through."""
    sha256: str | None = attrs.field(default=None, init=False)
    why_no_sha256: str = attrs.field(default="", init=False)
    """Why it is complete without one."""
    trouble: str = attrs.field(default="", init=False)
    """Why the last request did not bring it to its end."""
    released: bool = attrs.field(default=False, init=False)
    """Whether it is over and holds nothing any more."""
    _use: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _unused: trio.Event = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._unused = trio.Event()
        self._unused.set()

    @property
    def id(self) -> str:
        """Its name for clients and logs."""
        return self.ticket.transfer_id

    async def wait_turn(self) -> None:
        """Wait, at most TURN_S, until nobody is at work: a client has its last byte before we know that it went."""
        with trio.move_on_after(TURN_S):
            await self._unused.wait()

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Be the one who transfers, until the end of the block or until it is cancelled; let go of what has ended.

        Raises: TransferBusy; TransferOver, also when it was cancelled meanwhile.
        """
        failed: Exception | None = None
        try:
            with self._taken():
                yield
        except (TransferError, FileError, BrokerError) as error:
            failed = error
        await self.release()
        if failed is not None:
            raise failed

    @contextmanager
    def _taken(self) -> Iterator[None]:
        self.ticket.take(trio.current_time())
        self._unused = trio.Event()
        try:
            with trio.CancelScope() as self._use:
                yield
        except (TransferError, FileError, BrokerError) as error:
            self.trouble = str(error)
            if isinstance(error, TransferError) and error.is_final:
                self.ticket.end(TicketState.FAILED, str(error))
            raise
        finally:
            self.ticket.put_back(trio.current_time())
            self._unused.set()
        if self._use.cancelled_caught:
            raise TransferOver(self.id, self.ticket.state.value, self.ticket.why)

    async def look(self) -> None:
        """Find out whether its URL has expired, and let go of it then."""
        self.ticket.is_due(trio.current_time())
        await self.release()

    async def release(self) -> None:
        """Let go of what it holds, once it is over; safe to repeat, and at the same time.

        Cancellation: it may hold something yet, and the next one to call goes on.
        """
        if self.ticket.is_over and not self.released:
            await self.let_go(_CAUSES.get(self.ticket.state, Cause.LOST))
            self.released = True

    @abstractmethod
    async def let_go(self, cause: Cause) -> None:
        """Close what it reads, or throw away what was received unless it is in place. Safe to repeat."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it when there is no time to wait. Safe to repeat."""

    def end(self, state: TicketState, why: str = "") -> None:
        """Say how it ended; whoever is at work on it is cancelled."""
        self.ticket.end(state, why)
        self._use.cancel(reason="the transfer has ended")

    def completed(self, sha256: str | None, why_no_sha256: str = "") -> None:
        """Say that it is done."""
        self.sha256, self.why_no_sha256 = sha256, why_no_sha256
        self.trouble = ""
        self.ticket.end(TicketState.COMPLETE)

    def expires_at(self) -> str:
        """When its URL expires, as UTC."""
        left_s = self.ticket.expires_at - trio.current_time()
        return utc_text(datetime.now(UTC) + timedelta(seconds=left_s), "seconds")


@attrs.define(eq=False, kw_only=True)
class RawDownload(RawTransfer):
    """The way out."""

    source: Source
    filename: str

    @property
    def size_bytes(self) -> int | None:
        """Of the whole, if it is known."""
        return self.source.size_bytes

    async def let_go(self, _cause: Cause) -> None:
        """Close the source; who still reads it comes to the end of that read."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the source."""
        self.source.close()


@attrs.define(eq=False, kw_only=True)
class RawUpload(RawTransfer):
    """The way in."""

    sink: Sink
    size_bytes: int | None
    max_bytes: int
    _received_bytes: int = attrs.field(default=0, init=False)

    @property
    def received_bytes(self) -> int:
        """How far it is, or was when it was discarded."""
        try:
            self._received_bytes = self.sink.received_bytes
        except TransferError:
            return self._received_bytes
        return self._received_bytes

    async def finish(self) -> None:
        """Put it in place and complete it. Raises: TransferError."""
        self.completed(await self.sink.finish())

    async def let_go(self, cause: Cause) -> None:
        """Throw away what was received, unless it is in place."""
        _ = self.received_bytes  # the last moment to know
        await self.sink.abort(cause)

    def close(self) -> None:
        """Close the sink; what was received is discarded with the session's uploads."""
        self.sink.close()


@attrs.define(eq=False, kw_only=True)
class TransferRegistry:
    """All transfers of the broker, by the digests of their tokens."""

    settings: TransferSettings
    _key: bytes = attrs.field(factory=lambda: secrets.token_bytes(KEY_BYTES), init=False, repr=False)
    _by_digest: dict[bytes, RawDownload | RawUpload] = attrs.field(factory=dict, init=False, repr=False)

    def find(self, token: str) -> RawDownload | RawUpload | None:
        """The transfer that a token is for."""
        return self._by_digest.get(self._digest(token))

    def register(self, transfer: RawDownload | RawUpload) -> tuple[str, bytes]:
        """Mint the token of a transfer; return it, and the digest by which it is forgotten."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        digest = self._digest(token)
        self._by_digest[digest] = transfer
        return token, digest

    def forget(self, digest: bytes) -> None:
        """Know a token no more."""
        self._by_digest.pop(digest, None)

    def _digest(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode("utf-8", "surrogatepass"), key=self._key, digest_size=KEY_BYTES).digest()


@attrs.define(eq=False)
class SessionTransfers:
    """The transfers of one session."""

    registry: TransferRegistry
    limiter: trio.CapacityLimiter
    """Of the threads that read its files."""
    _digests: dict[str, bytes] = attrs.field(factory=dict, init=False)
    _transfers: dict[str, RawDownload | RawUpload] = attrs.field(factory=dict, init=False)
    _opening: int = attrs.field(default=0, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keep a place for one more while it is opened. Raises: TooManyTransfers, TransfersClosed."""
        if self._closed:
            raise TransfersClosed
        is_open = sum(not transfer.ticket.is_over for transfer in self._transfers.values())
        if is_open + self._opening >= self.registry.settings.max_open:
            raise TooManyTransfers(self.registry.settings.max_open)
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    def new_ticket(self, transfer_id: str = "") -> Ticket:
        """A ticket that runs from now; without an id it gets a random one."""
        return Ticket(
            transfer_id=transfer_id or secrets.token_urlsafe(16),
            ttl_s=self.registry.settings.url_ttl_s,
            expires_at=trio.current_time() + self.registry.settings.url_ttl_s,
        )

    def add(self, transfer: RawDownload | RawUpload) -> str:
        """Keep a transfer that there is `room` for; return its token, which nobody knows afterwards."""
        token, self._digests[transfer.id] = self.registry.register(transfer)
        self._transfers[transfer.id] = transfer
        ended = [known.id for known in self._transfers.values() if known.released]
        for transfer_id in ended[:-REMEMBERED_TRANSFERS]:
            self._forget(transfer_id)
        return token

    def get(self, transfer_id: str) -> RawDownload | RawUpload:
        """The transfer of that id. Raises: TransferNotFound."""
        if transfer := self._transfers.get(transfer_id):
            return transfer
        raise TransferNotFound(transfer_id)

    async def sweep(self) -> None:
        """Let go of what has expired, and of what has ended while nobody could."""
        for transfer in list(self._transfers.values()):
            await transfer.look()

    def close(self) -> None:
        """End all: no token is good any more. What was received is discarded with the session's uploads."""
        self._closed = True
        for transfer in list(self._transfers.values()):
            transfer.ticket.end(TicketState.CANCELLED, "its session ended")
            self._forget(transfer.id)

    def _forget(self, transfer_id: str) -> None:
        self.registry.forget(self._digests.pop(transfer_id))
        self._transfers.pop(transfer_id).close()


@attrs.frozen(kw_only=True)
class EarlyEnd:
    """The reason why a request on a transfer's URL ended before it was done, though nothing failed.

    `why` is for `stat_transfer` and the audit, which has *code* for it.
    """

    why: str
    code: ErrorCode


CLIENT_LEFT = EarlyEnd(why="the client left before the end", code=ErrorCode.CALL_CANCELLED)


def stalled(idle_s: float) -> EarlyEnd:
    """The client neither sent nor took anything for so many seconds."""
    return EarlyEnd(why=f"nothing moved for {idle_s:g} s (transfers.idle_s)", code=ErrorCode.TRANSFER_STALLED)


def range_behind_the_end(size_bytes: int) -> EarlyEnd:
    """It asked for bytes that there are not."""
    return EarlyEnd(why=f"the range begins behind the end, at {size_bytes} bytes", code=ErrorCode.INVALID_ARGUMENTS)
