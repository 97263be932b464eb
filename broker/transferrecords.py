"""The audit of one request on a transfer's URL: a begin record before its first effect, an end record whatever happens.

Knows no HTTP. The token is in none of it: a record names the transfer by its id.
"""

from __future__ import annotations

import secrets
import time
from types import TracebackType
from typing import Any, Self

import attrs

from broker.audit import Audit, Event, EventType
from broker.errors import ErrorCode, Failure, failure_of
from broker.rawtransfers import RawDownload, RawUpload


class RequestFailed(Exception):
    """Carries what the client is told from where it is recorded to where it is answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code.name)
        self.failure = failure


class TransferRecord:
    """One request. What leaves its `with` block is recorded; an Exception leaves it as RequestFailed."""

    def __init__(self, audit: Audit, transfer: RawDownload | RawUpload, method: str) -> None:
        self.moved_bytes = 0
        self.cut = ""
        """Why it ended early without anybody's fault."""
        self._audit = audit
        self._transfer = transfer
        self._done = EventType.FILE_DOWNLOAD if isinstance(transfer, RawDownload) else EventType.FILE_UPLOAD
        self._started_s = time.monotonic()
        self._event = Event(
            event_type=EventType.TRANSFER_STARTED,
            session_id=transfer.session_id,
            tool_name="open_transfer",
            principal=transfer.principal,
            client=transfer.client,
            details={"transfer_id": transfer.id, "path": transfer.path, "method": method},
        )

    def begin(self, start: int, stop: int | None) -> None:
        """Record which bytes are about to move (None: to the end). Raises: AuditUnavailable."""
        details = {**(self._event.details or {}), "offset": start, "stop": stop}
        self._event = attrs.evolve(self._event, details=details)
        self._audit.begin(self._event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise RequestFailed(self._failed(error)) from error
        if error is not None or self.cut:
            self._end(EventType.FILE_FAILED, error=self.cut or "cancelled: the client left, or the broker stops")
        else:
            self._end(self._done, sha256=self._transfer.sha256)

    def _failed(self, error: Exception) -> Failure:
        incident_id = secrets.token_hex(8)
        failure = failure_of(error, incident_id)
        unexpected = failure.code is ErrorCode.SYSTEM_INTERNAL_ERROR
        self._end(
            EventType.FILE_FAILED,
            error=failure.message,
            error_code=failure.code.code,
            incident_id=incident_id if unexpected else None,
            exception=error if unexpected else None,
        )
        return failure

    def _end(self, event_type: EventType, **facts: Any) -> None:
        duration_ms = round((time.monotonic() - self._started_s) * 1000)
        event = attrs.evolve(self._event, event_type=event_type, duration_ms=duration_ms, data_bytes=self.moved_bytes)
        self._audit.end(attrs.evolve(event, **facts))
