"""The audit: what happened, as one JSON line per event, before it happens where it has an effect.

Owns the two logs, all events and failures only. `begin` refuses (fail closed) what cannot be written down; `end`
never raises, and what it could not write is owed: it is written first as soon as the log works again, and until then
every `begin` is refused. Knows no tool and no policy; the gateway says what to record.

Lines are ASCII: newlines, control and bidi characters of an argument are escapes, so one event is one line for every
reader. Values are cut at `redact.VALUE_CHARACTERS`, errors at ERROR_CHARACTERS, with their size.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import attrs

from broker.auditlog import AuditUnavailable, LogFile
from broker.events import Event, EventType, ToolEvents, events_of
from broker.redact import hide_secrets, redact_arguments, redact_text
from broker.wire import json_value

__all__ = [
    "Audit",
    "AuditSettings",
    "AuditUnavailable",
    "Event",
    "EventType",
    "ToolEvents",
    "events_of",
    "open_audit",
    "redact_arguments",
]

LABEL_CHARACTERS = 256
"""Of a name that a client chose: tool, session, request, client."""
ERROR_CHARACTERS = 2048
TRACEBACK_CHARACTERS = 16_384


@attrs.frozen(kw_only=True)
class AuditSettings:
    """`max_bytes` of a log before it is rotated (0: never), `backup_count` old ones kept (0: none)."""

    audit_log: Path
    error_log: Path = attrs.field()
    max_bytes: int = attrs.field(validator=attrs.validators.ge(0))
    backup_count: int = attrs.field(validator=attrs.validators.ge(0))

    @error_log.validator
    def _check_error_log(self, _: object, value: Path) -> None:
        if value == self.audit_log:
            raise ValueError(f"error_log and audit_log must differ, both are {value}")


def _tell_stderr(message: str) -> None:
    with suppress(OSError, ValueError):  # broken or closed: there is nobody left to tell
        sys.stderr.write(f"audit: {message}\n")


@contextmanager
def open_audit(
    settings: AuditSettings, *, clock: Callable[[], float] = time.time, complain: Callable[[str], None] = _tell_stderr
) -> Iterator[Audit]:
    """Both logs, open; on leaving, what is owed is written if it can be.

    Args:
        settings: where, and how much.
        clock: seconds since the epoch.
        complain: told, once each time, that a log stopped working, and that it works again.

    Raises:
        AuditUnavailable: a log cannot be opened; its `path` says which.
    """
    events, errors = (
        LogFile(path, settings.max_bytes, settings.backup_count, complain)
        for path in (settings.audit_log, settings.error_log)
    )
    audit = Audit(events, errors, clock, complain)
    try:
        events.open()
        errors.open()
        yield audit
        audit.settle()
    finally:
        events.close()
        errors.close()


@attrs.define(eq=False)
class Audit:
    """The one writer of the audit; all methods are synchronous and for the trio thread alone."""

    _events: LogFile
    _errors: LogFile
    _clock: Callable[[], float]
    _complain: Callable[[str], None]
    _broken: bool = attrs.field(default=False, init=False)

    @property
    def broken(self) -> bool:
        """Whether the last attempt to write failed; a `begin` tries again."""
        return self._broken

    def begin(self, event: Event) -> None:
        """Record what is about to happen, or a refusal (a failed event): nothing is owed for what never began.

        Raises:
            AuditUnavailable: it is not recorded, so it must not happen.
        """
        record = self._record(event)
        try:
            self._errors.settle()
            self._events.append(_line(record))
            if event.failed:
                self._errors.append(_line(record | _traceback_of(event)))
        except AuditUnavailable as error:
            self._note(error)
            raise
        self._note(None)

    def end(self, event: Event) -> None:
        """Record what happened. Never raises: what cannot be written is owed."""
        record = self._record(event)
        self._events.owe(_line(record))
        if event.failed:
            self._errors.owe(_line(record | _traceback_of(event)))
        self.settle()

    def settle(self) -> None:
        """Write what is owed, as far as it can be."""
        trouble = None
        for log in (self._events, self._errors):
            try:
                log.settle()
            except AuditUnavailable as error:
                trouble = error
        self._note(trouble)

    def reopen(self) -> None:
        """Open the files at the paths anew (SIGHUP). If one cannot be opened, calls are refused until it can."""
        trouble = None
        for log in (self._events, self._errors):
            try:
                log.open()
            except AuditUnavailable as error:
                trouble = error
        self._note(trouble)

    def _note(self, trouble: AuditUnavailable | None) -> None:
        if trouble is not None and not self._broken:
            self._complain(f"{trouble.path}: {trouble.why}; calls are refused until it can be written")
        if trouble is None and self._broken:
            lost = self._events.lost_lines + self._errors.lost_lines
            self._complain(f"{self._events.path}: can be written again; records lost since the start: {lost}")
        self._broken = trouble is not None

    def _record(self, event: Event) -> dict[str, object]:
        now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        fields: dict[str, object] = {
            "timestamp": now.replace("+00:00", "Z"),
            "event_type": event.event_type,
            "session_id": _label(event.session_id),
            "tool_name": _label(event.tool_name),
            "arguments": event.arguments and event.arguments.shown,
            "exit_code": event.exit_code,
            "duration_ms": event.duration_ms,
            "error": event.error and redact_text(_scrubbed(event, event.error), ERROR_CHARACTERS),
            "error_code": event.error_code,
            "request_id": _label(event.request_id),
            "principal": _label(event.principal),
            "client": _label(event.client),
            "rule": event.rule,
            "bytes": event.data_bytes,
            "sha256": event.sha256,
            "details": event.details,
            "incident_id": event.incident_id,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _label(name: str | None) -> str | None:
    return name if name is None else redact_text(name, LABEL_CHARACTERS)


def _scrubbed(event: Event, text: str) -> str:
    return event.arguments.scrub(text) if event.arguments else text


def _traceback_of(event: Event) -> dict[str, object]:
    if event.exception is None:
        return {}
    text = "".join(traceback.format_exception(event.exception))
    # Its end says what went wrong, so a long one loses its beginning; hidden first, cut then.
    return {"traceback": hide_secrets(_scrubbed(event, text))[-TRACEBACK_CHARACTERS:]}


def _line(record: Mapping[str, object]) -> bytes:
    text = json.dumps(json_value(record), separators=(", ", ": "))
    # ASCII by json, except that DEL, the one control character above 31, stays as it is.
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"
