"""A reader can rely on the order of records, on what the disk has, and on what is said of the rest."""

from __future__ import annotations

import fcntl
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from broker.audit.audit import AuditSettings, AuditUnavailable, Clocks, open_audit
from broker.audit.refusals import IN_FULL
from broker.audit.run import BALLAST_BYTES, NOTE_BYTES, PIECE_BYTES, Note, read_runs, run_path, take_lost
from broker.audit.sync import SYNC_S
from tests.broker.audit.test_broker_audit import begin, command, ids, kinds, opened, patient, records
from tests.support.disks import BOUND_S, disk, freezable_disk, frozen, full, in_the_way

__all__ = ["patient"]  # a fixture for each test here too


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    log = tmp_path / "log"
    return AuditSettings(audit_log=log / "audit.log", error_log=log / "errors.log", max_bytes=0, backup_count=0)


def on(folder: Path) -> AuditSettings:
    log = folder / "log"
    return AuditSettings(audit_log=log / "audit.log", error_log=log / "errors.log", max_bytes=0, backup_count=0)


# --- order


def test_two_brokers_on_one_log_are_sorted_though_the_clock_goes_back(settings: AuditSettings) -> None:
    wall, uptime = itertools.count(2_000_000_000, -3600), itertools.count(1000)
    clocks = Clocks(wall=lambda: next(wall), uptime_ms=lambda: next(uptime))
    with open_audit(settings, clocks=clocks) as one, open_audit(settings, clocks=clocks) as two:
        for number in range(20):
            (one if number % 3 else two).end(command(number))
    found = records(settings.audit_log)
    stamps = [record["timestamp"] for record in found]
    assert stamps == sorted(stamps, reverse=True), "the control: they cannot be sorted by that"
    assert {record["run"] for record in found} == {one.run_id, two.run_id}
    shuffled = sorted(found, key=str)
    again = sorted(shuffled, key=lambda record: (record["uptime_ms"], record["run"], record["seq"]))
    assert [record["request_id"] for record in again] == [str(number) for number in range(20)]
    for run in (one.run_id, two.run_id):
        numbers = [record["seq"] for record in found if record["run"] == run]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_number_that_is_missing_was_lost(settings: AuditSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_LINES", 5)
    with opened(settings) as (audit, _):
        begin(audit, command(1))
        with in_the_way(settings.audit_log):
            for number in range(2, 12):
                audit.end(command(number))
            with pytest.raises(AuditUnavailable):
                begin(audit, command(12))  # what was refused has no number
        begin(audit, command(13))
    numbers = {record.get("request_id"): record["seq"] for record in records(settings.audit_log)}
    assert [numbers[str(number)] for number in range(2, 7)] == [2, 3, 4, 5, 6]
    assert "7" not in numbers
    restored = next(r for r in records(settings.audit_log) if r["event_type"] == "AUDIT_RESTORED")
    assert (restored["details"]["owed"], restored["details"]["lost"]) == (5, 5)
    assert {numbers["13"], restored["seq"]} == {12, 13}


# --- a disk that is full


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path, "-t", "tmpfs", "-o", "size=2m") as folder:
        yield folder


def test_what_is_owed_is_written_on_a_full_disk_and_nothing_else_is(small: Path) -> None:
    with opened(on(small)) as (audit, complaints):
        log = on(small).audit_log
        with full(small):
            while True:  # the last page of the log has some room yet
                try:
                    begin(audit, command(0))
                except AuditUnavailable:
                    break
            before = len(records(log))
            for number in range(1, 101):
                audit.end(command(number))
            assert ids(log)[before:] == [str(number) for number in range(1, 101)], "there, though the disk is full"
            with pytest.raises(AuditUnavailable, match="full"):
                begin(audit, command(101))
            assert complaints
        begin(audit, command(102))
        assert ids(log)[-1] == "102"
        assert audit._writer.run.fd is not None
        assert (small / "log" / audit._writer.run.path.name).stat().st_size == NOTE_BYTES + BALLAST_BYTES
    assert [r["seq"] for r in records(log)] == list(range(1, len(records(log)) + 1))


def test_when_the_room_is_used_up_records_wait_and_come_by_themselves(small: Path) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    with open_audit(on(small), complain=told.put) as audit:
        log = on(small).audit_log
        with full(small):
            long = "x" * 2000
            count = (BALLAST_BYTES + PIECE_BYTES) // len(long) + 100
            for number in range(count):
                audit.end(command(number, details={"long": long}))
            assert audit.broken
            (note,) = [note for note, alive in read_runs(log) if alive]
            assert (note.run, note.lost) == (audit.run_id, 0)
            assert 50 < note.owed < count
            with pytest.raises(AuditUnavailable) as caught:
                begin(audit, command(count))
            assert (caught.value.owed_records, caught.value.lost_records) == (note.owed, 0)
        assert "owe their records" in told.get(timeout=BOUND_S)
        assert "can be written again" in told.get(timeout=BOUND_S)  # nobody called
        audit.settle()
        assert ids(log) == [str(number) for number in range(count)]
        assert kinds(log)[-1] == "AUDIT_RESTORED"


# --- a disk that is frozen, and one that loses power


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file, and the file system in it, mounted."""
    with freezable_disk(tmp_path) as found:
        yield found


@pytest.mark.long
def test_nobody_waits_longer_for_a_frozen_disk_than_he_must(
    loop_disk: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.1)
    monkeypatch.setattr("broker.audit.writer.REQUIRE_S", 0.2)
    _, folder = loop_disk
    log = on(folder).audit_log
    with opened(on(folder)) as (audit, complaints):

        async def cancelled() -> None:
            with trio.move_on_after(0.01):
                await audit.begin(command(4))

        with frozen(folder):
            audit.end(command(1))
            for number in (2, 3):
                with pytest.raises(AuditUnavailable, match="not taken a record"):
                    begin(audit, command(number))
            trio.run(cancelled)
            audit.end(command(5))
            assert audit.broken
            assert len(complaints) == 1
        monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 30)
        begin(audit, command(6))
    assert ids(log) == ["1", "5", "6"], "what was refused is not there"
    assert "AUDIT_RESTORED" in kinds(log)


@pytest.mark.long
def test_what_was_refused_meanwhile_takes_no_place_from_what_is_owed(
    loop_disk: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.1)
    monkeypatch.setattr("broker.audit.writer.REQUIRE_S", 0.05)
    _, folder = loop_disk
    monkeypatch.setattr("broker.audit.writer.OWED_LINES", 2 * IN_FULL)
    refused = command(0, error="no", error_code="POLICY_001")
    with opened(on(folder)) as (audit, _):
        with frozen(folder):
            for number in range(2 * IN_FULL):
                with pytest.raises(AuditUnavailable):
                    begin(audit, command(number))
                audit.refuse(refused)
            audit.end(command(1))
        monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 30)
        begin(audit, command(2))
    assert ids(on(folder).audit_log)[-2:] == ["1", "2"]
    restored = next(r for r in records(on(folder).audit_log) if r["event_type"] == "AUDIT_RESTORED")
    assert restored["details"]["lost"] == 0


@pytest.mark.long
async def test_records_are_on_the_disk_soon(loop_disk: tuple[Path, Path]) -> None:
    """What is in the file beneath the file system is what the loss of power leaves."""
    image, folder = loop_disk
    with opened(on(folder)) as (audit, _), trio.fail_after(BOUND_S):  # by itself it would take the kernel longer
        for number in range(3):
            mark = f"durable-{number}-{folder}"
            audit.end(command(number, details={"mark": mark}))
            while mark.encode() not in image.read_bytes():
                await trio.sleep(SYNC_S / 4)


# --- what a run leaves


def test_a_run_file_is_there_while_its_broker_lives_and_alive_to_others(settings: AuditSettings) -> None:
    with opened(settings) as (one, _):
        with opened(settings) as (two, _):
            assert {note.run: alive for note, alive in read_runs(settings.audit_log)} == {
                one.run_id: True,
                two.run_id: True,
            }
        assert [note.run for note, _ in read_runs(settings.audit_log)] == [one.run_id]
        assert "BROKER_LOST" not in kinds(settings.audit_log)
    assert list(read_runs(settings.audit_log)) == []


def test_a_run_is_found_whatever_the_log_is_called(settings: AuditSettings) -> None:
    odd = attrs.evolve(settings, audit_log=settings.audit_log.with_name("audit[1]*.log"))
    with opened(odd) as (audit, _):
        assert [note.run for note, _ in read_runs(odd.audit_log)] == [audit.run_id]


KILLED_WHILE_MAKING = """
import os, signal, sys
from pathlib import Path
from broker.audit.run import Note, RunFile
sys.addaudithook(lambda event, _: event == "os.rename" and os.kill(os.getpid(), signal.SIGKILL))
RunFile(Path(sys.argv[1]), Note(run="", pid=0, started="")).make()
"""


def test_a_file_that_was_being_made_when_its_broker_was_killed_is_removed(settings: AuditSettings) -> None:
    folder = settings.audit_log.parent
    folder.mkdir()
    left, alive, odd, linked = (run_path(settings.audit_log, run) for run in ("0badcafe", "0badf00d", "odd", "0bad11"))
    for path in (left, alive, odd):
        done = subprocess.run([sys.executable, "-c", KILLED_WHILE_MAKING, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
    linked.with_name(f"{linked.name}.new").symlink_to(odd)
    alive.with_name(f"{alive.name}.new.d").mkdir()
    with alive.with_name(f"{alive.name}.new").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as one that is being made right now
        with opened(settings) as (audit, complaints):
            begin(audit, command(1))
        assert complaints == []
        names = {path.name for path in folder.iterdir()}
    assert f"{left.name}.new" not in names
    assert names == {"audit.log", "errors.log", f"{alive.name}.new", f"{alive.name}.new.d", f"{odd.name}.new"} | {
        f"{linked.name}.new"
    }
    assert kinds(settings.audit_log).count("BROKER_LOST") == 0, "it had written nothing"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave something of another user's")
def test_what_another_user_was_making_is_not_ours_to_remove(settings: AuditSettings) -> None:
    settings.audit_log.parent.mkdir()
    path = run_path(settings.audit_log, "0badcafe.new")
    path.write_bytes(b"")
    os.chown(path, 12345, 12345)
    with opened(settings):
        assert path.exists()
    os.chown(path, 0, 0)
    with opened(settings):
        assert not path.exists()


def test_a_start_whose_file_another_one_took_for_a_leftover_makes_it_again(
    settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of the file and its lock nothing tells it from one that was left."""
    settings.audit_log.parent.mkdir()
    lock, taken = fcntl.flock, threading.Event()

    def late(fd: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".new") and not taken.is_set():
            taken.set()
            assert list(take_lost(settings.audit_log)) == []
            assert os.fstat(fd).st_nlink == 0, "the control: it was removed"
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with opened(settings) as (audit, complaints):
        assert [(note.run, alive) for note, alive in read_runs(settings.audit_log)] == [(audit.run_id, True)]
        assert complaints == []


def test_what_is_owed_at_the_end_is_said_by_the_next_start(settings: AuditSettings) -> None:
    with ExitStack() as stack:
        stack.enter_context(in_the_way_after(stack, settings))
    with opened(settings) as (audit, _):
        audit.settle()
        assert kinds(settings.audit_log) == ["BROKER_LOST"]
        (record,) = records(settings.audit_log)
        assert Note(**record["details"]).owed == 1


@contextmanager
def in_the_way_after(stack: ExitStack, settings: AuditSettings) -> Iterator[None]:
    """An audit that cannot write when it closes."""
    trouble = ExitStack()
    with opened(settings) as (audit, complaints):
        trouble.enter_context(in_the_way(settings.audit_log))
        audit.end(command(1))
    assert "owed and lost" in complaints[-1]
    with trouble:
        yield
    settings.audit_log.with_name("audit.log-aside").rename(settings.audit_log)


def test_a_run_file_that_cannot_be_made_is_said_and_stops_nothing(tmp_path: Path) -> None:
    with disk(tmp_path, "-t", "tmpfs", "-o", "size=64k") as tiny:
        with opened(on(tiny)) as (audit, complaints):
            begin(audit, command(1))
        assert "No space left" in complaints[0]
        assert sorted(path.name for path in (tiny / "log").iterdir()) == ["audit.log", "errors.log"]
        assert ids(on(tiny).audit_log) == ["1"]


def test_no_thread_stays(settings: AuditSettings) -> None:
    before = threading.active_count()
    with opened(settings) as (audit, _):
        assert threading.active_count() == before + 2
        begin(audit, command(1))
    assert threading.active_count() == before
