"""The audit: before the effect, whole or not at all, one line per event, and nothing secret in it."""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from broker.audit.audit import Audit, AuditSettings, AuditUnavailable, Clocks, Event, EventType, open_audit
from broker.audit.redact import VALUE_CHARACTERS, redact_arguments

# A busy machine is no failure.
unhurried = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOON_S = 1_775_154_600.25
MANY_BYTES = 1 << 30


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    log = tmp_path / "log"
    return AuditSettings(
        audit_log=log / "audit.log", error_log=log / "audit-errors.log", max_bytes=MANY_BYTES, backup_count=3
    )


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hands a record over here waits for it, however busy the machine is."""
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 30)


@contextmanager
def opened(settings: AuditSettings) -> Iterator[tuple[Audit, list[str]]]:
    complaints: list[str] = []
    with open_audit(
        settings, clocks=Clocks(wall=lambda: NOON_S, uptime_ms=lambda: 5000), complain=complaints.append
    ) as audit:
        yield audit, complaints


def begin(audit: Audit, event: Event) -> None:
    """As a call of the broker would."""
    trio.run(audit.begin, event)


def records(path: Path) -> list[dict[str, Any]]:
    """Every record; each line must be one."""
    data = path.read_bytes()
    assert data.isascii()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.decode("ascii").split("\n")[:-1]]


def ids(path: Path) -> list[str]:
    """Which calls are recorded; what the audit says of itself has no id."""
    return [record["request_id"] for record in records(path) if "request_id" in record]


def kinds(path: Path) -> list[str]:
    return [record["event_type"] for record in records(path)]


def command(number: int, **more: Any) -> Event:
    return Event(event_type=EventType.COMMAND_STARTED, tool_name="execute_command", request_id=str(number), **more)


# --- what a record says


def test_a_record_has_the_customers_fields_in_their_order(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        audit.end(
            Event(
                event_type=EventType.COMMAND_COMPLETED,
                session_id="abc-123",
                tool_name="execute_command",
                arguments=redact_arguments({"session_id": "abc-123", "argv": ["ls", "-l"], "confirm": False}),
                exit_code=0,
                duration_ms=450,
                principal="local",
                client="agent/1.0",
                request_id="7",
                rule="allowed_commands.ls",
                data_bytes=10,
                sha256="00",
            )
        )
    (record,) = records(settings.audit_log)
    assert list(record.items()) == [
        ("timestamp", "2026-04-02T18:30:00.250Z"),
        ("event_type", "COMMAND_COMPLETED"),
        ("session_id", "abc-123"),
        ("tool_name", "execute_command"),
        ("arguments", {"session_id": "abc-123", "argv": ["ls", "-l"], "confirm": False}),
        ("exit_code", 0),
        ("duration_ms", 450),
        ("request_id", "7"),
        ("principal", "local"),
        ("client", "agent/1.0"),
        ("rule", "allowed_commands.ls"),
        ("bytes", 10),
        ("sha256", "00"),
        ("uptime_ms", 5000),
        ("run", record["run"]),
        ("seq", 1),
    ]
    assert records(settings.error_log) == []


def test_a_failure_is_in_both_logs(settings: AuditSettings) -> None:
    failure = Event(
        event_type=EventType.COMMAND_FAILED,
        arguments=redact_arguments({"argv": ["curl", "example.com"]}),
        error="Command 'curl' is not in the allowed whitelist",
        error_code="POLICY_001",
    )
    with opened(settings) as (audit, _):
        audit.end(failure)
        begin(audit, failure)  # a refusal may be recorded by either
    assert len(records(settings.audit_log)) == 2
    assert records(settings.error_log) == records(settings.audit_log)
    assert records(settings.error_log)[0]["error_code"] == "POLICY_001"


def fail_with(message: str) -> None:
    raise RuntimeError(message)


def failure(message: str) -> Exception:
    with pytest.raises(RuntimeError) as caught:
        fail_with(message)
    return caught.value


def test_a_traceback_is_in_the_error_log_alone(settings: AuditSettings) -> None:
    unexpected = Event(
        event_type=EventType.TOOL_FAILED,
        error_code="SYS_999",
        error="incident 1",
        incident_id="1",
        exception=failure("no idea"),
    )
    with opened(settings) as (audit, _):
        audit.end(unexpected)
    (public,), (private,) = records(settings.audit_log), records(settings.error_log)
    assert "traceback" not in public
    assert "no idea" not in json.dumps(public)
    assert public["incident_id"] == private["incident_id"] == "1"
    assert private["traceback"].startswith("Traceback (most recent call last):")
    assert "in fail_with" in private["traceback"]
    assert private["traceback"].endswith("RuntimeError: no idea\n")


ANYTHING = st.text(st.characters(exclude_categories=()), max_size=40)


@unhurried
@given(text=ANYTHING, argv=st.lists(ANYTHING, max_size=3))
def test_one_event_is_one_line_of_plain_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, argv: list[str]
) -> None:
    log = tmp_path_factory.mktemp("log")
    settings = AuditSettings(audit_log=log / "a", error_log=log / "b", max_bytes=0, backup_count=0)
    with opened(settings) as (audit, _):
        event = Event(
            event_type=EventType.TOOL_FAILED,
            session_id=text,
            tool_name=text,
            arguments=redact_arguments({text: text, "argv": argv}),
            error=text,
            request_id=text,
            principal=text,
            client=text,
            rule=text,
            details={text: [text, b"\xff", object()]},
        )
        begin(audit, event)
        audit.end(event)
    data = (log / "a").read_bytes()
    assert data.count(b"\n") == 2
    assert all(32 <= byte < 127 for byte in data.replace(b"\n", b""))
    assert len(records(log / "a")) == len(records(log / "b")) == 2


def test_newlines_and_bidi_marks_cannot_forge_a_record(settings: AuditSettings) -> None:
    forged = '\n{"event_type": "SERVER_STOP"}\r\n\u2028\u202e\x1b[2K\x7f'
    with opened(settings) as (audit, _):
        begin(audit, command(1, arguments=redact_arguments({"argv": ["ls", forged]})))
    (record,) = records(settings.audit_log)
    assert record["event_type"] == "COMMAND_STARTED"
    assert record["arguments"]["argv"][1] == forged


@pytest.mark.parametrize(
    ("details", "recorded"),
    [
        pytest.param({("a", 1): "x"}, {"('a', 1)": "x"}, id="a name that is no text"),
        pytest.param({"n": float("nan")}, {"n": None}, id="a number that is none"),
        pytest.param({"n": "a\udc80b"}, {"n": "a\ufffdb"}, id="half a character"),
        pytest.param({"n": "\U0001f600"}, {"n": "\U0001f600"}, id="a character that JSON writes as two halves"),
    ],
)
def test_what_json_has_no_form_for_is_recorded_as_strict_readers_take_it(
    settings: AuditSettings, details: Any, recorded: dict[str, Any]
) -> None:
    with opened(settings) as (audit, _):
        audit.end(command(1, details=details))
    (record,) = records(settings.audit_log)
    assert record["details"] == recorded


def test_a_long_value_is_cut_and_says_its_size(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        begin(audit, command(1, arguments=redact_arguments({"argv": ["é" * 131_000] * 1000}), session_id="x" * 1000))
    (record,) = records(settings.audit_log)
    assert record["arguments"]["argv"][0] == "é" * VALUE_CHARACTERS + "... [262000 bytes]"
    assert record["arguments"]["argv"][-1] == "... 936 more"
    assert record["session_id"].endswith("... [1000 bytes]")
    assert settings.audit_log.stat().st_size < 1 << 20


def test_an_error_is_cut_and_has_nothing_in_it_that_the_arguments_hide(settings: AuditSettings) -> None:
    event = command(1, arguments=redact_arguments({"content": "hunter2"}), error="no hunter2 " + "x" * 10_000)
    with opened(settings) as (audit, _):
        audit.end(event)
    (record,) = records(settings.error_log)
    assert record["error"].startswith("no [redacted] x")
    assert len(record["error"]) < 2100


def test_a_long_traceback_keeps_its_end(settings: AuditSettings) -> None:
    error = failure("x" * 100_000 + " the end")
    assert len("".join(traceback.format_exception(error))) > 100_000
    with opened(settings) as (audit, _):
        audit.end(Event(event_type=EventType.TOOL_FAILED, exception=error))
    (record,) = records(settings.error_log)
    assert record["traceback"].endswith(" the end\n")
    assert len(record["traceback"]) < 20_000


# --- files


def test_logs_are_private_files_in_a_private_folder(settings: AuditSettings) -> None:
    previous = os.umask(0)
    try:
        with opened(settings):
            pass
    finally:
        os.umask(previous)
    assert settings.audit_log.stat().st_mode & 0o7777 == 0o600
    assert settings.error_log.stat().st_mode & 0o7777 == 0o600
    assert settings.audit_log.parent.stat().st_mode & 0o7777 == 0o700


def test_a_log_is_continued_and_made_private(settings: AuditSettings) -> None:
    for number in (1, 2):
        with opened(settings) as (audit, _):
            begin(audit, command(number))
        assert settings.audit_log.stat().st_mode & 0o7777 == 0o600
        settings.audit_log.chmod(0o644)
    assert ids(settings.audit_log) == ["1", "2"]


@pytest.mark.parametrize("name", ["audit_log", "error_log"])
def test_a_symbolic_link_is_refused(settings: AuditSettings, tmp_path: Path, name: str) -> None:
    log: Path = getattr(settings, name)
    log.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    log.symlink_to(victim)
    with pytest.raises(AuditUnavailable, match="symbolic link") as caught, opened(settings):
        pass
    assert caught.value.path == log
    assert victim.read_bytes() == b"precious"


def test_a_symbolic_link_put_in_place_later_is_refused_too(settings: AuditSettings, tmp_path: Path) -> None:
    with opened(settings) as (audit, _):
        settings.audit_log.unlink()
        settings.audit_log.symlink_to(tmp_path / "victim")
        with pytest.raises(AuditUnavailable):
            begin(audit, command(1))
        assert not (tmp_path / "victim").exists()


def test_a_fifo_or_a_folder_at_the_path_is_refused(settings: AuditSettings) -> None:
    settings.audit_log.parent.mkdir()
    os.mkfifo(settings.audit_log)
    with pytest.raises(AuditUnavailable, match="not a regular file"), opened(settings):
        pass
    folder = attrs.evolve(settings, audit_log=settings.audit_log.parent)
    with pytest.raises(AuditUnavailable, match="directory"), opened(folder):
        pass


def test_both_logs_in_one_file_are_refused(settings: AuditSettings) -> None:
    with pytest.raises(ValueError, match="must differ"):
        attrs.evolve(settings, error_log=settings.audit_log)


def test_nothing_stays_open(settings: AuditSettings, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with opened(settings) as (audit, _):
        begin(audit, command(1))
        audit.reopen()
    (tmp_path / "blocked").touch()
    broken = attrs.evolve(settings, error_log=tmp_path / "blocked" / "x")
    with pytest.raises(AuditUnavailable), opened(broken):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_half_a_line_that_a_crash_left_is_cut(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        begin(audit, command(1))
    whole = settings.audit_log.read_bytes()
    settings.audit_log.write_bytes(whole + b'{"timestamp": "2026-')
    with opened(settings) as (audit, _):
        begin(audit, command(2))
    assert ids(settings.audit_log) == ["1", "2"]


def test_half_a_line_is_left_to_the_broker_that_may_be_writing_it(settings: AuditSettings) -> None:
    with opened(settings):
        settings.audit_log.write_bytes(b'{"half": ')
        with opened(settings) as (second, _):
            begin(second, command(2))
        assert settings.audit_log.read_bytes().startswith(b'{"half": \n{"timestamp": ')


def test_a_file_that_is_no_log_loses_nothing(settings: AuditSettings) -> None:
    settings.audit_log.parent.mkdir()
    settings.audit_log.write_bytes(b"my notes\nwithout a last newline")
    with opened(settings) as (audit, _):
        begin(audit, command(1))
    assert settings.audit_log.read_bytes().startswith(b"my notes\nwithout a last newline\n{")


# --- rotation and reopening


def test_rotation_keeps_every_line_once_and_in_order(settings: AuditSettings) -> None:
    small = attrs.evolve(settings, max_bytes=1000, backup_count=200)
    with opened(small) as (audit, complaints):
        for number in range(300):
            (partial(begin, audit) if number % 2 else audit.end)(command(number))
    assert not complaints
    backups = sorted(small.audit_log.parent.glob("audit.log.*"), key=lambda path: -int(path.suffix[1:]))
    assert len(backups) > 10
    kept = [record["request_id"] for path in (*backups, small.audit_log) for record in records(path)]
    assert kept == [str(number) for number in range(300)]
    assert all(path.stat().st_size <= 1000 for path in (*backups, small.audit_log))
    assert all(path.stat().st_mode & 0o7777 == 0o600 for path in backups)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_rotation_keeps_as_many_logs_as_it_may(settings: AuditSettings, count: int) -> None:
    small = attrs.evolve(settings, max_bytes=300, backup_count=count)
    with opened(small) as (audit, _):
        for number in range(50):
            begin(audit, command(number))
    names = sorted(path.name for path in small.audit_log.parent.glob("audit.log*"))
    assert names == ["audit.log", *(f"audit.log.{n + 1}" for n in range(count))]
    assert records(small.audit_log)[-1]["request_id"] == "49"


def test_a_line_longer_than_a_log_still_gets_its_log(settings: AuditSettings) -> None:
    tiny = attrs.evolve(settings, max_bytes=1, backup_count=2)
    with opened(tiny) as (audit, _):
        for number in range(3):
            begin(audit, command(number))
    logs = [tiny.audit_log, *(tiny.audit_log.with_name(f"audit.log.{n}") for n in (1, 2))]
    assert [records(path)[0]["request_id"] for path in logs] == ["2", "1", "0"]


def test_without_a_limit_a_log_is_never_rotated(settings: AuditSettings) -> None:
    with opened(attrs.evolve(settings, max_bytes=0)) as (audit, _):
        for number in range(100):
            begin(audit, command(number))
    assert len(records(settings.audit_log)) == 100


def test_a_rotation_that_fails_loses_nothing_and_is_told_once(settings: AuditSettings) -> None:
    small = attrs.evolve(settings, max_bytes=300, backup_count=1)
    (small.audit_log.parent / "audit.log.1" / "full").mkdir(parents=True)  # no file can take this name
    with opened(small) as (audit, complaints):
        for number in range(20):
            begin(audit, command(number))
    assert len(records(small.audit_log)) == 20
    assert len(complaints) == 1
    assert "cannot be rotated" in complaints[0]


def test_two_brokers_share_a_log_and_its_rotation(settings: AuditSettings) -> None:
    small = attrs.evolve(settings, max_bytes=1000, backup_count=200)
    with opened(small) as (one, _), opened(small) as (two, _):
        for number in range(200):
            begin(one if number % 3 else two, command(number))
    backups = sorted(small.audit_log.parent.glob("audit.log.*"), key=lambda path: -int(path.suffix[1:]))
    kept = [record["request_id"] for path in (*backups, small.audit_log) for record in records(path)]
    assert kept == [str(number) for number in range(200)]


WRITER = """
import sys
from pathlib import Path
import trio
from broker.audit.audit import AuditSettings, Event, EventType, open_audit
log, name = Path(sys.argv[1]), sys.argv[2]
settings = AuditSettings(audit_log=log / "a.log", error_log=log / "e.log", max_bytes=5000, backup_count=1000)
with open_audit(settings) as audit:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(500):
        trio.run(audit.begin, Event(event_type=EventType.TOOL_CALLED, client=name, request_id=str(number)))
"""


def test_brokers_in_several_processes_lose_no_line(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )
        for name in "abc"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n", timeout=30)
        assert writer.returncode == 0
    found = [(r["client"], int(r["request_id"])) for path in tmp_path.glob("a.log*") for r in records(path)]
    assert sorted(found) == [(name, number) for name in "abc" for number in range(500)]


def test_a_log_that_was_moved_away_is_followed_by_a_new_one(settings: AuditSettings) -> None:
    moved = settings.audit_log.with_name("moved")
    with opened(settings) as (audit, _):
        begin(audit, command(1))
        settings.audit_log.rename(moved)
        begin(audit, command(2))
        audit.reopen()
        begin(audit, command(3))
    assert [record["request_id"] for record in records(moved)] == ["1"]
    assert ids(settings.audit_log) == ["2", "3"]


@contextmanager
def in_the_way(log: Path) -> Iterator[None]:
    """A log that cannot be written, because a directory has its name."""
    log.unlink()
    log.mkdir()
    try:
        yield
    finally:
        log.rmdir()


def test_a_reopen_that_fails_refuses_calls_until_it_can(settings: AuditSettings) -> None:
    with opened(settings) as (audit, complaints):
        with in_the_way(settings.audit_log):
            audit.reopen()
            broken_then = audit.broken
            with pytest.raises(AuditUnavailable):
                begin(audit, command(1))
        begin(audit, command(2))
        assert (broken_then, audit.broken) == (True, False)
    assert ids(settings.audit_log) == ["2"]
    assert len(complaints) == 2


# --- fail closed


@contextmanager
def full_after(limit_bytes: int) -> Iterator[None]:
    """A disk that takes *limit_bytes* of a file and then no more, for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_calls_and_leaves_whole_lines(settings: AuditSettings) -> None:
    with opened(settings) as (audit, complaints):
        begin(audit, command(1))
        size_bytes = settings.audit_log.stat().st_size
        for room_bytes in (0, 1, size_bytes - 1):
            with full_after(size_bytes + room_bytes), pytest.raises(AuditUnavailable):
                begin(audit, command(2))
            assert settings.audit_log.stat().st_size == size_bytes
        broken_then = audit.broken
        begin(audit, command(3))
        assert (broken_then, audit.broken) == (True, False)
    assert ids(settings.audit_log) == ["1", "3"]
    assert len(complaints) == 2


def test_what_could_not_be_recorded_at_its_end_is_recorded_first(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        begin(audit, command(1))
        with full_after(settings.audit_log.stat().st_size + 10):
            audit.end(command(2))
            audit.end(command(3, error="both logs owe this"))
            with pytest.raises(AuditUnavailable):
                begin(audit, command(4))
        begin(audit, command(5))
    assert ids(settings.audit_log) == ["1", "2", "3", "5"]
    assert ids(settings.error_log) == ["3"]


def test_a_log_is_said_to_work_again_when_it_does_and_not_before(settings: AuditSettings) -> None:
    with opened(settings) as (audit, complaints):
        with in_the_way(settings.audit_log):
            for number in range(3):
                with pytest.raises(AuditUnavailable):
                    begin(audit, command(number))
                audit.settle()  # nothing is owed, so nothing is tried
                assert audit.broken
            assert len(complaints) == 1
        begin(audit, command(3))
        assert not audit.broken
        assert len(complaints) == 2
    assert "can be written again" in complaints[1]


def test_an_error_log_that_cannot_be_written_refuses_calls_too(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        with in_the_way(settings.error_log):
            audit.end(command(1, error="no place for this"))
            with pytest.raises(AuditUnavailable):
                begin(audit, command(2))
        begin(audit, command(3))
    assert ids(settings.error_log) == ["1"]
    assert ids(settings.audit_log) == ["1", "3"]


def test_a_flood_on_a_broken_log_is_bounded_and_counted(settings: AuditSettings, monkeypatch: Any) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_LINES", 5)
    with opened(settings) as (audit, complaints):
        with in_the_way(settings.audit_log):
            for number in range(20):
                audit.end(command(number))
        begin(audit, command(20))
    assert ids(settings.audit_log) == ["0", "1", "2", "3", "4", "20"]
    assert "records lost since the start: 15" in complaints[-1]


def test_what_is_owed_is_bounded_in_bytes_too(settings: AuditSettings, monkeypatch: Any) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_BYTES", 50_000)
    with opened(settings) as (audit, complaints):
        with in_the_way(settings.audit_log):
            for number in range(10):
                audit.end(command(number, details={"long": "x" * 20_000}))
        begin(audit, command(10))
        with in_the_way(settings.audit_log):
            audit.end(command(11, details={"long": "x" * 20_000}))  # what was written makes room again
    assert "records lost since the start: 8" in complaints[-1]
    assert ids(settings.audit_log) == ["11"]


def test_what_is_owed_is_written_when_the_audit_closes(settings: AuditSettings) -> None:
    with opened(settings) as (audit, _):
        with full_after(settings.audit_log.stat().st_size + 10):
            audit.end(command(1))
        assert records(settings.audit_log) == []
    assert kinds(settings.audit_log) == ["COMMAND_STARTED", "AUDIT_RESTORED"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _begin_all(audit: Audit, numbers: Iterator[int]) -> None:
    for number in numbers:
        begin(audit, command(number))


def test_a_really_full_disk_leaves_whole_lines(small_disk: Path) -> None:
    settings = AuditSettings(
        audit_log=small_disk / "audit.log", error_log=small_disk / "errors.log", max_bytes=0, backup_count=0
    )
    filler = small_disk / "filler"
    with opened(settings) as (audit, _):
        filler.write_bytes(b"x" * 16_384)
        numbers = itertools.count()
        with pytest.raises(AuditUnavailable, match="No space left on device"):
            _begin_all(audit, numbers)
        written = next(numbers) - 1  # the last of them was refused
        assert written > 100
        audit.end(command(written))
        filler.unlink()
        begin(audit, command(written + 1))
    assert [int(name) for name in ids(settings.audit_log)] == list(range(written + 2))


BROKEN_STDERR = """
import os, sys
from pathlib import Path
from broker.audit.audit import AuditSettings, Event, EventType, open_audit
log = Path(sys.argv[1])
os.close(2)
with open_audit(AuditSettings(audit_log=log / "a", error_log=log / "e", max_bytes=0, backup_count=0)) as audit:
    (log / "a").unlink()
    (log / "a").mkdir()
    audit.end(Event(event_type=EventType.TOOL_COMPLETED))
    (log / "a").rmdir()
"""


def test_without_a_standard_error_the_log_works_and_takes_nothing_else(tmp_path: Path) -> None:
    """The descriptor that is free then is 2, and whoever prints there would write into the log."""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", BROKEN_STDERR, str(tmp_path)], check=True, cwd=root)
    assert kinds(tmp_path / "a") == ["TOOL_COMPLETED", "AUDIT_RESTORED"]
