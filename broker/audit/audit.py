"""The audit: what happened, as one JSON line per event, before it happens where it has an effect.

Owns the two logs, all events and failures only. `begin` refuses (fail closed) what cannot be written down; `end` and
`refuse` never raise, and what they could not write is owed: it is written first as soon as the log works again, and
until then every `begin` is refused. `end` is also for the begin of what only stops or frees something, which needs no
log. Knows no tool and no policy; the gateway says what to record. A thread does the writing (`writer.py`).

Lines are ASCII: newlines, control and bidi characters of an argument are escapes, so one event is one line for every
reader. Values are cut at `redact.VALUE_CHARACTERS`, errors at ERROR_CHARACTERS, with their size.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import attrs

from broker.audit.events import Event, EventType, ToolEvents
from broker.audit.logfile import AuditUnavailable, Hooks, Keeping, LogFile
from broker.audit.redact import hide_secrets, redact_arguments, redact_text
from broker.audit.refusals import Refusals
from broker.audit.run import Note, RunFile, run_path, take_lost
from broker.audit.sync import Syncer
from broker.audit.writer import CLOSE_S, Lines, Writer, uptime_ms
from broker.contract.encode import json_value, utc_text

__all__ = [
    "Audit",
    "AuditSettings",
    "AuditUnavailable",
    "Clocks",
    "Event",
    "EventType",
    "ToolEvents",
    "open_audit",
    "redact_arguments",
]

log = logging.getLogger("broker.audit")

RUN_BYTES = 4
"""Of the id of a run: enough to tell those apart that share a log."""
_ENCODER = json.JSONEncoder(separators=(", ", ": "), allow_nan=False, default=json_value)
"""For what a record usually is; `json_value` is for everything, and takes longer than all the rest of a record."""
LABEL_CHARACTERS = 256
"""Of a name that a client chose: tool, session, request, client."""
ERROR_CHARACTERS = 2048
TRACEBACK_CHARACTERS = 16_384


@attrs.frozen(kw_only=True)
class AuditSettings:
    """Where the logs are, and how much of each is kept; see `logfile.Keeping`."""

    audit_log: Path
    error_log: Path = attrs.field()
    max_bytes: int = attrs.field(validator=attrs.validators.ge(0))
    backup_count: int = attrs.field(validator=attrs.validators.ge(0))
    keep_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    most_backups: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    @error_log.validator
    def _check_error_log(self, _: object, value: Path) -> None:
        if value == self.audit_log:
            raise ValueError(f"error_log and audit_log must differ, both are {value}")

    @property
    def keeping(self) -> Keeping:
        """How many of the rotated files are kept."""
        return Keeping(
            max_bytes=self.max_bytes,
            backup_count=self.backup_count,
            keep_s=self.keep_s,
            most_backups=self.most_backups,
        )


@attrs.frozen(kw_only=True)
class Clocks:
    """`wall`: seconds since the epoch, which may be set back. `uptime_ms`: since the machine started, which may not."""

    wall: Callable[[], float] = time.time
    uptime_ms: Callable[[], int] = uptime_ms
    interval: Callable[[], float] = time.monotonic
    """Of the counts of refusals, in seconds."""


def _tell_log(message: str) -> None:
    log.error("audit: %s", message)


@contextmanager
def open_audit(
    settings: AuditSettings, *, clocks: Clocks | None = None, complain: Callable[[str], None] = _tell_log
) -> Iterator[Audit]:
    """Both logs, open, and their thread; on leaving, what is owed is written if it can be, in bounded time.

    Args:
        settings: where, and how much.
        clocks: those of the machine, if not given.
        complain: told, once each time, that a log stopped working, and that it works again.

    Raises:
        AuditUnavailable: a log cannot be opened; its `path` says which.
    """
    clocks = clocks or Clocks()
    run_id = secrets.token_hex(RUN_BYTES)
    note = Note(run=run_id, pid=os.getpid(), started=_stamp(clocks.wall()))
    run = RunFile(run_path(settings.audit_log, run_id), note)
    refusals = Refusals(clocks.interval)
    dropped: list[Event] = []
    syncer = Syncer(complain)
    hooks = Hooks(complain=complain, on_write=syncer.mark, on_drop=_noting(dropped, complain), make_room=run.give)
    events, errors = (LogFile(path, settings.keeping, hooks) for path in (settings.audit_log, settings.error_log))
    with ExitStack() as stack:
        stack.callback(syncer.close, CLOSE_S)
        _open_both(events, errors)
        _make(run, syncer, complain)
        writer = Writer(
            events=events,
            errors=errors,
            run=run,
            run_id=run_id,
            complain=complain,
            restored=lambda why, owed, lost: lines_of(_restored(why, owed, lost), clocks),
        )
        audit = Audit(writer, clocks, refusals, dropped)
        stack.callback(audit.close)
        audit.start()
        for lost in take_lost(settings.audit_log):
            audit.end(_lost(lost))
        yield audit


def _open_both(events: LogFile, errors: LogFile) -> None:
    events.open()
    try:
        errors.open()
    except AuditUnavailable:
        events.close()
        raise


def _make(run: RunFile, syncer: Syncer, complain: Callable[[str], None]) -> None:
    try:
        syncer.mark(run.make())
    except OSError as error:
        complain(
            f"{run.path} cannot be made ({error.strerror}): no room is kept free for the records of what ends sessions "
            "on a full disk, and the next start cannot say whether this broker stopped as it should"
        )


@attrs.define(eq=False)
class Audit:
    """The audit as the rest of the broker records through it; its methods are for the trio thread alone."""

    _writer: Writer
    _clocks: Clocks
    _refusals: Refusals
    _dropped: list[Event]

    @property
    def broken(self) -> bool:
        """Whether the last attempt to write failed, or takes too long; a `begin` tries again."""
        return self._writer.broken

    @property
    def run_id(self) -> str:
        """Of this run of the broker, as its records have it."""
        return self._writer.run_id

    def start(self) -> None:
        """Let the writer ask for what is due without a call."""
        self._writer.on_idle = self._write_due

    async def begin(self, event: Event) -> None:
        """Record what is about to happen, or a refusal (a failed event): nothing is owed for what never began.

        Raises:
            AuditUnavailable: it is not recorded, so it must not happen.
        Cancellation: it is not recorded, unless it was just being written.
        """
        await self._writer.require(lines_of(event, self._clocks))

    def end(self, event: Event) -> None:
        """Record what happened, or what stops something. Never raises: what cannot be written is owed."""
        self._writer.owe(lines_of(event, self._clocks))

    def refuse(self, event: Event) -> None:
        """Record that a caller was refused; of many times, how many. Never raises, as `end`."""
        if self._refusals.in_full(event):
            self.end(attrs.evolve(event, arguments=event.arguments and event.arguments.shortened()))
        else:
            self._writer.nudge()

    def settle(self) -> None:
        """Write what is owed, as far as it can be."""
        self._writer.settle()

    def reopen(self) -> None:
        """Open the files at the paths anew (SIGHUP). If one cannot be opened, calls are refused until it can."""
        self._writer.reopen()

    def close(self) -> None:
        """Record what is counted, write what is owed, end the thread; in bounded time."""
        for event in self._refusals.due(all_of_them=True):
            self.end(event)
        self._writer.close()

    def _write_due(self) -> float | None:
        """For the writer's thread: record counts that are complete and files that had to go; seconds to the next."""
        for event in self._refusals.due():
            self._writer.owe_here(lines_of(event, self._clocks))
        while self._dropped:  # to write one may rotate, and let another file go
            self._writer.owe_here(lines_of(self._dropped.pop(0), self._clocks))
        return self._refusals.next_s()


def lines_of(event: Event, clocks: Clocks) -> Lines:
    """The record of *event*, but for what the writer adds."""
    record = _record(event, clocks)
    error = _line(record | _traceback_of(event)) if event.failed else None
    return Lines(_line(record), error)


def _record(event: Event, clocks: Clocks) -> dict[str, object]:
    fields: dict[str, object] = {
        "timestamp": _stamp(clocks.wall()),
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
        "uptime_ms": clocks.uptime_ms(),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _stamp(epoch_s: float) -> str:
    return utc_text(datetime.fromtimestamp(epoch_s, UTC))


def _restored(why: str, owed: int, lost: int) -> Event:
    return Event(
        event_type=EventType.AUDIT_RESTORED,
        error=f"records could not be written ({why}): {owed} were owed and are written now, {lost} are lost",
        error_code="AUDIT_001",
        details={"owed": owed, "lost": lost},
    )


def _lost(note: Note) -> Event:
    return Event(event_type=EventType.BROKER_LOST, details=attrs.asdict(note))


def _noting(dropped: list[Event], complain: Callable[[str], None]) -> Callable[[Path, os.stat_result], None]:
    """Note files that had to go before their time, to be recorded when the writer is between two records."""

    def note(path: Path, found: os.stat_result) -> None:
        complain(f"{path} was deleted before logging.keep_days are over: the log has reached logging.max_total_mb")
        details = {"file": path.name, "bytes": found.st_size, "last_written": _stamp(found.st_mtime)}
        dropped.append(Event(event_type=EventType.LOG_DROPPED, details=details))

    return note


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
    try:
        text = _ENCODER.encode(record)
    except (TypeError, ValueError):  # keys that are no names, numbers that are none
        text = ""
    if not text or r"\ud" in text:  # a lone surrogate, perhaps
        text = _ENCODER.encode(json_value(record))
    # ASCII by json, except that DEL, the one control character above 31, stays as it is.
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"
