"""The file of one broker's run beside its log: room that is kept free, a note of what is owed, and a sign of life.

The broker that writes a log holds a lock on its file as long as it lives and removes it when it has stopped and owes
nothing. So whoever finds one that nobody holds knows that its broker stopped without a word (SIGKILL, loss of power),
and reads in it how many records were lost with it; several brokers on one log are not confused. Where a file system
has no locks every run counts as alive. The file is as private as the log and in the same folder: out of every
session's reach.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import attrs

from broker.auditlog import above_standard

NOTE_BYTES = 4096
"""At its beginning; to change them needs no room."""
BALLAST_BYTES = 1024 * 1024
"""Behind the note: given up on a full disk, so that records can be written of what stops or frees things there."""
PIECE_BYTES = 64 * 1024
"""Given up at once, because somebody else may take it."""
MAKE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
READ_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@attrs.frozen(kw_only=True)
class Note:
    """What a run says of itself: `owed` records wait to be written, for `lost` there was no room even to wait."""

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
        """Make the file, with its room, under a name that nobody looks at until it is locked; return its descriptor.

        Raises:
            OSError: it cannot be made; nothing of it is left.
        """
        making = self.path.with_name(f"{self.path.name}.new")
        with ExitStack() as on_failure:
            fd = above_standard(os.open(making, MAKE_FLAGS, 0o600))
            on_failure.callback(os.close, fd)
            on_failure.callback(making.unlink, missing_ok=True)
            with suppress(OSError):  # no locks here: see the module
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """Remove the files of runs that ended without a word, and yield what they said. Each is found by one broker."""
    for path in _run_files(log):
        with suppress(OSError), ExitStack() as stack:
            fd = os.open(path, READ_FLAGS)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises: it is alive
            if os.fstat(fd).st_nlink and (note := _read(fd)) is not None:
                path.unlink()
                yield note


def read_runs(log: Path) -> Iterator[tuple[Note, bool]]:
    """What every run says, and whether it is alive. Changes nothing."""
    for path in _run_files(log):
        with suppress(OSError), ExitStack() as stack:
            fd = os.open(path, READ_FLAGS)
            stack.callback(os.close, fd)
            if (note := _read(fd)) is not None:
                yield note, not _is_free(fd)


def _run_files(log: Path) -> tuple[Path, ...]:
    try:
        found = log.parent.glob(f"{glob.escape(log.name)}-run-*")
        return tuple(sorted(path for path in found if path.suffix != ".new"))
    except OSError:
        return ()


def _is_free(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
    except (ValueError, TypeError):
        return None
