"""What ends by itself goes into the audit too: commands that outlived their call, sessions, uploads that were given up.

What somebody asked for is no failure and stays out of the error log: the end of a session, and what ends with it.
Whatever is in that log has a code.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker.audit.audit import Audit, Event, EventType, redact_arguments
from broker.contract.errors import ErrorCode, Failure
from broker.contract.names import shown_path
from broker.failures import failure_of
from broker.session.aftermath import Appeared
from broker.session.commands import SessionCommand
from broker.session.session import EndReason
from broker.session.supervisor import SessionEnd
from sandbox.cgroup.usage import CommandUsage
from sandbox.commands.run import Exited, Signalled, TimedOut
from transfers.part import Cause, Discarded

USED = tuple(field.name for field in attrs.fields(CommandUsage))
"""What a cgroup says of a command, by the names of results and records."""
SHOWN_NAMES = 50
"""Of one record; `count` has them all."""
CANCELLED = "cancelled: the client left, or the broker stops"
_ENDS = MappingProxyType(
    {
        EndReason.EXPIRED: EventType.SESSION_EXPIRED,
        EndReason.FAILED: EventType.SESSION_FAILED,
        EndReason.LOST: EventType.SESSION_FAILED,
    }
)
_DISCARDS: Mapping[Cause, ErrorCode] = MappingProxyType(
    {
        Cause.LOST: ErrorCode.FILE_WRITE_ERROR,
        Cause.IN_DOUBT: ErrorCode.FILE_OUTCOME_UNKNOWN,
        Cause.MISMATCH: ErrorCode.TRANSFER_MISMATCH,
        Cause.IDLE: ErrorCode.TRANSFER_STALLED,
        Cause.EXPIRED: ErrorCode.TRANSFER_OVER,
    }
)
"""Of discards that are failures by themselves. The others were asked for, or follow a failure that has its record."""


@attrs.define(eq=False)
class Records:
    """Writes ends down. Between the end of a command and that of its session it remembers which ended so."""

    _audit: Audit
    _cut_short: dict[tuple[str, str], list[str]] = attrs.field(factory=dict, init=False)

    def command_ended(self, command: SessionCommand) -> None:
        """A command ended. Where a call waits for it, that call's own record says how."""
        origin = command.origin
        if (command.detached and command.cancelled) or origin.session_over():
            self._cut_short.setdefault((origin.principal, origin.session_id), []).append(command.id)
        if command.detached:
            self._audit.end(
                Event(
                    session_id=origin.session_id,
                    tool_name="execute_command",
                    arguments=redact_arguments({"argv": list(command.argv)}),
                    principal=origin.principal,
                    client=origin.client,
                    request_id=origin.request_id,
                    duration_ms=command.duration_ms,
                    details={"command_id": command.id, "output_bytes": command.spill.said, **recorded(command.used)},
                    **_how(command),
                )
            )

    def closed_names_appeared(self, command: SessionCommand, appeared: Appeared) -> None:
        """Names that the rules close were found open; *command* is the command that ended last before."""
        origin = command.origin
        self._audit.end(
            Event(
                event_type=EventType.CLOSED_NAMES_APPEARED,
                session_id=origin.session_id,
                principal=origin.principal,
                client=origin.client,
                details={
                    "command_id": command.id,
                    "count": len(appeared.paths),
                    "paths": [shown_path(path) for path in appeared.paths[:SHOWN_NAMES]],
                    "set_aside": [shown_path(path) for path in appeared.aside[:SHOWN_NAMES]],
                    "looked_to_the_end": not appeared.stopped,
                    **({"stopped": appeared.stopped} if appeared.stopped else {}),
                },
            )
        )

    def session_ended(self, end: SessionEnd) -> None:
        """A session is gone: say why, and which commands it ended. `kill_session` is also recorded by its own call."""
        event_type = _ENDS.get(end.reason, EventType.SESSION_CLOSED)
        commands = self._cut_short.pop((end.principal, end.session_id), [])
        self._audit.end(
            Event(
                event_type=event_type,
                session_id=end.session_id,
                principal=end.principal,
                details={"reason": end.reason.value, "commands_ended": commands},
                **_why_failed(end),
            )
        )

    def upload_discarded(self, principal: str, session_id: str, discarded: Discarded) -> None:
        """An upload was given up: its bytes are gone, the destination is as it was, unless its cause says otherwise."""
        code = ErrorCode.FILE_WRITE_ERROR if discarded.leftover else _DISCARDS.get(discarded.cause)
        failed: dict[str, Any] = {} if code is None else {"error_code": code.code, "error": _discard_text(discarded)}
        self._audit.end(
            Event(
                event_type=EventType.FILE_FAILED if failed else EventType.UPLOAD_DISCARDED,
                session_id=session_id,
                tool_name="upload_file",
                principal=principal,
                data_bytes=discarded.received_bytes,
                details={
                    "transfer_id": discarded.transfer_id,
                    "path": shown_path(discarded.path),
                    "why": discarded.why,
                    "leftover": discarded.leftover,
                },
                **failed,
            )
        )


def told_and_recorded(error: Exception) -> tuple[Failure, dict[str, Any]]:
    """What the client is told of *error*, and what its record says of it: of what nobody expected the traceback."""
    incident_id = secrets.token_hex(8)
    failure = failure_of(error, incident_id)
    facts: dict[str, Any] = {"error": failure.message, "error_code": failure.code.code}
    if failure.code is ErrorCode.SYSTEM_INTERNAL_ERROR:
        facts |= {"incident_id": incident_id, "exception": error}
    return failure, facts


def _discard_text(discarded: Discarded) -> str:
    left = f"; its part file stays: {discarded.leftover}" if discarded.leftover else ""
    return f"upload to {shown_path(discarded.path)} was discarded: {discarded.why}{left}"


def _why_failed(end: SessionEnd) -> dict[str, Any]:
    """What the record of a session's end says of a failure; nothing where there was none."""
    if _ENDS.get(end.reason) is not EventType.SESSION_FAILED:
        return {}
    facts: dict[str, Any] = {"error_code": ErrorCode.SESSION_CLOSED.code}
    if end.crash is not None:
        _, facts = told_and_recorded(end.crash)
    return facts | {"error": f"the session ended because {end.reason.value}"}


def recorded(used: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of a command's use of the machine: what is known, and a kill only where there was one."""
    return {name: value for name in USED if (value := used.get(name)) is not None and value is not False}


def _how(command: SessionCommand) -> dict[str, Any]:
    """What an end record says of a command."""
    failed = {"event_type": EventType.COMMAND_FAILED}
    match command.ended.how if command.ended else None:
        case Exited(code=code):
            return {"event_type": EventType.COMMAND_COMPLETED, "exit_code": code}
        case Signalled(signal=number):
            by = (
                f"killed: {command.used['killed_by']}" if command.used.get("killed_by") else f"signal {number} ended it"
            )
            return {**failed, "error": by, "error_code": ErrorCode.CMD_KILLED.code}
        case TimedOut(after_s=after_s):
            return {**failed, "error": f"it was ended after {after_s:g} s", "error_code": ErrorCode.CMD_TIMEOUT.code}
    if command.failure is not None:
        return failed | told_and_recorded(command.failure)[1]
    return {**failed, "error": "it ended with its session", "error_code": ErrorCode.SESSION_CLOSED.code}
