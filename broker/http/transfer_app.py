"""The ASGI application for the bytes of transfers: `/transfers/TOKEN`, beside /mcp and on the same server.

It stands behind the guard, which has checked Host and Origin. Owns what one request on a token does: who may, from
where to where, what is said of it. The work runs inside the transfer's session, so that it counts as activity and ends
when the session ends; the bytes are moved by `transfer_body.py`. Knows neither MCP nor the policy: what a token is
good for was decided when it was opened.
"""

from __future__ import annotations

import attrs

from broker.audit.audit import Audit, Event, EventType
from broker.contract.errors import BrokerError, ErrorCode
from broker.contract.urls import TRANSFERS_PATH
from broker.failures import failure_of
from broker.http.admission import Slots
from broker.http.asgi import Receive, Reply, Scope, Send
from broker.http.transfer_answer import (
    NO_STORE,
    NOSNIFF,
    file_headers,
    json_reply,
    offset_headers,
    part_headers,
    reply_of,
)
from broker.http.transfer_body import TransferExchange, receive_body, send_pieces
from broker.http.transfer_head import UnsatisfiableRange, UploadHead, upload_head, wanted_range
from broker.records import Record, RecordedFailure
from broker.session.urls import RawDownload, RawUpload, TransferRegistry, range_behind_the_end
from transfers.refusals import OffsetMismatch, SizeMismatch, TooLarge, TransferOver
from transfers.ticket import TicketState

DOWNLOAD_METHODS, UPLOAD_METHODS = ("GET", "HEAD"), ("PUT", "PATCH", "HEAD")


@attrs.define(eq=False)
class TransferApp:
    """The ASGI application behind TRANSFERS_PATH."""

    _registry: TransferRegistry
    _audit: Audit
    streams: Slots = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.streams = Slots(self._registry.settings.max_streams)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request beneath TRANSFERS_PATH."""
        exchange = TransferExchange(scope, receive, send)
        transfer = self._registry.find(scope["path"].removeprefix(TRANSFERS_PATH))
        if transfer is None:
            await exchange.reply(self._unknown(exchange.method))
        elif exchange.method not in _methods(transfer):
            await exchange.reply(_wrong_method(transfer))
        elif exchange.method == "HEAD":
            await self._tell(exchange, transfer)
        else:
            with self.streams.new().held():
                await self._serve(exchange, transfer)

    async def _serve(self, exchange: TransferExchange, transfer: RawDownload | RawUpload) -> None:
        await transfer.wait_turn()
        try:
            with self._record_of(transfer, exchange.method) as record:
                async with transfer.used():
                    self._require_room()
                    reply: Reply | None = await transfer.in_session(self._move, exchange, transfer, record)
                if record.early_end is None:
                    record.note(sha256=transfer.sha256)
        except RecordedFailure as failed:
            reply = reply_of(failed.failure)
        if reply is not None:
            await exchange.reply(reply)

    def _record_of(self, transfer: RawDownload | RawUpload, method: str) -> Record:
        """The audit of one request. The token is in none of it: a record names the transfer by its id."""
        begun = Event(
            event_type=EventType.TRANSFER_STARTED,
            session_id=transfer.session_id,
            tool_name="open_transfer",
            principal=transfer.principal,
            client=transfer.client,
            details={"transfer_id": transfer.id, "path": transfer.path, "method": method},
        )
        done = EventType.FILE_DOWNLOAD if isinstance(transfer, RawDownload) else EventType.FILE_UPLOAD
        return Record(self._audit, begun, completed=done, failed=EventType.FILE_FAILED, counts_bytes=True)

    async def _move(
        self, exchange: TransferExchange, transfer: RawDownload | RawUpload, record: Record
    ) -> Reply | None:
        if isinstance(transfer, RawDownload):
            return await self._download(exchange, transfer, record)
        return await self._upload(exchange, transfer, record)

    async def _download(self, exchange: TransferExchange, transfer: RawDownload, record: Record) -> Reply | None:
        source, size_bytes = transfer.source, transfer.size_bytes
        part = None
        if size_bytes is not None and source.tag:
            try:
                part = wanted_range(exchange.headers, size_bytes, source.tag)
            except UnsatisfiableRange:
                record.early_end = range_behind_the_end(size_bytes)
                return _unsatisfiable(size_bytes)
        start, stop = part or (0, size_bytes)
        record.note(details={"offset": start, "stop": stop})
        await record.begin()

        def sent(length: int) -> None:
            source.sent(start + record.moved_bytes, length)
            record.moved_bytes += length

        headers = (
            file_headers(transfer.filename, size_bytes, source.tag)
            if part is None or size_bytes is None
            else part_headers(transfer.filename, part, size_bytes, source.tag)
        )
        status = 200 if part is None else 206
        flow = await send_pieces(
            exchange, source, (start, stop), (status, headers), sent, self._registry.settings.idle_s
        )
        if flow.error is not None:
            raise flow.error
        record.early_end = flow.early_end
        transfer.trouble = flow.early_end.why if flow.early_end else ""
        if await source.settle():
            transfer.completed(source.sha256, source.why_no_sha256)
        return None

    async def _upload(self, exchange: TransferExchange, transfer: RawUpload, record: Record) -> Reply | None:
        head = upload_head(exchange.method, exchange.headers)
        _require_fit(head, transfer)
        stop = None if head.body_bytes is None else head.offset + head.body_bytes
        record.note(details={"offset": head.offset, "stop": stop})
        await record.begin()

        async def write(data: bytes) -> None:
            await transfer.sink.write(data)
            record.moved_bytes += len(data)

        cut = await receive_body(exchange, write, self._registry.settings.idle_s)
        transfer.trouble = cut.why if cut else ""
        if exchange.left:
            record.early_end = cut
            return None
        if cut is not None:
            raise BrokerError(
                cut.code,
                f"{transfer.trouble}; {transfer.received_bytes} bytes are kept, go on behind them",
                expected_offset=transfer.received_bytes,
            )
        if _is_complete(head, transfer):
            await transfer.finish()
        return _received(transfer)

    def _require_room(self) -> None:
        if self.streams.taken > self.streams.limit:
            raise BrokerError(
                ErrorCode.POLICY_RESOURCE_EXCEEDED,
                f"{self.streams.limit} transfers are on their way, which is transfers.max_streams; try again",
                limit=self.streams.limit,
            )

    async def _tell(self, exchange: TransferExchange, transfer: RawDownload | RawUpload) -> None:
        """Answer HEAD: how large the file is, or how far the upload. It uses nothing up."""
        await transfer.look()
        ticket = transfer.ticket
        complete = ticket.state is TicketState.COMPLETE
        if ticket.is_over and not (complete and isinstance(transfer, RawUpload)):
            over = TransferOver(transfer.id, ticket.state.value, ticket.why)
            await exchange.reply(reply_of(failure_of(over, "")))
            return
        if isinstance(transfer, RawDownload):
            headers = file_headers(transfer.filename, transfer.size_bytes, transfer.source.tag)
        else:
            headers = (*offset_headers(transfer.received_bytes, transfer.size_bytes, complete=complete), *NO_STORE)
        await exchange.start(200, headers)
        await exchange.end()

    def _unknown(self, method: str) -> Reply:
        """The same answer for whatever is no token, or none any more."""
        message = "there is no transfer at this URL: its session has ended, it is long over, or it never was"
        failure = failure_of(BrokerError(ErrorCode.TRANSFER_NOT_FOUND, message), "")
        self._audit.refuse(
            Event(
                event_type=EventType.TRANSFER_REFUSED,
                error="a request named a transfer that does not exist, or no longer",
                error_code=failure.code.code,
                details={"method": method},
            )
        )
        return reply_of(failure)


def _methods(transfer: RawDownload | RawUpload) -> tuple[str, ...]:
    return DOWNLOAD_METHODS if isinstance(transfer, RawDownload) else UPLOAD_METHODS


def _wrong_method(transfer: RawDownload | RawUpload) -> Reply:
    allowed = ", ".join(_methods(transfer))
    failure = failure_of(BrokerError(ErrorCode.INVALID_ARGUMENTS, f"this URL takes {allowed}"), "")
    return attrs.evolve(reply_of(failure), status=405, headers=((b"allow", allowed.encode()), *NOSNIFF))


def _unsatisfiable(size_bytes: int) -> Reply:
    message = f"the range begins behind the end: there are {size_bytes} bytes"
    failure = failure_of(BrokerError(ErrorCode.INVALID_ARGUMENTS, message, size_bytes=size_bytes), "")
    headers = ((b"content-range", b"bytes */%d" % size_bytes), *NOSNIFF)
    return attrs.evolve(reply_of(failure), status=416, headers=headers)


def _require_fit(head: UploadHead, transfer: RawUpload) -> None:
    """Raise what can be known to be wrong before a byte of the body is read."""
    received = transfer.sink.received_bytes
    if head.offset != received:
        why = "leaves a gap" if head.offset > received else "overlaps bytes that were received"
        raise OffsetMismatch(head.offset, received, why)
    stop = head.offset + (head.body_bytes or 0)
    total = _total_bytes(head, transfer)
    if head.total_bytes not in (None, total):
        raise SizeMismatch(transfer.path, head.total_bytes or 0, total, received)
    if total is not None and stop > total:
        raise SizeMismatch(transfer.path, stop, total, received)
    if stop > transfer.max_bytes:
        raise TooLarge("upload", stop, transfer.max_bytes)


def _is_complete(head: UploadHead, transfer: RawUpload) -> bool:
    """Whether this was all. Raises: SizeMismatch, if it should have been and is not."""
    total = _total_bytes(head, transfer)
    if total is None:
        return not head.is_part
    if transfer.received_bytes != total and not head.is_part:
        raise SizeMismatch(transfer.path, transfer.received_bytes, total, transfer.received_bytes)
    return transfer.received_bytes == total


def _total_bytes(head: UploadHead, transfer: RawUpload) -> int | None:
    return head.total_bytes if transfer.size_bytes is None else transfer.size_bytes


def _received(transfer: RawUpload) -> Reply:
    """200 when the file is in place, 202 while there is more to come."""
    complete = transfer.ticket.state is TicketState.COMPLETE
    content = {
        "success": True,
        "transfer_id": transfer.id,
        "state": "complete" if complete else "open",
        "path": transfer.path,
        "bytes_received": transfer.received_bytes,
        "sha256": transfer.sha256,
    }
    headers = offset_headers(transfer.received_bytes, transfer.size_bytes, complete=complete)
    return json_reply(200 if complete else 202, content, headers)
