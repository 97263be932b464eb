"""One log of lines, by itself: whole lines or none, what is owed, what is mended at opening, how it is rotated."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import pytest

from broker.audit.logfile import BLOCK_BYTES, AuditUnavailable, Hooks, Keeping, LogFile, above_standard
from tests.support.descriptors import open_descriptors

LINE = b'{"n": 1}\n'
UNLIMITED = Keeping(max_bytes=0, backup_count=0)


@attrs.define(eq=False)
class Heard:
    """What a log tells; `room` is how often it may be given room."""

    complaints: list[str] = attrs.field(factory=list)
    written: list[int] = attrs.field(factory=list)
    """Inodes, in order."""
    dropped: list[str] = attrs.field(factory=list)
    room: list[int] = attrs.field(factory=list)
    """File sizes that are allowed from then on, for each time that it is asked for room."""

    def hooks(self) -> Hooks:
        return Hooks(
            complain=self.complaints.append,
            on_write=lambda fd: self.written.append(os.fstat(fd).st_ino),
            on_drop=lambda path, _: self.dropped.append(path.name),
            make_room=self._make_room,
        )

    def _make_room(self) -> bool:
        if self.room:
            allow(self.room.pop(0))
            return True
        return False


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.log"


@contextmanager
def opened(path: Path, heard: Heard, keeping: Keeping = UNLIMITED) -> Iterator[LogFile]:
    log = LogFile(path, keeping, heard.hooks())
    with closing(log):
        log.open()
        yield log


def allow(limit_bytes: int) -> None:
    """Have this process write no file beyond so many bytes: the disk is full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def unlimited() -> Iterator[None]:
    """Ends what `allow` began."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def inodes(*paths: Path) -> list[int]:
    return [path.stat().st_ino for path in paths]


# --- opening


def test_folders_above_it_are_made_for_their_owner_alone(tmp_path: Path, heard: Heard) -> None:
    previous = os.umask(0)
    try:
        with opened(tmp_path / "a" / "b" / "log", heard):
            assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o700
    finally:
        os.umask(previous)


def test_one_that_others_may_read_is_made_private(path: Path, heard: Heard) -> None:
    path.parent.mkdir()
    path.touch()
    path.chmod(0o644)
    with opened(path, heard):
        assert path.stat().st_mode & 0o7777 == 0o600


def test_who_is_told_of_writes_is_told_of_the_folder_and_of_each_line(path: Path, heard: Heard) -> None:
    with opened(path, heard) as log:
        log.append(LINE)
        log.append(LINE)
        assert heard.written == inodes(path.parent, path, path)


@pytest.mark.parametrize("why", ["fifo", "link", "folder"])
def test_what_cannot_be_opened_is_let_go_of(path: Path, heard: Heard, why: str) -> None:
    path.parent.mkdir()
    if why == "fifo":
        os.mkfifo(path)
    elif why == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()
    before = open_descriptors()
    with pytest.raises(AuditUnavailable) as caught, opened(path, heard):
        pass
    assert open_descriptors() == before
    assert caught.value.why in {"it is not a regular file", "it is a symbolic link", "Is a directory"}
    assert caught.value.path == path
    assert caught.value.why in str(caught.value)
    assert str(path) not in str(caught.value), "the text is for clients"
    assert (caught.value.owed_records, caught.value.lost_records) == (0, 0), "nothing has waited for this file yet"


def test_it_holds_one_descriptor_and_then_none(path: Path, heard: Heard) -> None:
    before = open_descriptors()
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=1)) as log:
        for _number in range(3):  # with a rotation
            log.append(LINE)
        log.open()
        assert len(open_descriptors() - before) == 1
    assert open_descriptors() == before


def test_one_that_was_closed_and_is_gone_is_made_anew(path: Path, heard: Heard) -> None:
    with opened(path, heard) as log:
        log.close()
        path.unlink()
        log.append(LINE)
    assert path.read_bytes() == LINE


def test_a_link_to_the_very_file_is_no_log(path: Path, heard: Heard) -> None:
    with opened(path, heard) as log:
        path.rename(path.with_name("aside"))
        path.symlink_to("aside")
        with pytest.raises(AuditUnavailable, match="symbolic link"):
            log.append(LINE)
    assert path.read_bytes() == b""


def test_descriptors_of_the_standard_streams_are_never_a_logs() -> None:
    kept = os.dup(1), os.dup(2)
    os.close(1)
    try:
        fd = above_standard(2)
        free = [number for number in (1, 2) if not os.path.lexists(f"/proc/self/fd/{number}")]
        inherited = os.get_inheritable(fd)
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
    os.close(fd)
    assert fd > 2
    assert free == [1, 2]
    assert not inherited


def test_other_descriptors_stay_what_they_are() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    assert above_standard(fd) == fd
    os.close(fd)


# --- what is mended


@pytest.mark.parametrize(
    ("before", "half"),
    [
        pytest.param(b"", b"{", id="nothing else"),
        pytest.param(b"\n", b'{"half', id="behind an empty line"),
        pytest.param(LINE, b'{"half', id="behind a line"),
        pytest.param(LINE, b"{" + b"x" * BLOCK_BYTES * 2, id="longer than what is looked at in one piece"),
        pytest.param(b"\n", b"{" + b"x" * (BLOCK_BYTES - 1), id="that begins where a piece does"),
        pytest.param(LINE * (BLOCK_BYTES // 4), b'{"half', id="behind many lines"),
    ],
)
def test_half_a_line_is_cut_and_nothing_else(path: Path, heard: Heard, before: bytes, half: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(before + half)
    with opened(path, heard) as log:
        assert path.read_bytes() == before
        log.append(LINE)
    assert path.read_bytes() == before + LINE


def test_a_log_of_whole_lines_is_left_as_it_is(path: Path, heard: Heard) -> None:
    path.parent.mkdir()
    path.write_bytes(LINE * 2)
    with opened(path, heard):
        assert path.read_bytes() == LINE * 2


def test_a_file_that_is_no_log_loses_nothing(path: Path, heard: Heard) -> None:
    path.parent.mkdir()
    path.write_bytes(b"my notes\nwithout a last newline")
    with opened(path, heard):
        assert path.read_bytes() == b"my notes\nwithout a last newline\n"


def test_half_a_line_of_one_of_three_is_not_cut_though_the_first_has_left(path: Path, heard: Heard) -> None:
    first = LogFile(path, UNLIMITED, heard.hooks())
    first.open()
    with opened(path, heard):
        first.close()
        with path.open("ab") as second:
            second.write(b'{"half')
        with opened(path, heard):
            assert path.read_bytes() == b'{"half\n'


# --- what is owed


def test_what_is_owed_comes_first(path: Path, heard: Heard) -> None:
    with opened(path, heard) as log:
        log.owe(b"1\n")
        log.owe(b"2\n")
        assert (log.owed_lines, path.read_bytes()) == (2, b"")
        log.append(b"3\n")
        assert (log.owed_lines, path.read_bytes()) == (0, b"1\n2\n3\n")


def test_so_many_bytes_are_owed_and_no_more(path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_BYTES", 10)
    with opened(path, heard) as log:
        for line in (b"1234\n", b"6789\n", b"\n"):
            log.owe(line)
        assert (log.owed_lines, log.lost_lines) == (2, 1)
        log.settle()
        log.owe(b"123456789\n")
        assert (log.owed_lines, log.lost_lines) == (1, 1)


def test_so_many_lines_are_owed_and_no_more(path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.audit.logfile.OWED_LINES", 2)
    with opened(path, heard) as log:
        for _number in range(4):
            log.owe(LINE)
        assert (log.owed_lines, log.lost_lines) == (2, 2)


@pytest.mark.usefixtures("unlimited")
def test_on_a_full_disk_it_asks_for_room_until_what_is_owed_is_there(path: Path, heard: Heard) -> None:
    with opened(path, heard) as log:
        for _number in range(3):
            log.owe(LINE)
        heard.room = [len(LINE) + 2, 2 * len(LINE) + 1]
        allow(1)
        with pytest.raises(AuditUnavailable) as caught:
            log.settle()
        assert caught.value.full
        assert (log.owed_lines, path.read_bytes(), heard.room) == (1, LINE * 2, [])
        allow(1 << 20)
        log.settle()
    assert path.read_bytes() == LINE * 3


def test_where_room_is_not_what_it_lacks_nobody_is_asked_for_it(path: Path, heard: Heard) -> None:
    heard.room = [1 << 20]
    with opened(path, heard) as log:
        log.owe(LINE)
        path.unlink()
        path.mkdir()
        with pytest.raises(AuditUnavailable) as caught:
            log.settle()
    assert (caught.value.full, heard.room, log.owed_lines) == (False, [1 << 20], 1)


@pytest.mark.usefixtures("unlimited")
def test_what_was_refused_leaves_neither_half_a_line_nor_a_descriptor(path: Path, heard: Heard) -> None:
    before = open_descriptors()
    with opened(path, heard) as log:
        log.append(LINE)
        allow(len(LINE) + 3)
        with pytest.raises(AuditUnavailable, match="No space left"):
            log.append(LINE)
        assert path.read_bytes() == LINE
        assert open_descriptors() == before, "its disk could be unmounted and repaired"
        assert heard.written == inodes(path.parent, path), "nobody is told of what is not there"


# --- rotation


def numbered(path: Path, *numbers: int) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in numbers]


def lines_in(*paths: Path) -> list[list[int]]:
    return [[json.loads(line)["n"] for line in path.read_text().splitlines()] for path in paths]


def append(log: LogFile, *numbers: int) -> None:
    for number in numbers:
        log.append(b'{"n": %d}\n' % number)


def test_a_log_is_rotated_when_a_line_does_not_fit_and_not_before(path: Path, heard: Heard) -> None:
    with opened(path, heard, Keeping(max_bytes=2 * len(LINE), backup_count=2)) as log:
        append(log, 1, 2, 3, 4, 5, 6, 7)
    assert lines_in(path, *numbered(path, 1, 2)) == [[7], [5, 6], [3, 4]]
    assert not numbered(path, 3)[0].exists()


def test_a_line_that_is_longer_than_a_log_may_be_is_the_first_of_its_log(path: Path, heard: Heard) -> None:
    with opened(path, heard, Keeping(max_bytes=1, backup_count=2)) as log:
        append(log, 1)
        assert not numbered(path, 1)[0].exists()
        append(log, 2)
    assert lines_in(path, *numbered(path, 1)) == [[2], [1]]


def test_who_finds_another_at_it_leaves_the_rotation_to_him(path: Path, heard: Heard) -> None:
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=9)) as log:
        append(log, 1)
        other = os.open(path.parent, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        append(log, 2)
        os.close(other)
        assert lines_in(path) == [[1, 2]]
        append(log, 3)
    assert lines_in(path, *numbered(path, 1)) == [[3], [1, 2]]
    assert heard.complaints == []


def test_what_another_rotated_just_now_is_not_rotated_again(path: Path, heard: Heard) -> None:
    """He does it between the opening, which is told, and the first line."""
    path.parent.mkdir()
    path.write_bytes(LINE)

    def rotated_by_another(_: int) -> None:
        if not numbered(path, 1)[0].exists():
            path.rename(numbered(path, 1)[0])
            path.write_bytes(b"")

    hooks = attrs.evolve(heard.hooks(), on_write=rotated_by_another)
    with closing(LogFile(path, Keeping(max_bytes=len(LINE), backup_count=9), hooks)) as log:
        append(log, 2)
    assert lines_in(path, *numbered(path, 1)) == [[2], [1]]
    assert not numbered(path, 2)[0].exists()


def test_each_time_that_it_cannot_be_rotated_is_told_once(path: Path, heard: Heard) -> None:
    (backup,) = numbered(path, 1)
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=1)) as log:
        (backup / "full").mkdir(parents=True)
        append(log, 1, 2, 3, 4)
        assert len(heard.complaints) == 1
        (backup / "full").rmdir()
        backup.rmdir()
        append(log, 5)
        assert lines_in(path, backup) == [[5], [1, 2, 3, 4]]
        assert len(heard.complaints) == 1
        backup.unlink()
        (backup / "full").mkdir(parents=True)
        append(log, 6, 7, 8)
        assert len(heard.complaints) == 2
    assert lines_in(path) == [[5, 6, 7, 8]]


DAY_S = 24 * 3600.0


@pytest.mark.parametrize(
    ("number", "age_s", "drops"),
    [(2, 9e9, False), (3, 0, False), (3, DAY_S, True), (6, 1, False), (7, 1, True)],
)
def test_what_is_dropped(number: int, age_s: float, *, drops: bool) -> None:
    keeping = Keeping(max_bytes=1, backup_count=2, keep_s=DAY_S, most_backups=6)
    assert keeping.drops(number, age_s) == drops


def test_without_backups_the_log_alone_is_kept(path: Path, heard: Heard) -> None:
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=0)) as log:
        append(log, 1, 2)
    assert lines_in(path) == [[2]]
    assert list(path.parent.iterdir()) == [path]


def test_what_an_earlier_start_was_to_keep_goes_and_so_does_a_link_that_leads_nowhere(path: Path, heard: Heard) -> None:
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=1)) as log:
        append(log, 1)
        for backup in numbered(path, 1, 2):
            backup.write_bytes(LINE)
        numbered(path, 3)[0].symlink_to("nowhere")
        append(log, 2)
    assert lines_in(path, *numbered(path, 1)) == [[2], [1]]
    assert sorted(path.parent.iterdir()) == [path, *numbered(path, 1)]
    assert heard.complaints == []


@pytest.mark.parametrize(("age_s", "told"), [(10.0, ["audit.log.1"]), (1000.0, [])])
def test_only_of_a_young_file_is_told_that_it_had_to_go(
    path: Path, heard: Heard, age_s: float, told: list[str]
) -> None:
    with opened(path, heard, Keeping(max_bytes=len(LINE), backup_count=1, keep_s=100.0, most_backups=1)) as log:
        append(log, 1, 2)
        os.utime(numbered(path, 1)[0], (time.time() - age_s,) * 2)
        append(log, 3)
    assert lines_in(path, *numbered(path, 1)) == [[3], [2]]
    assert heard.dropped == told
