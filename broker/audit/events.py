"""What can be recorded: a closed set of events, and which of them tell the journey of each tool's call.

Values only. The names COMMAND_COMPLETED and COMMAND_FAILED are the customer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

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

    completed: EventType
    failed: EventType
    begun: EventType = EventType.TOOL_CALLED


_ANY_TOOL = ToolEvents(EventType.TOOL_COMPLETED, EventType.TOOL_FAILED)
_EVENTS: Mapping[str, ToolEvents] = MappingProxyType(
    {
        "create_session": ToolEvents(EventType.SESSION_CREATED, EventType.SESSION_FAILED),
        "kill_session": ToolEvents(EventType.SESSION_KILLED, EventType.TOOL_FAILED),
        "execute_command": ToolEvents(
            EventType.COMMAND_COMPLETED, EventType.COMMAND_FAILED, begun=EventType.COMMAND_STARTED
        ),
        "read_file": ToolEvents(EventType.FILE_READ, EventType.FILE_FAILED),
        "write_file": ToolEvents(EventType.FILE_WRITE, EventType.FILE_FAILED),
        "list_directory": ToolEvents(EventType.FILE_LIST, EventType.FILE_FAILED),
        "download_file": ToolEvents(EventType.FILE_DOWNLOAD, EventType.FILE_FAILED),
        "upload_file": ToolEvents(EventType.FILE_UPLOAD, EventType.FILE_FAILED),
        "edit_file": ToolEvents(EventType.FILE_EDIT, EventType.FILE_FAILED),
        "search_files": ToolEvents(EventType.FILE_SEARCH, EventType.FILE_FAILED),
        "find_files": ToolEvents(EventType.FILE_FIND, EventType.FILE_FAILED),
        "stat_path": ToolEvents(EventType.FILE_STAT, EventType.FILE_FAILED),
        "make_directory": ToolEvents(EventType.FILE_MAKE_DIRECTORY, EventType.FILE_FAILED),
        "move_path": ToolEvents(EventType.FILE_MOVE, EventType.FILE_FAILED),
        "copy_path": ToolEvents(EventType.FILE_COPY, EventType.FILE_FAILED),
        "delete_path": ToolEvents(EventType.FILE_DELETE, EventType.FILE_FAILED),
        "open_transfer": ToolEvents(EventType.TRANSFER_OPENED, EventType.FILE_FAILED),
        "kill_process": ToolEvents(EventType.PROCESS_KILLED, EventType.TOOL_FAILED),
    }
)


def events_of(tool_name: str) -> ToolEvents:
    """The event types of a tool; also of one that does not exist, whose call is recorded as well."""
    return _EVENTS.get(tool_name, _ANY_TOOL)


@attrs.frozen(kw_only=True)
class Event:
    """What is recorded. `arguments` can only be redacted ones; fields that are None are left out of the line.

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
