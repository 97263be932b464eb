"""What ends by itself goes into the audit too: commands that outlived their call, and sessions with what they ended."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker.audit import Audit, Event, EventType, redact_arguments
from broker.job import Job
from broker.session import EndReason
from broker.supervisor import SessionEnd
from sandbox.cgroup_values import CommandUsage
from sandbox.command import Exited, Signalled, TimedOut

USED = tuple(field.name for field in attrs.fields(CommandUsage))
"""What a cgroup says of a command, by the names of results and records."""
_ENDS = MappingProxyType(
    {
        EndReason.EXPIRED: EventType.SESSION_EXPIRED,
        EndReason.FAILED: EventType.SESSION_FAILED,
        EndReason.LOST: EventType.SESSION_FAILED,
    }
)


@attrs.define(eq=False)
class Records:
    """Writes ends down. Between the end of a command and that of its session it remembers which ended so."""

    _audit: Audit
    _cut_short: dict[tuple[str, str], list[str]] = attrs.field(factory=dict, init=False)

    def job_ended(self, job: Job) -> None:
        """A command ended. Where a call waits for it, that call's own record says how."""
        origin = job.origin
        if (job.detached and job.cancelled) or origin.session_over():
            self._cut_short.setdefault((origin.principal, origin.session_id), []).append(job.id)
        if job.detached:
            self._audit.end(
                Event(
                    session_id=origin.session_id,
                    tool_name="execute_command",
                    arguments=redact_arguments({"argv": list(job.argv)}),
                    principal=origin.principal,
                    client=origin.client,
                    request_id=origin.request_id,
                    duration_ms=job.duration_ms,
                    details={"command_id": job.id, "output_bytes": job.spill.said, **recorded(job.used)},
                    **_how(job),
                )
            )

    def session_ended(self, end: SessionEnd) -> None:
        """A session is gone: say why, and which commands it ended. `kill_session` is also recorded by its own call."""
        event_type = _ENDS.get(end.reason, EventType.SESSION_CLOSED)
        failed = event_type is EventType.SESSION_FAILED
        commands = self._cut_short.pop((end.principal, end.session_id), [])
        self._audit.end(
            Event(
                event_type=event_type,
                session_id=end.session_id,
                principal=end.principal,
                details={"reason": end.reason.value, "commands_ended": commands},
                error=f"the session ended because {end.reason.value}" if failed else None,
                exception=end.crash,
            )
        )


def recorded(used: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of a command's use of the machine: what is known, and a kill only where there was one."""
    return {name: value for name in USED if (value := used.get(name)) is not None and value is not False}


def _how(job: Job) -> dict[str, Any]:
    """What an end record says of a command."""
    failed = {"event_type": EventType.COMMAND_FAILED}
    match job.ended.how if job.ended else None:
        case Exited(code=code):
            return {"event_type": EventType.COMMAND_COMPLETED, "exit_code": code}
        case Signalled(signal=number):
            by = f"killed: {job.used['killed_by']}" if job.used.get("killed_by") else f"signal {number} ended it"
            return {**failed, "error": by, "error_code": "CMD_003"}
        case TimedOut(after_s=after_s):
            return {**failed, "error": f"it was ended after {after_s:g} s", "error_code": "CMD_002"}
    if job.failure is not None:
        return {**failed, "error": str(job.failure), "exception": job.failure}
    return {**failed, "error": "it ended with its session", "error_code": "SESSION_005"}
