"""The thread that writes the audit, by itself: order and numbers, what is owed, and who waits how long for it.

The thread can be held where it asks whether anything is due: what waits for it then waits as for a disk that is frozen.
"""

from __future__ import annotations

import gc
import json
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from broker.audit.logfile import AuditUnavailable, Hooks, Keeping, LogFile
from broker.audit.run import BALLAST_BYTES, NOTE_BYTES, Note, RunFile, read_runs, run_path
from broker.audit.writer import Lines, Writer, uptime_ms
from tests.support import disks
from tests.support.descriptors import open_descriptors
from tests.support.disks import full_after

BOUND_S = 20.0
PATIENT_S = 3.0
NEVER_S = 1000.0
MANY = 100
WHOLE_BYTES = NOTE_BYTES + BALLAST_BYTES


def line(number: int, *, failed: bool = False) -> Lines:
    text = b'{"n": %d}\n' % number
    return Lines(text, text if failed else None)


def restored(why: str, owed: int, lost: int) -> Lines:
    return Lines(json.dumps({"restored": [why, owed, lost]}).encode() + b"\n")


@attrs.define(eq=False)
class Bench:
    """A writer on files of its own."""

    folder: Path
    due_s: float | None = None
    said: queue.SimpleQueue[str] = attrs.field(factory=queue.SimpleQueue)
    asked: queue.SimpleQueue[None] = attrs.field(factory=queue.SimpleQueue)
    """One for each time that the thread asked what is due."""
    free: threading.Event = attrs.field(factory=threading.Event)
    run: RunFile = attrs.field(init=False)
    writer: Writer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.free.set()
        self.run = RunFile(run_path(self.events, "ab"), Note(run="ab", pid=1, started="now"))
        self.run.make()
        hooks = Hooks(complain=self.said.put, make_room=self.run.give)
        logs = [LogFile(path, Keeping(max_bytes=0, backup_count=0), hooks) for path in (self.events, self.errors)]
        for log in logs:
            log.open()
        self.writer = Writer(
            events=logs[0],
            errors=logs[1],
            run=self.run,
            run_id="ab",
            complain=self.said.put,
            restored=restored,
            on_idle=self._idle,
        )

    @property
    def events(self) -> Path:
        return self.folder / "events"

    @property
    def errors(self) -> Path:
        return self.folder / "errors"

    def _idle(self) -> float | None:
        self.asked.put(None)
        self.free.wait(BOUND_S)
        return self.due_s

    def hear_asked(self, times: int) -> None:
        for _number in range(times):
            self.asked.get(timeout=0.3)

    def owe(self, *numbers: int, failed: bool = False) -> None:
        before_s = time.monotonic()
        for number in numbers:
            self.writer.owe(line(number, failed=failed))
        assert time.monotonic() - before_s < PATIENT_S, "who hands over waits until it is done, and no longer"

    def require(self, number: int, *, failed: bool = False) -> None:
        trio.run(self.writer.require, line(number, failed=failed))

    def refuses(self, number: int, why: str) -> None:
        with pytest.raises(AuditUnavailable, match=why):
            self.require(number)

    def found(self) -> list[Any]:
        """What is in the log of events, in order, each with its number; numbers of runs are looked at elsewhere."""
        return [(read.get("n", read.get("restored")), read["seq"]) for read in lines_of(self.events)]

    def noted(self) -> tuple[int, int]:
        """What the file of the run says: how many are owed, how many lost."""
        ((note, alive),) = read_runs(self.events)
        assert alive
        return note.owed, note.lost

    def complaints(self) -> list[str]:
        """What was said since the last look, without the path of the log that it is said of."""
        said = [self.said.get() for _number in range(self.said.qsize())]
        assert all(text.startswith(f"{self.folder}/") for text in said)
        return [text.removeprefix(f"{self.folder}/") for text in said]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hands a record over waits for it, however busy the machine is; nothing is tried again by itself."""
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", PATIENT_S)
    monkeypatch.setattr("broker.audit.writer.RETRY_S", NEVER_S)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path)
    before_s = time.monotonic()
    made.writer.nudge()
    assert time.monotonic() - before_s < PATIENT_S
    yield made
    made.free.set()
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.1)
    made.writer.close()


@contextmanager
def held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The thread takes nothing; nobody waits long for it."""
    bench.free.clear()
    bench.writer.settle()
    with monkeypatch.context() as now:
        now.setattr("broker.audit.writer.HANDOFF_S", 0.01)
        now.setattr("broker.audit.writer.REQUIRE_S", 0.05)
        yield
    bench.free.set()


@contextmanager
def in_the_way(log: Path) -> Iterator[None]:
    """As `disks.in_the_way`, but for a moment: afterwards the log is where it was."""
    try:
        with disks.in_the_way(log):
            yield
    finally:
        log.with_name(f"{log.name}-aside").rename(log)


# --- when nothing is wrong


def test_a_record_is_as_long_as_its_lines() -> None:
    assert len(Lines(b"abc")) == 3
    assert len(Lines(b"abc", b"de")) == 5


def test_records_are_there_in_order_and_numbered_when_their_calls_return(bench: Bench) -> None:
    bench.owe(1)
    assert lines_of(bench.events) == [{"n": 1, "run": "ab", "seq": 1}]
    bench.require(2)
    bench.owe(3, failed=True)
    bench.require(4, failed=True)
    bench.owe(5)
    assert bench.found() == [(number, number) for number in range(1, 6)]
    assert lines_of(bench.errors) == lines_of(bench.events)[2:4]
    assert (bench.writer.owed, bench.writer.lost, bench.writer.broken) == (0, 0, False)
    assert bench.noted() == (0, 0)
    assert bench.complaints() == []


def test_its_end_leaves_the_logs_alone(tmp_path: Path) -> None:
    before = open_descriptors()
    bench = Bench(tmp_path)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "audit")
    assert thread.daemon, "the end of the process does not wait for a disk"
    bench.owe(1)
    assert bench.writer.close()
    assert not thread.is_alive()
    assert open_descriptors() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["errors", "events"]
    assert bench.complaints() == []


async def test_when_it_has_ended_nothing_can_be_required_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    assert autojump_clock is not None
    bench = Bench(tmp_path)
    bench.writer.close()
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.01)
    before_s = trio.current_time()
    with pytest.raises(AuditUnavailable):
        await bench.writer.require(line(1))
    assert trio.current_time() == before_s


def test_the_thread_is_asked_again_what_is_due_when_it_said_or_is_told(bench: Bench) -> None:
    bench.asked.get(timeout=BOUND_S)
    bench.writer.nudge()
    bench.asked.get(timeout=BOUND_S)
    bench.due_s = 0.01
    bench.writer.nudge()
    for _number in range(3):
        bench.asked.get(timeout=BOUND_S)


def test_what_was_found_due_is_written_by_the_thread_itself(bench: Bench) -> None:
    bench.writer.on_idle = lambda: bench.writer.owe_here(line(1)) if not bench.found() else None
    bench.writer.nudge()
    bench.require(2)
    assert bench.found() == [(1, 1), (2, 2)]


def test_files_that_were_moved_away_are_left_where_they_are(bench: Bench) -> None:
    for path in (bench.events, bench.errors):
        path.rename(path.with_name(f"{path.name}-moved"))
    bench.writer.reopen()
    assert bench.events.exists()
    assert bench.errors.exists()


def test_the_time_since_the_start_of_the_machine_is_in_milliseconds() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    said = uptime_ms()
    assert int(before * 1000) <= said <= int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)


# --- a log that cannot be written


def test_what_is_owed_is_counted_and_written_before_anything_else(bench: Bench) -> None:
    with in_the_way(bench.events):
        bench.owe(1, 2)
        assert (bench.writer.owed, bench.writer.lost, bench.writer.broken) == (2, 0, True)
        assert bench.noted() == (2, 0)
        bench.refuses(3, "Is a directory")
        (said,) = bench.complaints()
        assert said.startswith("events: Is a directory; calls are refused")
    bench.require(4)
    assert bench.found() == [(1, 1), (2, 2), (4, 3), (["Is a directory", 2, 0], 4)]
    assert (bench.writer.owed, bench.writer.broken, bench.noted()) == (0, False, (0, 0))
    (said,) = bench.complaints()
    assert said.startswith("events: can be written again, 2 records")


def test_a_record_that_is_owed_only_to_the_errors_is_owed(bench: Bench) -> None:
    with in_the_way(bench.errors):
        bench.owe(1, 2, failed=True)
        assert (bench.writer.owed, bench.found()) == (2, [(1, 1), (2, 2)])
        bench.refuses(3, "Is a directory")
        assert bench.complaints()[0].startswith("errors: Is a directory")
    bench.owe(4)
    assert [read["seq"] for read in lines_of(bench.errors)] == [1, 2]
    assert bench.found()[2:] == [(4, 3), (["Is a directory", 2, 0], 4)]


def test_the_record_with_which_a_trouble_ends_was_never_owed(bench: Bench) -> None:
    with in_the_way(bench.events):
        bench.owe(1, 2)
    bench.owe(3)
    assert bench.found() == [(1, 1), (2, 2), (3, 3), (["Is a directory", 2, 0], 4)]


def test_a_failure_that_the_errors_cannot_take_is_refused(bench: Bench) -> None:
    with in_the_way(bench.errors), pytest.raises(AuditUnavailable):
        bench.require(1, failed=True)
    assert bench.writer.broken


def test_each_trouble_is_told_with_what_it_cost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_LINES", 2)
    with in_the_way(bench.events):
        bench.owe(1)
    bench.require(2)
    with in_the_way(bench.events):
        bench.refuses(3, "Is a directory")
    bench.require(4)
    assert bench.found() == [(1, 1), (2, 2), (["Is a directory", 1, 0], 3), (4, 4)], "the second cost nothing"
    with in_the_way(bench.events):
        bench.owe(5, 6, 7)
        assert bench.writer.lost == 1
    bench.require(8)
    assert bench.found()[4:] == [(5, 5), (6, 6), (8, 8), (["Is a directory", 2, 1], 9)]
    with in_the_way(bench.events):
        bench.refuses(9, "Is a directory")
    bench.require(10)
    assert bench.found()[8:] == [(10, 10), (["Is a directory", 0, 1], 11)]
    with in_the_way(bench.errors):
        bench.owe(11, 12, 13, 14, failed=True)
        assert bench.writer.lost == 3
    assert len(bench.complaints()) == 9


def test_it_tries_again_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.writer.RETRY_S", 0.01)
    bench.events.unlink()
    bench.events.mkdir()
    bench.owe(1)
    assert "Is a directory" in bench.said.get(timeout=BOUND_S)
    bench.events.rmdir()
    assert "can be written again" in bench.said.get(timeout=BOUND_S)
    assert bench.found()[0] == (1, 1)


def test_what_is_due_sooner_than_it_tries_again_is_not_late(bench: Bench) -> None:
    bench.due_s = 0.01
    with in_the_way(bench.events):
        bench.owe(1)
        for _number in range(10):
            bench.asked.get(timeout=BOUND_S)


def test_settling_and_opening_try_again_too(bench: Bench) -> None:
    with in_the_way(bench.events):
        bench.owe(1)
    bench.writer.settle()
    assert bench.found()[0] == (1, 1)
    with in_the_way(bench.events):
        bench.writer.reopen()
        assert bench.writer.broken
    bench.writer.reopen()
    assert not bench.writer.broken


def test_what_is_owed_at_the_end_is_written_if_it_can_be(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with in_the_way(bench.events):
        bench.owe(1)
    assert bench.writer.close()
    assert bench.found()[0] == (1, 1)
    assert not bench.run.path.exists()


def test_what_is_owed_at_the_end_is_said_and_left_in_the_file_of_the_run(tmp_path: Path) -> None:
    before = open_descriptors()
    bench = Bench(tmp_path)
    with in_the_way(bench.events):
        bench.owe(1, 2)
        assert bench.writer.close()
    assert bench.complaints()[-1] == "events: 2 records are owed and lost with this broker"
    assert [(note.owed, alive) for note, alive in read_runs(bench.events)] == [(2, False)]
    assert open_descriptors() == before


# --- a disk that is full


def test_without_the_whole_room_nothing_is_required_but_what_is_owed_is_written(bench: Bench) -> None:
    with in_the_way(bench.events):
        bench.owe(1)
    bench.run.give()
    with full_after(WHOLE_BYTES - 1):
        bench.refuses(2, "what little room is left")
        assert bench.found()[0] == (1, 1)
        bench.owe(3)
    bench.require(4)
    assert bench.run.whole
    assert [number for number, _ in bench.found() if isinstance(number, int)] == [1, 3, 4]


def test_the_room_is_taken_again_by_itself(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.writer.RETRY_S", 0.01)
    bench.run.give()
    bench.writer.nudge()
    for _number in range(MANY):
        bench.asked.get(timeout=BOUND_S)
        if bench.run.whole:
            break
    with pytest.raises(queue.Empty):  # and then it asks no more
        bench.hear_asked(MANY)
    assert bench.run.path.stat().st_size == WHOLE_BYTES


# --- a disk that does not answer


def test_what_waits_for_the_thread_is_owed_and_the_thread_catches_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.owe(1)
    with held(bench, monkeypatch):
        bench.owe(2, 3, 4)
        assert (bench.writer.owed, bench.found()) == (3, [(1, 1)])
    bench.require(5)
    assert bench.found() == [(number, number) for number in range(1, 6)]
    assert bench.writer.owed == 0
    assert bench.complaints() == [], "nobody was refused"


def test_the_thread_is_told_to_ask_again_also_when_it_was_late_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(bench, monkeypatch):
        bench.owe(1)
    bench.require(2)
    for _number in range(5):  # at its start, and behind each of four errands
        bench.asked.get(timeout=BOUND_S)
    bench.writer.nudge()
    bench.asked.get(timeout=BOUND_S)


def test_so_many_records_wait_and_the_numbers_of_others_are_left_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.owe(1, 2, 3)
    monkeypatch.setattr("broker.audit.writer.OWED_LINES", 2)
    bench.owe(4)  # those that were written do not count
    with held(bench, monkeypatch):
        bench.owe(5, 6, 7, 8)
        assert (bench.writer.owed, bench.writer.lost) == (2, 2)
    bench.require(9)
    bench.require(10)
    assert bench.found() == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (9, 9), (10, 10)]


def test_so_many_bytes_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.writer.OWED_BYTES", 3 * len(line(1)))
    bench.owe(1, 2, 3, 4)
    with held(bench, monkeypatch):
        bench.owe(5)
        bench.owe(6, failed=True)
        assert (bench.writer.owed, bench.writer.lost) == (2, 0)
        bench.owe(7)
        assert (bench.writer.owed, bench.writer.lost) == (2, 1)


def test_a_call_that_waited_too_long_is_refused_and_never_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(bench, monkeypatch):
        for number in (1, 2):
            bench.refuses(number, "has not taken a record for 0.05 seconds")
        assert bench.writer.broken
        (said,) = bench.complaints()
        assert said.startswith("events: the disk has not taken a record")
        bench.owe(3, 4)
        assert bench.writer.owed == 2
    assert "can be written again, 2 records that were owed" in bench.said.get(timeout=BOUND_S)
    bench.require(5)
    assert bench.found() == [(3, 1), (4, 2), (["the disk did not answer", 2, 0], 3), (5, 4)]
    assert not bench.writer.broken
    assert bench.complaints() == []


def test_what_was_owed_while_the_disk_did_not_answer_is_counted_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.audit.writer.RETRY_S", 0.01)
    with held(bench, monkeypatch):
        bench.refuses(1, "has not taken")
        bench.owe(2)
        bench.refuses(3, "has not taken")
        bench.said.get()
    assert "can be written again, 1 records that were owed" in bench.said.get(timeout=BOUND_S)
    bench.require(4)
    assert bench.found() == [(2, 1), (["the disk did not answer", 1, 0], 2), (4, 3)]


def test_of_a_refusal_nothing_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(bench, monkeypatch):
        refused = line(1)
        kept = weakref.ref(refused)
        with pytest.raises(AuditUnavailable):
            trio.run(bench.writer.require, refused)
        del refused
        gc.collect()
        assert kept() is None


async def test_a_call_that_is_cancelled_is_not_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(bench, monkeypatch):
        monkeypatch.setattr("broker.audit.writer.REQUIRE_S", NEVER_S)
        with trio.move_on_after(0.01) as scope:
            await bench.writer.require(line(1))
        assert scope.cancelled_caught
    await bench.writer.require(line(2))
    assert bench.found() == [(2, 1)]


async def test_a_call_goes_on_as_soon_as_its_record_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.fail_after(BOUND_S):
        async with trio.open_nursery() as nursery:
            with held(bench, monkeypatch):
                monkeypatch.setattr("broker.audit.writer.REQUIRE_S", NEVER_S)
                nursery.start_soon(bench.writer.require, line(1))
                await trio.testing.wait_all_tasks_blocked()
                assert bench.found() == []
    assert bench.found() == [(1, 1)]


def test_the_thread_is_waited_for_once_while_it_is_late_and_again_when_it_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 4):
        with held(bench, monkeypatch):
            monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.3)
            before_s = time.monotonic()
            bench.owe(number)
            assert time.monotonic() - before_s >= 0.3
            monkeypatch.setattr("broker.audit.writer.HANDOFF_S", PATIENT_S)
            before_s = time.monotonic()
            bench.owe(number + 1)
            assert time.monotonic() - before_s < PATIENT_S - 1
        bench.require(number + 2)
    assert bench.found() == [(number, number) for number in range(1, 7)]


def test_an_end_that_the_disk_does_not_answer_comes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "audit")
    with held(bench, monkeypatch):
        bench.owe(1, 2)
        with monkeypatch.context() as now:
            now.setattr("broker.audit.writer.CLOSE_S", 0.05)
            assert not bench.writer.close()
        assert bench.complaints() == ["events: 2 records are owed and lost with this broker"]
        assert bench.run.path.exists()
        assert thread.is_alive()
    thread.join(BOUND_S)
    assert bench.found() == [(1, 1), (2, 2)], "it was not given up"
    monkeypatch.setattr("broker.audit.writer.HANDOFF_S", 0.01)
    bench.writer.close()
