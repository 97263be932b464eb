"""One request's journey: tool, arguments, session, decision, begin record, the work, end record.

Owns that order and nothing else: the tools do the work, `decisions.py` asks the policy, `failures.py` has the codes.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from broker.audit.audit import Audit, Event, EventType, ToolEvents
from broker.audit.freeing import frees
from broker.audit.redact import redact_arguments, redact_command
from broker.calls import Answer, Call, OutputResource
from broker.contract.encode import encode
from broker.contract.table import TOOLS, Request, find_tool
from broker.decisions import decide, require_end
from broker.records import Record, RecordedFailure
from broker.scope import Host, Scope, Step
from broker.session.commands import CommandNotFound, SessionCommand
from broker.session.outputs import OutputName, outputs_of, parse_uri
from broker.session.resources import SessionResources
from broker.session.session import Session, SessionClosed
from broker.session.supervisor import SessionExpired, SessionNotFound
from broker.tools import changes, commands, files, output, sessions, transfers, trees
from sandbox.files.errors import NotFound

STEPS: Mapping[type[Request], Step] = MappingProxyType(
    {
        step.request: step
        for family in (sessions, files, trees, changes, commands, output, transfers)
        for step in family.STEPS
    }
)
"""How each request is performed; `broker/contract/table.py` has what its tool is for a client."""


def events_of(tool_name: str) -> ToolEvents:
    """Return the event types of a tool; also of one that does not exist, whose call is recorded as well."""
    tool = TOOLS.get(tool_name)
    if tool is None:
        return ToolEvents()
    step = STEPS[tool.request]
    return ToolEvents(EventType[step.completed], EventType[step.failed], EventType[step.begun])


@attrs.define(eq=False)
class Gateway:
    """Answers calls; the endpoint's `Handler`."""

    _host: Host
    _audit: Audit

    async def handle(self, call: Call) -> Answer:
        """Answer *call*. Raises nothing but Cancelled, and the end record is written then too."""
        try:
            with self._record_of(call) as record:
                result = await self._journey(call, record)
                structured = encode(result)
                record.note_result(result)
                return Answer(structured=structured, is_error=False)
        except RecordedFailure as failed:
            _let_go(failed)
            return Answer(structured=failed.failure.to_structured(), is_error=True)

    def _record_of(self, call: Call) -> Record:
        events = events_of(call.tool)
        session_id = call.arguments.get("session_id") or call.arguments.get("id")
        begun = Event(
            event_type=events.begun,
            session_id=session_id if isinstance(session_id, str) else None,
            tool_name=call.tool,
            arguments=redact_arguments(call.arguments),
            request_id=call.request_id,
            principal=call.principal,
            client=call.client,
        )
        return Record(self._audit, begun, completed=events.completed, failed=events.failed)

    async def _journey(self, call: Call, record: Record) -> attrs.AttrsInstance:
        request: Any = find_tool(call.tool).decode(call.arguments)
        step = STEPS[type(request)]
        session = self._session_of(call.principal, request)
        allow = decide(self._host, session, request, step.paths)
        record.note(rule=allow.rule)
        await record.begin(owed=frees(request))
        scope = Scope(
            host=self._host,
            principal=call.principal,
            session=session,
            client=call.client,
            request_id=call.request_id,
            report=call.report,
            reserve=call.reserve,
            base_url=call.base_url and (self._host.transfer_registry.settings.public_url.rstrip("/") or call.base_url),
        )
        try:
            if step.inside and session is not None:
                return await session.call(step.perform, scope, request, allow.subject)
            return await step.perform(scope, request, allow.subject)
        except NotFound as missing:
            require_end(self._host, missing)
            raise

    def outputs(self, principal: str) -> tuple[OutputResource, ...]:
        """List every output of every command that *principal* can read."""
        return tuple(
            output for session in self._host.supervisor.of(principal) for output in outputs_of(session, redact_command)
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

    def _session_of(self, principal: str, request: Request) -> Session[SessionResources] | None:
        session_id = getattr(request, "session_id", None)
        return None if session_id is None else self._host.supervisor.get(principal, session_id)


def _let_go(error: BaseException | None) -> None:
    """Empty the frames that *error* and those behind it have gone through.

    They hold each other until cycles are collected, and with them what the client has sent, megabytes of it.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
