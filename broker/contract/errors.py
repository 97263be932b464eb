"""The wire codes: what a client reads when a call fails.

Knows no exception but its own; which code those of the packages have is said in `broker/failures.py`. A row exists only
while something raises it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

import attrs

from broker.contract.encode import json_value, safe_text

TRY_AGAIN = "Call again, unchanged: nothing of it was refused, something outside ended the attempt."
"""Of a failure that passes, in place of what its row says."""


class ErrorCode(Enum):
    """One row: the member's name is `error_name`; retryable: the same call, unchanged, may succeed later."""

    SESSION_NOT_FOUND = ("SESSION_001", False, "Call create_session and use the session_id it returns.")
    SESSION_EXPIRED = ("SESSION_002", False, "Call create_session; the old session's processes and uploads are gone.")
    SESSION_LIMIT_REACHED = ("SESSION_003", True, "Kill a session you no longer need, or wait until one ends.")
    SESSION_CREATION_FAILED = ("SESSION_004", False, "Read error_message; choose another id or working_dir.")
    SESSION_CLOSED = ("SESSION_005", False, "Call create_session; what the session started has ended with it.")
    POLICY_COMMAND_BLOCKED = ("POLICY_001", False, "Use a command and arguments that the policy allows.")
    POLICY_PATH_VIOLATION = ("POLICY_002", False, "Use a path beneath an allowed root that is not blocked.")
    POLICY_RESOURCE_EXCEEDED = ("POLICY_003", False, "Stay below the limit named in error_message.")
    POLICY_CONFIRMATION_REQUIRED = ("POLICY_004", False, "If you really mean it, call again with confirm: true.")
    CMD_EXEC_FAILED = ("CMD_001", False, "Read error_message: the command did not start, nothing of it ran.")
    CMD_TIMEOUT = ("CMD_002", False, "Read the partial output; call again with a larger timeout_seconds.")
    CMD_KILLED = ("CMD_003", False, "Read the partial output; something ended the command before it was done.")
    CMD_NOT_FOUND = ("CMD_004", False, "Look with list_commands; what ended long ago is not remembered.")
    CMD_NOT_TAKEN = ("CMD_005", False, "Read error_message: the command has ended, or takes nothing of this kind now.")
    FILE_NOT_FOUND = ("FILE_001", False, "Look with list_directory; the names are case-sensitive.")
    FILE_ACCESS_DENIED = ("FILE_002", False, "Read error_message: not permitted, or no kind of file for this.")
    FILE_TOO_LARGE = ("FILE_003", False, "Work in parts: read_file with limit, download_file, or upload_file.")
    FILE_WRITE_ERROR = ("FILE_004", True, "Read error_message (disk full?); nothing was replaced unless it says so.")
    FILE_CHANGED = ("FILE_005", False, "Someone else changed it meanwhile: look at it, then start again.")
    FILE_EXISTS = ("FILE_006", False, "Choose another path, or say overwrite: true where a file may be replaced.")
    FILE_EDIT_MISMATCH = ("FILE_007", False, "Read the file again; old_text must occur exactly expected_count times.")
    FILE_TIMEOUT = ("FILE_008", True, "Read error_message for what was done; raise timeout_seconds or work on a part.")
    FILE_BUSY = ("FILE_009", True, "Call again: another call is changing the same name and takes long.")
    FILE_OUTCOME_UNKNOWN = ("FILE_010", False, "Look at the file: error_details say what a change that was made left.")
    TRANSFER_NOT_FOUND = ("TRANSFER_001", False, "Start again: the first chunk with an empty transfer_id.")
    TRANSFER_OFFSET_MISMATCH = ("TRANSFER_002", False, "Send the chunk that begins at the expected offset.")
    TRANSFER_BUSY = ("TRANSFER_003", True, "Wait until the other request ends; it may be one that was cut.")
    TRANSFER_OVER = ("TRANSFER_004", False, "Open another with open_transfer; stat_transfer says how this one ended.")
    TRANSFER_MISMATCH = ("TRANSFER_005", False, "Look at what you send; stat_transfer says what is kept of it.")
    TRANSFER_STALLED = ("TRANSFER_006", True, "Go on at the offset that HEAD or stat_transfer tells.")
    TRANSFER_UNAVAILABLE = ("TRANSFER_007", False, "Use download_file or upload_file: there is no HTTP here.")
    PROC_NOT_FOUND = ("PROC_001", False, "Look with get_process_list; the process may have ended.")
    PROC_ACCESS_DENIED = ("PROC_002", False, "Only processes that this session started can be signalled.")
    CALL_CANCELLED = ("CALL_001", False, "Look at what was done, then call again: nobody waited for the end of it.")
    INVALID_ARGUMENTS = ("ARG_001", False, "Correct the arguments that error_message names, then call again.")
    AUDIT_UNAVAILABLE = (
        "AUDIT_001",
        True,
        "Nothing was done. The operator must make the audit log writable; ending and deleting work meanwhile.",
    )
    SYSTEM_SHORTAGE = ("SYS_001", True, "End what you no longer need or wait, then call again; or tell the operator.")
    SYSTEM_BUSY = ("SYS_002", True, "Call again after retry_after_s; read your answers, or ask for smaller parts.")
    SYSTEM_INTERNAL_ERROR = ("SYS_999", False, "Give the incident id to the operator; the error log has the details.")

    def __init__(self, code: str, retryable: bool, what_to_do: str) -> None:  # noqa: FBT001  rows, not calls
        self.code = code
        self.retryable = retryable
        self.what_to_do = what_to_do


class BrokerError(Exception):
    """A failure that the broker itself decides on, with its row.

    Args:
        partial: fields of the tool's result that are known all the same, by their names on the wire.
        details: what a program can use: limits, values, offsets.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, partial: Mapping[str, object] | None = None, **details: object
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.partial = partial or {}
        self.details = details


@attrs.frozen(kw_only=True)
class Failure:
    """A failed call as its client is told of it."""

    code: ErrorCode
    message: str
    details: Mapping[str, object] = attrs.field(factory=lambda: MappingProxyType({}))
    partial: Mapping[str, object] = attrs.field(factory=lambda: MappingProxyType({}))
    passing: bool = False
    """Only this one attempt failed: the same call may succeed, whatever the row says of the code."""

    @property
    def retryable(self) -> bool:
        """Tell whether the same call, unchanged, may succeed later."""
        return self.code.retryable or self.passing

    def to_structured(self) -> dict[str, object]:
        """The wire form; a partial result never overrides what says that it failed."""
        partial = {name: json_value(value) for name, value in self.partial.items()}
        return partial | {
            "success": False,
            "error_code": self.code.code,
            "error_name": self.code.name,
            "error_message": safe_text(self.message),
            "error_details": {"what_to_do": TRY_AGAIN if self.passing else self.code.what_to_do}
            | _json_object(self.details),
            "retryable": self.retryable,
        }


def _json_object(details: Mapping[str, object]) -> dict[str, object]:
    return {name: json_value(value) for name, value in details.items()}
