"""The file of one run, by itself: the room that it keeps, what it says, and how others see whether its broker lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from broker.audit.run import BALLAST_BYTES, NOTE_BYTES, PIECE_BYTES, Note, RunFile, read_runs, run_path, take_lost
from tests.broker.audit.test_broker_audit_order import loop_disk
from tests.support.descriptors import open_descriptors
from tests.support.disks import full_after

__all__ = ["loop_disk"]  # a fixture for tests here too
WHOLE_BYTES = NOTE_BYTES + BALLAST_BYTES
NOTE = Note(run="abc", pid=7, started="now", owed=1, lost=2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    return tmp_path / "log" / "audit.log"


@contextmanager
def made(log: Path, note: Note = NOTE) -> Iterator[RunFile]:
    run = RunFile(run_path(log, note.run), note)
    assert run.make() == run.fd
    yield run
    run.close(remove=True)


def said(log: Path) -> list[tuple[Note, bool]]:
    return list(read_runs(log))


# --- its making and its end


def test_it_is_private_and_has_its_whole_room(log: Path) -> None:
    previous = os.umask(0)
    try:
        with made(log) as run:
            assert [path.name for path in log.parent.iterdir()] == ["audit.log-run-abc"]
            assert run.path.stat().st_mode & 0o7777 == 0o600
            assert run.path.stat().st_size == WHOLE_BYTES
            assert run.path.stat().st_blocks * 512 >= WHOLE_BYTES, "room, and no hole"
            assert run.whole
            assert run.fd is not None
            assert os.fstat(run.fd).st_ino == run.path.stat().st_ino
    finally:
        os.umask(previous)


def test_one_that_cannot_be_made_leaves_nothing(log: Path) -> None:
    before = open_descriptors()
    run = RunFile(run_path(log, NOTE.run), NOTE)
    with full_after(WHOLE_BYTES - 1), pytest.raises(OSError, match="too large"):
        run.make()
    assert list(log.parent.iterdir()) == []
    assert open_descriptors() == before
    assert run.fd is None


def test_one_that_was_not_made_keeps_no_room_and_is_in_nobodys_way(log: Path) -> None:
    run = RunFile(run_path(log, NOTE.run), NOTE)
    assert not run.give()
    assert run.refill()
    run.tell(3, 4)
    run.close(remove=True)
    run.whole = False
    assert run.refill()


def test_its_end_removes_it_unless_something_is_owed(log: Path) -> None:
    before = open_descriptors()
    for remove in (False, True):
        run = RunFile(run_path(log, NOTE.run), NOTE)
        run.make()
        run.close(remove=remove)
        assert open_descriptors() == before
        assert run.path.exists() != remove
        run.close(remove=True)  # does nothing more
        assert run.path.exists() != remove


# --- its room


def test_its_room_is_given_up_in_pieces_and_the_note_stays(log: Path) -> None:
    with made(log) as run:
        for piece in range(1, BALLAST_BYTES // PIECE_BYTES + 1):
            assert run.give()
            assert not run.whole
            assert run.path.stat().st_size == WHOLE_BYTES - piece * PIECE_BYTES
        assert not run.give()
        run.tell(5, 6)
        assert run.path.stat().st_size == NOTE_BYTES, "to change the note needs no room"
        assert said(log) == [(attrs.evolve(NOTE, owed=5, lost=6), True)]


def test_its_room_is_taken_again_whole_or_not_at_all(log: Path) -> None:
    with made(log) as run:
        run.give()
        with full_after(WHOLE_BYTES - 1):
            assert not run.refill()
            assert not run.whole
            assert run.path.stat().st_size == WHOLE_BYTES - PIECE_BYTES
        assert run.refill()
        assert run.whole
        assert run.path.stat().st_size == WHOLE_BYTES
        with full_after(1):
            assert run.refill(), "nothing is to be done"


def test_a_part_of_the_room_that_a_disk_had_is_given_back(loop_disk: tuple[Path, Path]) -> None:
    """This one takes what there is before it says that there is no more."""
    _, folder = loop_disk
    with made(folder / "log" / "audit.log") as run:
        while run.give():
            pass
        with (folder / "filler").open("wb") as filler:
            free = os.statvfs(folder)
            os.posix_fallocate(filler.fileno(), 0, free.f_bfree * free.f_bsize - BALLAST_BYTES // 2)
        assert not run.refill()
        assert run.path.stat().st_size == NOTE_BYTES
        assert os.statvfs(folder).f_bfree > 0
        (folder / "filler").unlink()


# --- what it says, and to whom


def test_a_run_is_alive_to_others_until_it_is_closed(log: Path) -> None:
    run = RunFile(run_path(log, NOTE.run), NOTE)
    run.make()
    run.tell(1, 0)
    note = attrs.evolve(NOTE, owed=1, lost=0)
    assert said(log) == [(note, True)]
    assert list(take_lost(log)) == []
    run.close(remove=False)
    assert said(log) == [(note, False)]


def test_what_a_lost_run_said_is_found_once(log: Path) -> None:
    for name in ("b", "a"):
        run = RunFile(run_path(log, name), attrs.evolve(NOTE, run=name))
        run.make()
        run.close(remove=False)
    before = open_descriptors()
    with made(log):
        assert [note.run for note in take_lost(log)] == ["a", "b"]
        assert list(take_lost(log)) == []
    assert open_descriptors() == before


def test_reading_changes_nothing(log: Path) -> None:
    run = RunFile(run_path(log, NOTE.run), NOTE)
    run.make()
    run.close(remove=False)
    before = open_descriptors()
    assert said(log) == said(log) == [(NOTE, False)]
    assert open_descriptors() == before


@pytest.mark.parametrize("content", [b"", b"notes", b"[]", b"7", b'{"run": "x"}', b'{"other": 1}'])
def test_a_file_of_somebody_else_is_left_alone(log: Path, content: bytes) -> None:
    other = run_path(log, "other")
    other.write_bytes(content)
    assert said(log) == list(take_lost(log)) == []
    assert other.read_bytes() == content


def test_one_that_is_being_made_is_nobodys_yet(log: Path) -> None:
    run = RunFile(run_path(log, NOTE.run), NOTE)
    run.make()
    making = run.path.rename(run.path.with_name(f"{run.path.name}.new"))
    assert said(log) == list(take_lost(log)) == []
    assert making.exists()
    run.close(remove=False)  # as if it had been killed by then: it had said nothing yet
    assert said(log) == list(take_lost(log)) == []
    assert not making.exists()


def test_what_is_no_file_of_a_run_is_passed_over(log: Path) -> None:
    """Whoever may write beside the log could have put it there."""
    elsewhere = log.with_name("elsewhere")
    with made(log) as run:
        elsewhere.write_bytes(run.path.read_bytes())
    run_path(log, "aa").mkdir()
    run_path(log, "bb").symlink_to(elsewhere)
    os.mkfifo(run_path(log, "cc"))
    with made(log, attrs.evolve(NOTE, run="dd")) as run:
        assert said(log) == [(attrs.evolve(NOTE, run="dd"), True)]
        assert list(take_lost(log)) == []
    assert elsewhere.exists()
    assert sorted(path.name[-2:] for path in log.parent.iterdir()) == ["aa", "bb", "cc", "re"]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away takes root")
def test_what_somebody_else_is_making_stays(log: Path) -> None:
    run = RunFile(run_path(log, NOTE.run), NOTE)
    run.make()
    run.close(remove=False)
    making = run.path.rename(run.path.with_name(f"{run.path.name}.new"))
    os.chown(making, 61_998, 61_998)
    assert list(take_lost(log)) == []
    assert making.exists()


def test_where_nobody_can_look_there_are_no_runs() -> None:
    assert said(Path("/") / ("x" * 5000) / "audit.log") == []
