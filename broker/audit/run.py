"""The file of one broker's run beside its log: room that is kept free, a note of what is owed, and a sign of life.

The broker that writes a log holds a lock on its file as long as it lives and removes it when it has stopped and owes
nothing. So whoever finds one that nobody holds knows that its broker stopped without a word (SIGKILL, loss of power),
and reads in it how many records were lost with it; several brokers on one log are not confused. Where a file system
has no locks every run counts as alive. The file is as private as the log and in the same folder: out of every
session's reach.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs

from broker.audit.logfile import above_standard

NOTE_BYTES = 4096
"""At its beginning; to change them needs no room."""
BALLAST_BYTES = 1024 * 1024
"""Behind the note: given up on a full disk, so that records can be written of what stops or frees things there."""
PIECE_BYTES = 64 * 1024
"""Given up at once, because somebody else may take it."""
MAKE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
MAKING = ".new"
"""Behind the name, until it is locked and whole."""
READ_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@attrs.frozen(kw_only=True)
class Note:
    """Note of a run about itself: `owed` records wait to be written, for `lost` there was no room even to wait."""

    run: str
    pid: int
    started: str
    owed: int = 0
    lost: int = 0


@attrs.define(eq=False)
class RunFile:
    """The file of this run. Without a descriptor (`fd` None) it could not be made: no room is kept, no sign given."""

    path: Path
    _note: Note
    fd: int | None = None
    whole: bool = True
    """Whether all of the room that it keeps is free."""

    def make(self) -> int:
        """Make the file, with its room, under a name of its own until it is locked and whole; return its descriptor.

        Raises:
            OSError: it cannot be made; nothing of it is left.
        """
        try:
            return self._make()
        except (FileNotFoundError, BlockingIOError):  # another start saw it before it was locked, and removed it
            return self._make()

    def _make(self) -> int:
        making = self.path.with_name(f"{self.path.name}{MAKING}")
        with ExitStack() as on_failure:
            fd = above_standard(os.open(making, MAKE_FLAGS, 0o600))
            on_failure.callback(os.close, fd)
            on_failure.callback(making.unlink, missing_ok=True)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:  # no locks here: see the module
                pass
            os.posix_fallocate(fd, 0, NOTE_BYTES + BALLAST_BYTES)
            os.pwrite(fd, _words(self._note), 0)
            making.rename(self.path)
            on_failure.pop_all()
        self.fd = fd
        return fd

    def give(self) -> bool:
        """Give a piece of the room up; False if there is none left."""
        if self.fd is None or (size_bytes := os.fstat(self.fd).st_size) <= NOTE_BYTES:
            return False
        self.whole = False
        os.ftruncate(self.fd, max(NOTE_BYTES, size_bytes - PIECE_BYTES))
        return True

    def refill(self) -> bool:
        """Take the whole room again, or none of it; whether it is whole."""
        if self.fd is None or self.whole:
            return True
        before_bytes = os.fstat(self.fd).st_size
        try:
            os.posix_fallocate(self.fd, 0, NOTE_BYTES + BALLAST_BYTES)
        except OSError:
            os.ftruncate(self.fd, before_bytes)
            return False
        self.whole = True
        return True

    def tell(self, owed: int, lost: int) -> None:
        """Write down what is owed, for `doctor` and for the next start."""
        if self.fd is not None and (owed, lost) != (self._note.owed, self._note.lost):
            self._note = attrs.evolve(self._note, owed=owed, lost=lost)
            with suppress(OSError):  # then the note is behind, as the log is
                os.pwrite(self.fd, _words(self._note), 0)

    def close(self, *, remove: bool) -> None:
        """End the sign of life. Without *remove* the file stays: what is owed is lost, and the next start says so."""
        fd, self.fd = self.fd, None
        if fd is None:
            return
        if remove:
            with suppress(OSError):
                self.path.unlink()
        os.close(fd)


def run_path(log: Path, run: str) -> Path:
    """Where the file of a run lies."""
    return log.with_name(f"{log.name}-run-{run}")


def take_lost(log: Path) -> Iterator[Note]:
    """Remove the files of runs that ended without a word, and yield what they said. Each is found by one broker.

    Those that ended while they made their files had written no record, so they are removed and not told.
    """
    for path, fd in _files(log, MAKING):
        if os.fstat(fd).st_uid == os.geteuid() and _is_free(fd, fcntl.LOCK_EX):
            _remove(path, fd)
    for path, fd in _files(log):
        if _is_free(fd, fcntl.LOCK_EX) and (note := _read(fd)) is not None and _remove(path, fd):
            yield note


def read_runs(log: Path) -> Iterator[tuple[Note, bool]]:
    """Return the note of every run, and whether it is alive. Changes nothing."""
    for _, fd in _files(log):
        if (note := _read(fd)) is not None:
            yield note, not _is_free(fd, fcntl.LOCK_SH)


def _files(log: Path, ending: str = "") -> Iterator[tuple[Path, int]]:
    """The files of runs whose names end so, each open until the next one is asked for."""
    named = re.compile(rf"{re.escape(log.name)}-run-[0-9a-f]+{re.escape(ending)}")
    for path in _within(log.parent, named):
        with ExitStack() as stack:
            try:
                fd = os.open(path, READ_FLAGS)
                stack.callback(os.close, fd)
            except OSError:
                continue
            if stat.S_ISREG(os.fstat(fd).st_mode):
                yield path, fd


def _within(folder: Path, named: re.Pattern[str]) -> tuple[Path, ...]:
    try:
        return tuple(folder / name for name in sorted(os.listdir(folder)) if named.fullmatch(name))
    except OSError:
        return ()


def _is_free(fd: int, how: int) -> bool:
    """Whether nobody holds it, as a run does that lives."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(path: Path, fd: int) -> bool:
    """Remove the file that *fd* is of; whether that was done here."""
    try:
        if not os.path.samestat(os.lstat(path), os.fstat(fd)):  # another has its name by now
            return False
        path.unlink()
    except OSError:
        return False
    return True


def _words(note: Note) -> bytes:
    return json.dumps(attrs.asdict(note)).encode("ascii").ljust(NOTE_BYTES - 1) + b"\n"


def _read(fd: int) -> Note | None:
    """The note of a run; None where the file is something else."""
    try:
        known: Any = json.loads(os.pread(fd, NOTE_BYTES, 0))
        return Note(**known)
    except (OSError, ValueError, TypeError):
        return None
