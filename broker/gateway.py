"""One request's journey: tool, arguments, session, decision, begin record, the work, end record.

Owns that order and nothing else: the tools do the work, `decisions.py` asks the policy, `failures.py` has the codes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

import attrs

from broker.audit.audit import Audit, Event, EventType, ToolEvents, events_of
from broker.audit.freeing import frees
from broker.audit.redact import redact_arguments, redact_command
from broker.calls import Answer, Call, OutputFace
from broker.contract.encode import encode
from broker.contract.errors import ErrorCode, Failure
from broker.contract.table import Request, find_tool
from broker.decisions import Denied, decide, require_end
from broker.records import CANCELLED, USED, recorded, told_and_recorded
from broker.scope import Host, Scope, Step
from broker.session.commands import CommandNotFound, SessionCommand
from broker.session.outputs import OutputName, faces_of, parse_uri
from broker.session.resources import Belongings
from broker.session.session import Session, SessionClosed
from broker.session.supervisor import SessionExpired, SessionNotFound
from broker.tools import changes as changetools
from broker.tools import commands as jobtools
from broker.tools import files as filetools
from broker.tools import output as outputtools
from broker.tools import sessions as tools
from broker.tools import transfers as transfertools
from broker.tools import trees as treetools
from sandbox.files.errors import NotFound

STEPS: Mapping[type, Step] = MappingProxyType(
    {
        **tools.STEPS,
        **filetools.STEPS,
        **treetools.STEPS,
        **changetools.STEPS,
        **jobtools.STEPS,
        **outputtools.STEPS,
        **transfertools.STEPS,
    }
)


class _CallFailed(Exception):
    """Carries what the client is told from where it is recorded to where it is answered."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code.name)
        self.failure = failure


@attrs.define(eq=False)
class Gateway:
    """Answers calls; the endpoint's `Handler`."""

    _host: Host
    _audit: Audit

    async def handle(self, call: Call) -> Answer:
        """Answer *call*. Raises nothing but Cancelled, and the end record is written then too."""
        record = _Record(self._audit, call, events_of(call.tool))
        try:
            with record:
                result = await self._journey(call, record)
                return Answer(structured=encode(result), is_error=False)
        except _CallFailed as failed:
            _let_go(failed)
            return Answer(structured=failed.failure.to_structured(), is_error=True)

    async def _journey(self, call: Call, record: _Record) -> attrs.AttrsInstance:
        request: Any = find_tool(call.tool).decode(call.arguments)
        step = STEPS[type(request)]
        session = self._session_of(call.principal, request)
        allow = decide(self._host, session, request)
        await record.begin(allow.rule, owed=frees(request))
        scope = Scope(
            host=self._host,
            principal=call.principal,
            session=session,
            client=call.client,
            request_id=call.request_id,
            report=call.report,
            reserve=call.reserve,
            base_url=call.base_url and (self._host.desk.public_url or call.base_url),
        )
        try:
            if step.inside and session is not None:
                result = await session.call(step.perform, scope, request, allow.subject)
            else:
                result = await step.perform(scope, request, allow.subject)
        except NotFound as missing:
            require_end(self._host, missing)
            raise
        record.result = result
        return result

    def outputs(self, principal: str) -> tuple[OutputFace, ...]:
        """Every output of every command that *principal* can read."""
        return tuple(
            face for session in self._host.supervisor.of(principal) for face in faces_of(session, redact_command)
        )

    async def follow(self, principal: str, uri: str, seen: int) -> int | None:
        """Wait for more of an output; see `broker.calls.Handler`."""
        name = parse_uri(uri)
        command = self._command_of(principal, name)
        await command.spill.wait_more(name.view, seen)
        return command.spill.total(name.view) if command.running or command.spill.total(name.view) > seen else None

    def _command_of(self, principal: str, name: OutputName) -> SessionCommand:
        try:
            return self._host.supervisor.get(principal, name.session_id).own.commands.find(name.command_id)
        except (SessionNotFound, SessionExpired, SessionClosed, CommandNotFound) as error:
            raise LookupError(str(error)) from error

    def _session_of(self, principal: str, request: Request) -> Session[Belongings] | None:
        session_id = getattr(request, "session_id", None)
        return None if session_id is None else self._host.supervisor.get(principal, session_id)


class _Record:
    """The audit of one call. Whatever leaves its `with` block is recorded: a result, a failure, a cancellation.

    A failure leaves it as `_CallFailed`: expected or not, the client is told what `failures.py` says and the log knows
    the rest under the same incident id.
    """

    def __init__(self, audit: Audit, call: Call, events: ToolEvents) -> None:
        self.result: attrs.AttrsInstance | None = None
        self._audit = audit
        self._events = events
        self._started_s = time.monotonic()
        self._begun = False
        session_id = call.arguments.get("session_id") or call.arguments.get("id")
        self._facts: dict[str, Any] = {
            "session_id": session_id if isinstance(session_id, str) else None,
            "tool_name": call.tool,
            "arguments": redact_arguments(call.arguments),
            "request_id": call.request_id,
            "principal": call.principal,
            "client": call.client,
        }

    async def begin(self, rule: str, *, owed: bool) -> None:
        """Record what is about to happen, and the rule that allows it; *owed*: it happens without its record, too.

        Raises:
            AuditUnavailable: it is not recorded; never if it may be owed.
        """
        self._facts["rule"] = rule
        event = Event(event_type=self._events.begun, **self._facts)
        if owed:
            self._audit.end(event)
        else:
            await self._audit.begin(event)
        self._begun = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            going_on = getattr(self.result, "running", False)  # then its end is recorded when it comes
            self._end(EventType.TOOL_COMPLETED if going_on else self._events.completed, **_facts_of(self.result))
        elif isinstance(error, Exception):
            raise _CallFailed(self._failed(error)) from error
        else:
            self._end(self._events.failed, error=CANCELLED, error_code=ErrorCode.CALL_CANCELLED.code)

    def _failed(self, error: Exception) -> Failure:
        failure, facts = told_and_recorded(error)
        self._end(
            self._events.failed,
            **({"rule": error.rule} if isinstance(error, Denied) else {}),
            **facts,
            **_details_of(failure.partial.get),
        )
        return failure

    def _end(self, event_type: EventType, **facts: Any) -> None:
        duration_ms = round((time.monotonic() - self._started_s) * 1000)
        record = self._audit.end if self._begun else self._audit.refuse
        record(Event(**{**self._facts, "event_type": event_type, "duration_ms": duration_ms, **facts}))


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that *error* and those behind it have gone through.

    They hold each other until cycles are collected, and with them what the client has sent, megabytes of it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


_RECORDED = MappingProxyType(
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


_DETAILS = ("command_id", "commands_ended", "transfer_id")
"""Fields of results that go into the details of an end record, unless they are empty."""


def _facts_of(result: attrs.AttrsInstance | None) -> dict[str, object]:
    facts = {field: value for name, field in _RECORDED.items() if (value := getattr(result, name, None)) is not None}
    return facts | _details_of(lambda name: getattr(result, name, None))


def _details_of(field: Callable[[str], object]) -> dict[str, object]:
    details = {name: value for name in _DETAILS if (value := field(name))} | recorded({n: field(n) for n in USED})
    return {"details": details} if details else {}
