"""What the audit is told of calls and requests, and of what ends by itself: commands, sessions, uploads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from broker.audit.audit import Audit, AuditSettings, AuditUnavailable, Event, EventType, open_audit
from broker.audit.refusals import IN_FULL
from broker.contract.errors import BrokerError, ErrorCode
from broker.records import SHOWN_NAMES, EndRecords, Record, RecordedFailure, told_and_recorded
from broker.session.aftermath import Appeared
from broker.session.commands import CommandOrigin, SessionCommand, SessionCommands
from broker.session.session import EndReason
from broker.session.supervisor import SessionEnd
from broker.session.urls import stalled
from config.settings import OutputSettings
from sandbox.cgroup.usage import CommandUsage
from sandbox.commands.streams import Captured
from sandbox.commands.values import Ended, Exited, How, Signalled, TimedOut
from sandbox.errors import SpawnFailed
from tests.support.disks import full_after
from transfers.upload import Cause, Discarded

OF_ALL = {"timestamp", "uptime_ms", "run", "seq"}
ASKED_FOR = {Cause.CANCELLED, Cause.SESSION_ENDED, Cause.UNANSWERED}
USAGE = CommandUsage(memory_peak_bytes=None, cpu_user_ms=0, cpu_system_ms=7, oom_killed=False, killed_by=None)


@attrs.frozen(kw_only=True)
class Told:
    """What stands in the logs of an audit in this process."""

    audit: Audit
    records: EndRecords
    audit_log: Path
    error_log: Path

    def lines(self) -> list[dict[str, Any]]:
        """Every record, without what all of them have."""
        found = [json.loads(line) for line in self.audit_log.read_text().splitlines()]
        return [{name: value for name, value in record.items() if name not in OF_ALL} for record in found]

    def last_error(self) -> Mapping[str, Any]:
        found: dict[str, Any] = json.loads(self.error_log.read_text().splitlines()[-1])
        return found

    def session_ended(self, reason: EndReason = EndReason.KILLED, crash: Any = None) -> dict[str, Any]:
        """The record of the end of session "s"."""
        self.records.session_ended(SessionEnd(principal="me", session_id="s", reason=reason, crash=crash))
        return self.lines()[-1]

    def record(self, *, counts_bytes: bool = False) -> Record:
        """Of one call of write_file."""
        begun = Event(event_type=EventType.TOOL_CALLED, tool_name="write_file", details={"path": "/f"})
        done = {"completed": EventType.FILE_WRITE, "failed": EventType.FILE_FAILED}
        return Record(self.audit, begun, counts_bytes=counts_bytes, **done)

    def timed(self) -> list[dict[str, Any]]:
        """Every record; a duration is one of this test, in milliseconds, and left out."""
        found = self.lines()
        assert all(0 <= line.pop("duration_ms", 0) < 10_000 for line in found)
        return found


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    paths = {name: tmp_path / f"{name}.log" for name in ("audit_log", "error_log")}
    with open_audit(AuditSettings(**paths, max_bytes=0, backup_count=0)) as audit:
        yield Told(audit=audit, records=EndRecords(audit), **paths)


@contextmanager
def a_command(
    tmp_path: Path, *, detached: bool = True, cancelled: bool = False, session_over: bool = False
) -> Iterator[SessionCommand]:
    """A command of session "s" that is not started: its fields are what its end would have left there."""
    output = OutputSettings(inline_bytes=1024, spill_bytes=1 << 20)
    origin = CommandOrigin(
        session_id="s", principal="me", client="test 1", request_id="1", session_over=lambda: session_over
    )
    commands = SessionCommands(1, output, str(tmp_path), lambda _: None)
    command = commands.admit(("deploy", "--token", "hunter2"), origin, has_terminal=False)
    command.detached, command.cancelled = detached, cancelled
    yield command
    commands.close()


def ended(how: How, usage: CommandUsage | None = USAGE) -> Ended:
    nothing = Captured(data=b"", total_bytes=0)
    return Ended(how=how, stdout=nothing, stderr=nothing, drained=True, duration_ms=450, pid=7, usage=usage)


# --- what somebody waits for


CALLED = {"event_type": "TOOL_CALLED", "tool_name": "write_file"}


class Left(BaseException):
    """Stands for the cancellation of a call."""


@attrs.frozen(kw_only=True)
class Result:
    """A result with fields that records carry under another name, have in their details, and do not have."""

    bytes_written: int = 7
    sha256: str | None = None
    exit_code: int | None = 0
    command_id: str = "c1"
    transfer_id: str = ""
    cpu_user_ms: int | None = 3
    oom_killed: bool = False
    content: str = "x"
    running: bool = False


@attrs.frozen(kw_only=True)
class EndOnly:
    """A result of which no field is recorded."""

    success: bool


async def test_a_call_is_recorded_before_its_effect_and_at_its_end(told: Told) -> None:
    with told.record() as record:
        record.note(rule="tools", details={"offset": 3})
        await record.begin()
        begun = CALLED | {"rule": "tools", "details": {"path": "/f", "offset": 3}}
        assert told.lines() == [begun]
        record.note_result(Result())
        assert told.lines() == [begun]
    details = {"path": "/f", "offset": 3, "command_id": "c1", "cpu_user_ms": 3}
    done = {"event_type": "FILE_WRITE", "bytes": 7, "exit_code": 0, "details": details}
    assert told.lines()[1]["duration_ms"] >= 0
    assert told.timed() == [begun, begun | done]


async def test_a_call_that_answers_before_its_command_ends_has_another_event(told: Told) -> None:
    with told.record() as record:
        await record.begin()
        record.note_result(Result(running=True))
    assert told.lines()[1]["event_type"] == "TOOL_COMPLETED"


@pytest.mark.parametrize(
    ("result", "facts"),
    [
        (EndOnly(success=True), {}),
        (Result(), {"bytes": 7, "exit_code": 0, "details": {"command_id": "c1", "cpu_user_ms": 3}}),
    ],
)
async def test_a_result_adds_to_a_record_without_details_what_it_says(
    told: Told, result: attrs.AttrsInstance, facts: dict[str, Any]
) -> None:
    events = {"completed": EventType.FILE_READ, "failed": EventType.FILE_FAILED}
    with Record(told.audit, Event(event_type=EventType.TOOL_CALLED), **events) as record:
        await record.begin()
        record.note_result(result)
    assert told.timed() == [{"event_type": "TOOL_CALLED"}, {"event_type": "FILE_READ"} | facts]


async def failing(record: Record, error: BaseException, *, began: bool = True) -> None:
    """One call that raises *error*."""
    with record:
        if began:
            await record.begin()
        raise error


async def test_a_failure_is_recorded_as_the_client_is_told_of_it(told: Told) -> None:
    error = BrokerError(ErrorCode.CMD_TIMEOUT, "too long", partial={"command_id": "c2", "pid": 4}, rule="python3")
    with pytest.raises(RecordedFailure, match=r"^CMD_TIMEOUT$") as caught:
        await failing(told.record(), error)
    assert caught.value.__cause__ is error
    assert caught.value.failure.message == "too long"
    failed = {"event_type": "FILE_FAILED", "error": "too long", "error_code": "CMD_002", "rule": "python3"}
    details = {"path": "/f", "command_id": "c2"}
    assert told.timed() == [CALLED | {"details": {"path": "/f"}}, CALLED | failed | {"details": details}]


async def test_what_began_is_recorded_each_time_and_what_was_refused_is_counted(told: Told) -> None:
    for began in (True, False):
        before = len(told.lines())
        for _ in range(IN_FULL + 1):
            with pytest.raises(RecordedFailure):
                await failing(told.record(), BrokerError(ErrorCode.FILE_NOT_FOUND, "no such file"), began=began)
        assert len(told.lines()) - before == (2 * (IN_FULL + 1) if began else IN_FULL)


async def test_a_call_whose_client_left_is_recorded_and_goes_on_its_way(told: Told) -> None:
    with pytest.raises(Left):
        await failing(told.record(), Left())
    end = told.timed()[1]
    assert (end["event_type"], end["error_code"]) == ("FILE_FAILED", "CALL_001")
    assert end["error"] == "cancelled: the client left, or the broker stops"


async def test_a_request_that_ended_early_says_why_and_how_far_it_was(told: Told) -> None:
    with told.record(counts_bytes=True) as record:
        await record.begin()
        record.moved_bytes += 5
        record.early_end = stalled(20)
    end = told.timed()[1]
    assert (end["event_type"], end["error"], end["error_code"], end["bytes"]) == (
        "FILE_FAILED",
        "nothing moved for 20 s (transfers.idle_s)",
        "TRANSFER_006",
        5,
    )
    with told.record(counts_bytes=True) as record:
        await record.begin()
    assert told.timed()[3]["bytes"] == 0


async def test_what_frees_something_needs_no_log(told: Told) -> None:
    with full_after(0), pytest.raises(AuditUnavailable):
        await told.record().begin()
    with full_after(0):
        await told.record().begin(owed=True)
    told.audit.settle()
    assert [line["event_type"] for line in told.lines()] == ["TOOL_CALLED", "AUDIT_RESTORED"]


# --- commands


async def test_the_end_of_a_command_that_nobody_waits_for_has_a_whole_record(told: Told, tmp_path: Path) -> None:
    with a_command(tmp_path) as command:
        command.ended = ended(Exited(3))
        told.records.command_ended(command)
    assert told.lines() == [
        {
            "event_type": "COMMAND_COMPLETED",
            "session_id": "s",
            "tool_name": "execute_command",
            "arguments": {"argv": ["deploy", "--token", "[redacted]"]},
            "exit_code": 3,
            "duration_ms": 450,
            "request_id": "1",
            "principal": "me",
            "client": "test 1",
            "details": {"command_id": "c1", "output_bytes": 0, "cpu_user_ms": 0, "cpu_system_ms": 7},
        }
    ]
    assert told.error_log.read_text() == "", "a command that says it failed is no failure of ours"
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("how", "used", "error", "code"),
    [
        (Signalled(9), {}, "signal 9 ended it", "CMD_003"),
        (Signalled(9), {"killed_by": "limits.memory", "oom_killed": True}, "killed: limits.memory", "CMD_003"),
        (TimedOut(2.5), {}, "it was ended after 2.5 s", "CMD_002"),
        (None, {}, "it ended with its session", "SESSION_005"),
    ],
)
async def test_a_command_that_did_not_end_by_itself_says_what_ended_it(
    told: Told, tmp_path: Path, how: How | None, used: dict[str, Any], error: str, code: str
) -> None:
    with a_command(tmp_path) as command:
        command.ended = None if how is None else ended(how, attrs.evolve(USAGE, **used))
        told.records.command_ended(command)
    record = told.last_error()
    assert (record["event_type"], record["error"], record["error_code"]) == ("COMMAND_FAILED", error, code)
    assert record["details"].items() >= used.items()
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("failure", "code"), [(SpawnFailed("exec", "no such file"), "CMD_001"), (RuntimeError("a bug"), "SYS_999")]
)
async def test_a_command_that_failed_after_its_call_has_the_code_of_its_failure(
    told: Told, tmp_path: Path, failure: Exception, code: str
) -> None:
    with a_command(tmp_path) as command:
        command.failure = failure
        told.records.command_ended(command)
    record = told.last_error()
    assert record["error_code"] == code
    assert ("traceback" in record) == ("incident_id" in record) == (code == "SYS_999")
    await trio.lowlevel.checkpoint()


async def test_a_command_whose_call_waits_has_no_record_of_its_own(told: Told, tmp_path: Path) -> None:
    with a_command(tmp_path, detached=False) as command:
        command.ended = ended(Exited(0))
        told.records.command_ended(command)
    assert told.lines() == []
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("detached", "cancelled", "session_over", "named"),
    [
        pytest.param(True, True, False, True, id="it ran on until its session left"),
        pytest.param(False, True, True, True, id="its call was still waiting when the session ended"),
        pytest.param(True, False, False, False, id="it ended by itself"),
        pytest.param(False, True, False, False, id="its call left, and the session stays"),
    ],
)
async def test_the_end_of_a_session_names_the_commands_that_it_ended(
    told: Told, tmp_path: Path, *, detached: bool, cancelled: bool, session_over: bool, named: bool
) -> None:
    with a_command(tmp_path, detached=detached, cancelled=cancelled, session_over=session_over) as command:
        told.records.command_ended(command)
    assert told.session_ended()["details"] == {"reason": "it was killed", "commands_ended": ["c1"] if named else []}
    assert told.session_ended()["details"]["commands_ended"] == [], "and forgets them"
    await trio.lowlevel.checkpoint()


# --- names that the rules close


@pytest.mark.parametrize("stopped", ["", "after 100000 names"])
async def test_names_that_appeared_are_counted_and_the_first_are_named(
    told: Told, tmp_path: Path, stopped: str
) -> None:
    paths = tuple(f"/project/{number}" for number in range(SHOWN_NAMES + 1))
    with a_command(tmp_path) as command:
        told.records.closed_names_appeared(command, Appeared(paths=paths, aside=("/project/0",), stopped=stopped))
    assert told.lines() == [
        {
            "event_type": "CLOSED_NAMES_APPEARED",
            "session_id": "s",
            "principal": "me",
            "client": "test 1",
            "details": {
                "command_id": "c1",
                "count": SHOWN_NAMES + 1,
                "paths": list(paths[:SHOWN_NAMES]),
                "set_aside": ["/project/0"],
                "looked_to_the_end": not stopped,
                **({"stopped": stopped} if stopped else {}),
            },
        }
    ]
    await trio.lowlevel.checkpoint()


# --- sessions


@pytest.mark.parametrize(
    ("reason", "event_type"),
    [
        (EndReason.KILLED, "SESSION_CLOSED"),
        (EndReason.DRAINING, "SESSION_CLOSED"),
        (EndReason.EXPIRED, "SESSION_EXPIRED"),
    ],
)
def test_a_session_that_ended_as_it_should_is_no_failure(told: Told, reason: EndReason, event_type: str) -> None:
    assert told.session_ended(reason) == {
        "event_type": event_type,
        "session_id": "s",
        "principal": "me",
        "details": {"reason": reason.value, "commands_ended": []},
    }
    assert told.error_log.read_text() == ""


def test_a_session_whose_first_process_ended_is_a_failure_without_an_incident(told: Told) -> None:
    assert told.session_ended(EndReason.LOST) == {
        "event_type": "SESSION_FAILED",
        "session_id": "s",
        "principal": "me",
        "error": "the session ended because its init process ended",
        "error_code": "SESSION_005",
        "details": {"reason": "its init process ended", "commands_ended": []},
    }


def test_a_session_that_an_error_ended_is_an_incident(told: Told) -> None:
    told.session_ended(EndReason.FAILED, ExceptionGroup("a session", [RuntimeError("a bug")]))
    record = told.last_error()
    assert (record["event_type"], record["error_code"]) == ("SESSION_FAILED", "SYS_999")
    assert record["error"] == "the session ended because an internal error ended it"
    assert len(record["incident_id"]) == 16
    assert "RuntimeError: a bug" in record["traceback"]


# --- uploads


def gone(cause: Cause, leftover: str) -> Discarded:
    return Discarded(transfer_id="t", path="/f", received_bytes=1, cause=cause, why=cause.value, leftover=leftover)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("leftover", ["", "its removal was not answered in time"])
def test_an_upload_that_was_given_up_is_a_failure_unless_somebody_asked_for_it(
    told: Told, cause: Cause, leftover: str
) -> None:
    told.records.upload_discarded("me", "s", gone(cause, leftover))
    (record,) = told.lines()
    failed = bool(leftover) or cause not in ASKED_FOR
    text = f"upload to /f was discarded: {cause.value}" + (f"; its part file stays: {leftover}" if leftover else "")
    assert record.get("error") == (text if failed else None)
    assert record.pop("error_code", "FILE_004") == "FILE_004" or not leftover, "the part file stays"
    record.pop("error", None)
    assert record == {
        "event_type": "FILE_FAILED" if failed else "UPLOAD_DISCARDED",
        "session_id": "s",
        "tool_name": "upload_file",
        "principal": "me",
        "bytes": 1,
        "details": {"transfer_id": "t", "path": "/f", "why": cause.value, "leftover": leftover},
    }
    assert (told.error_log.read_text() == "") != failed


# --- failures


def test_what_was_expected_has_no_incident_and_what_was_not_has_one_that_the_client_is_told() -> None:
    failure, facts = told_and_recorded(SpawnFailed("exec", "no such file"))
    assert facts == {"error": failure.message, "error_code": "CMD_001"}
    bug = RuntimeError("a bug")
    failure, facts = told_and_recorded(bug)
    assert facts.pop("exception") is bug
    assert facts.pop("incident_id") in failure.message
    assert facts == {"error": failure.message, "error_code": "SYS_999"}
