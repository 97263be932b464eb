"""Begin and end records: of calls, of requests on a transfer's URL, and of what ends by itself.

`Record` is for what somebody waits for: a begin record before its first effect, an end record whatever happens. It
knows neither MCP nor HTTP. `EndRecords` is for commands that outlived their call, sessions, and uploads that were
given up.

What a client asked for does not count as a failure and stays out of the error log: the end of a session, and what ends
with it. Whatever is in that log has a code.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import attrs

from broker.audit.audit import Audit, Event, EventType, redact_arguments
from broker.contract.errors import ErrorCode, Failure
from broker.contract.names import shown_path
from broker.failures import failure_of
from broker.session.aftermath import Appeared
from broker.session.commands import SessionCommand
from broker.session.session import EndReason
from broker.session.supervisor import SessionEnd
from broker.session.urls import EarlyEnd
from sandbox.cgroup.usage import CommandUsage
from sandbox.commands.values import Exited, Signalled, TimedOut
from transfers.upload import Cause, Discarded

USED = tuple(field.name for field in attrs.fields(CommandUsage))
"""What a cgroup says of a command, by the names of results and records."""
SHOWN_NAMES = 50
"""Of one record; `count` has them all."""
CANCELLED = EarlyEnd(why="cancelled: the client left, or the broker stops", code=ErrorCode.CALL_CANCELLED)
_RESULT_FIELDS = MappingProxyType(
    {
        "exit_code": "exit_code",
        "sha256": "sha256",
        "session_id": "session_id",
        "bytes_written": "data_bytes",
        "bytes_received": "data_bytes",
        "bytes_copied": "data_bytes",
        "chunk_size": "data_bytes",
        "bytes_done": "data_bytes",
    }
)
"""Fields of results that an end record carries, and under which name."""
_RESULT_DETAILS = ("command_id", "commands_ended", "transfer_id")
"""Fields of results that go into the details of an end record, unless they are empty."""
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


class RecordedFailure(Exception):
    """Carries what the client is told from where it is recorded to where it is answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code.name)
        self.failure = failure


class Record:
    """The audit of one call or request.

    What leaves its `with` block is recorded: success, a failure, a cancellation. An Exception leaves it as
    `RecordedFailure`: expected or not, the client is told what `failure_of` says, and the log knows the rest under the
    same incident id.
    """

    def __init__(
        self, audit: Audit, begun: Event, *, completed: EventType, failed: EventType, counts_bytes: bool = False
    ) -> None:
        """Take the begin record as far as it is known; with *counts_bytes* the end record says `moved_bytes`."""
        self.moved_bytes = 0
        self.early_end: EarlyEnd | None = None
        """Why it ended early, where no exception says it."""
        self._audit = audit
        self._event = begun
        self._completed = completed
        self._failed = failed
        self._counts_bytes = counts_bytes
        self._begun = False
        self._started_s = time.monotonic()

    def note(self, *, details: Mapping[str, object] | None = None, **facts: Any) -> None:
        """Add *facts* to what its further records say, and *details* to their details."""
        if details:
            facts["details"] = {**(self._event.details or {}), **details}
        self._event = attrs.evolve(self._event, **facts)

    def note_result(self, result: attrs.AttrsInstance) -> None:
        """Add what the end record says of the *result* of a call."""
        if getattr(result, "running", False):  # then its end is recorded when it comes
            self._completed = EventType.TOOL_COMPLETED
        facts = {to: value for name, to in _RESULT_FIELDS.items() if (value := getattr(result, name, None)) is not None}
        self.note(details=_details_of(lambda name: getattr(result, name, None)), **facts)

    async def begin(self, *, owed: bool = False) -> None:
        """Record what is about to happen; *owed*: it happens without its record, too.

        Raises:
            AuditUnavailable: it is not recorded; never if it may be owed.
        """
        if owed:
            self._audit.end(self._event)
        else:
            await self._audit.begin(self._event)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            raise RecordedFailure(self._end_failed(error)) from error
        if error is not None or self.early_end is not None:
            cut = self.early_end or CANCELLED
            self._end(self._failed, error=cut.why, error_code=cut.code.code)
        else:
            self._end(self._completed)

    def _end_failed(self, error: Exception) -> Failure:
        failure, facts = told_and_recorded(error)
        if rule := failure.details.get("rule"):
            facts["rule"] = rule
        self._end(self._failed, details=_details_of(failure.partial.get), **facts)
        return failure

    def _end(self, event_type: EventType, **facts: Any) -> None:
        duration_ms = round((time.monotonic() - self._started_s) * 1000)
        if self._counts_bytes:
            facts["data_bytes"] = self.moved_bytes
        self.note(event_type=event_type, duration_ms=duration_ms, **facts)
        record = self._audit.end if self._begun else self._audit.refuse
        record(self._event)


def _details_of(field: Callable[[str], object]) -> dict[str, object]:
    return {name: value for name in _RESULT_DETAILS if (value := field(name))} | recorded({n: field(n) for n in USED})


@attrs.define(eq=False)
class EndRecords:
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
    """Return what the client is told of *error*, and what its record says: of what nobody expected the traceback."""
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
    """Return what the record of a session's end says of a failure; nothing where there was none."""
    if _ENDS.get(end.reason) is not EventType.SESSION_FAILED:
        return {}
    facts: dict[str, Any] = {"error_code": ErrorCode.SESSION_CLOSED.code}
    if end.crash is not None:
        _, facts = told_and_recorded(end.crash)
    return facts | {"error": f"the session ended because {end.reason.value}"}


def recorded(used: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command's use of the machine as recorded: what is known, and a kill only where there was one."""
    return {name: value for name in USED if (value := used.get(name)) is not None and value is not False}


def _how(command: SessionCommand) -> dict[str, Any]:
    """Return what an end record says of a command."""
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
