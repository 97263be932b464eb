"""The closed set of events that can be recorded. Which of them tell of a tool's call is said in the tool's row.

Values only. The names COMMAND_COMPLETED and COMMAND_FAILED are the customer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from broker.audit.redact import Redacted


class EventType(Enum):
    """Everything that can be recorded. Begin records are TOOL_CALLED, COMMAND_STARTED and TRANSFER_STARTED."""

    SERVER_START = "SERVER_START"
    SERVER_STOP = "SERVER_STOP"
    BROKER_LOST = "BROKER_LOST"
    AUDIT_RESTORED = "AUDIT_RESTORED"
    LOG_DROPPED = "LOG_DROPPED"
    REFUSALS_COUNTED = "REFUSALS_COUNTED"
    CONNECTION_REFUSED = "CONNECTION_REFUSED"
    SESSION_CREATED = "SESSION_CREATED"
    SESSION_KILLED = "SESSION_KILLED"
    SESSION_EXPIRED = "SESSION_EXPIRED"
    SESSION_CLOSED = "SESSION_CLOSED"
    SESSION_FAILED = "SESSION_FAILED"
    COMMAND_STARTED = "COMMAND_STARTED"
    COMMAND_COMPLETED = "COMMAND_COMPLETED"
    COMMAND_FAILED = "COMMAND_FAILED"
    FILE_READ = "FILE_READ"
    FILE_WRITE = "FILE_WRITE"
    FILE_LIST = "FILE_LIST"
    FILE_DOWNLOAD = "FILE_DOWNLOAD"
    FILE_UPLOAD = "FILE_UPLOAD"
    FILE_EDIT = "FILE_EDIT"
    FILE_SEARCH = "FILE_SEARCH"
    FILE_FIND = "FILE_FIND"
    FILE_STAT = "FILE_STAT"
    FILE_MAKE_DIRECTORY = "FILE_MAKE_DIRECTORY"
    FILE_MOVE = "FILE_MOVE"
    FILE_COPY = "FILE_COPY"
    FILE_DELETE = "FILE_DELETE"
    TRANSFER_OPENED = "TRANSFER_OPENED"
    TRANSFER_STARTED = "TRANSFER_STARTED"
    TRANSFER_REFUSED = "TRANSFER_REFUSED"
    FILE_FAILED = "FILE_FAILED"
    UPLOAD_DISCARDED = "UPLOAD_DISCARDED"
    PROCESS_KILLED = "PROCESS_KILLED"
    CLOSED_NAMES_APPEARED = "CLOSED_NAMES_APPEARED"
    TOOL_CALLED = "TOOL_CALLED"
    TOOL_COMPLETED = "TOOL_COMPLETED"
    TOOL_FAILED = "TOOL_FAILED"


@attrs.frozen
class ToolEvents:
    """How the journey of one tool's call is recorded."""

    completed: EventType = EventType.TOOL_COMPLETED
    failed: EventType = EventType.TOOL_FAILED
    begun: EventType = EventType.TOOL_CALLED


@attrs.frozen(kw_only=True)
class Event:
    """One recorded event. `arguments` can only be redacted ones; fields that are None are left out of the line.

    `exception` is for what nobody expected: its traceback goes to the error log alone, under `incident_id`.
    `details` are the broker's own facts (addresses, layers, counts), never a client's values.
    """

    event_type: EventType
    session_id: str | None = None
    tool_name: str | None = None
    arguments: Redacted | None = None
    exit_code: int | None = None
    duration_ms: int | None = None
    error: str | None = None
    error_code: str | None = None
    request_id: str | None = None
    principal: str | None = None
    client: str | None = None
    rule: str | None = None
    data_bytes: int | None = None
    sha256: str | None = None
    details: Mapping[str, object] | None = None
    incident_id: str | None = None
    exception: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether it goes to the error log as well."""
        return self.error is not None or self.error_code is not None or self.exception is not None
