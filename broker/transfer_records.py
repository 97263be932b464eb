"""The audit of one request on a transfer's URL: a begin record before its first effect, an end record whatever happens.

Knows no HTTP. The token is in none of it: a record names the transfer by its id.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import attrs

from broker.audit.audit import Audit, Event, EventType
from broker.contract.errors import ErrorCode, Failure
from broker.records import CANCELLED, told_and_recorded
from broker.session.urls import Cut, RawDownload, RawUpload


class RequestFailed(Exception):
    """Carries what the client is told from where it is recorded to where it is answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code.name)
        self.failure = failure


class TransferRecord:
    """One request. What leaves its `with` block is recorded; an Exception leaves it as RequestFailed."""

    def __init__(self, audit: Audit, transfer: RawDownload | RawUpload, method: str) -> None:
        self.moved_bytes = 0
        self.cut: Cut | None = None
        """Why it ended early, where no exception says it."""
        self._audit = audit
        self._transfer = transfer
        self._begun = False
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

    async def begin(self, start: int, stop: int | None) -> None:
        """Record which bytes are about to move (None: to the end). Raises: AuditUnavailable."""
        details = {**(self._event.details or {}), "offset": start, "stop": stop}
        self._event = attrs.evolve(self._event, details=details)
        await self._audit.begin(self._event)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise RequestFailed(self._failed(error)) from error
        if error is not None or self.cut is not None:
            cut = self.cut or Cut(why=CANCELLED, code=ErrorCode.CALL_CANCELLED)
            self._end(EventType.FILE_FAILED, error=cut.why, error_code=cut.code.code)
        else:
            self._end(self._done, sha256=self._transfer.sha256)

    def _failed(self, error: Exception) -> Failure:
        failure, facts = told_and_recorded(error)
        self._end(EventType.FILE_FAILED, **facts)
        return failure

    def _end(self, event_type: EventType, **facts: Any) -> None:
        duration_ms = round((time.monotonic() - self._started_s) * 1000)
        event = attrs.evolve(self._event, event_type=event_type, duration_ms=duration_ms, data_bytes=self.moved_bytes)
        record = self._audit.end if self._begun else self._audit.refuse
        record(attrs.evolve(event, **facts))
