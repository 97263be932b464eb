"""One append-only log of lines: whole lines or none, rotation, and never through a symbolic link.

Owns one descriptor. Knows nothing of what the lines say, nor of threads: all of it is for the writer's thread alone,
because an append to a disk that is frozen takes as long as that lasts. A line that was written survives the end of the
process; who is told of each (`on_write`) sees to it that it survives the loss of power too.

Several brokers may share a log (each client of the stdio mode starts one): a line is one O_APPEND write; who rotates
holds a lock; who finds another file at the path, after a rotation of anyone or a deletion, opens that one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

OPEN_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""Reading is for the last line at opening; O_NONBLOCK so that a FIFO at the path cannot stop the broker."""
BLOCK_BYTES = 65_536
STANDARD_ERROR = 2
OWED_LINES = 10_000
"""Kept while the file does not work: ends of running calls, what stops or frees things, and refusals."""
OWED_BYTES = 16 * 1024 * 1024
"""Of those: a line can be long."""
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class AuditUnavailable(Exception):
    """A record could not be written, and nothing of it is in the log. The text is for clients: no path in it."""

    def __init__(self, path: Path, why: str, *, full: bool = False) -> None:
        super().__init__(f"the audit log cannot be written ({why}), so nothing was done; the operator must repair it")
        self.path = path
        self.why = why
        self.full = full
        """Whether room is all that it lacks."""
        self.owed_records = 0
        """How many wait to be written, when it is a call that is refused; with `lost_records`, its client is told."""
        self.lost_records = 0


@attrs.frozen(kw_only=True)
class Keeping:
    """When a log is rotated and how many of the rotated files are kept.

    `max_bytes` 0: no rotation. The `backup_count` newest stay; those behind them too while they are younger than
    `keep_s` seconds, but never more than `most_backups`.
    """

    max_bytes: int = attrs.field(validator=attrs.validators.ge(0))
    backup_count: int = attrs.field(validator=attrs.validators.ge(0))
    keep_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    most_backups: int = attrs.field(default=0, validator=attrs.validators.ge(0))

    def drops(self, number: int, age_s: float) -> bool:
        """Whether the file that would become `.number` goes."""
        return number > self.backup_count and (age_s >= self.keep_s or number > self.most_backups)


@attrs.frozen(kw_only=True)
class Hooks:
    """Whom a log tells: of troubles (in words), of a descriptor that was written, of a young file that had to go.

    `make_room` is asked when the disk is full and a line is owed: whether it is worth another try.
    """

    complain: Callable[[str], None]
    on_write: Callable[[int], None] = lambda _: None
    on_drop: Callable[[Path, os.stat_result], None] = lambda _path, _found: None
    make_room: Callable[[], bool] = lambda: False


@contextmanager
def _as_unavailable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or type(error).__name__
        raise AuditUnavailable(path, why, full=error.errno in NO_ROOM) from error


@attrs.define(eq=False)
class LogFile:
    """See the module. `lost_lines` counts what found no room while the file did not work.

    Ownership: `close` ends the descriptor; the next append would open it again.
    """

    path: Path
    _keeping: Keeping
    _hooks: Hooks
    _fd: int | None = attrs.field(default=None, init=False)
    _identity: tuple[int, int] | None = attrs.field(default=None, init=False)
    _owed: deque[bytes] = attrs.field(factory=deque, init=False)
    _owed_bytes: int = attrs.field(default=0, init=False)
    lost_lines: int = attrs.field(default=0, init=False)
    _stuck: bool = attrs.field(default=False, init=False)

    @property
    def owed_lines(self) -> int:
        """How many lines wait to be written."""
        return len(self._owed)

    def append(self, line: bytes) -> None:
        """Write what is owed, then *line* (which ends with a newline).

        Raises:
            AuditUnavailable: nothing of *line* was written; what is owed stays owed.
        """
        self.settle()
        self._write(line)

    def owe(self, line: bytes) -> None:
        """Keep *line* until `settle`, if there is room."""
        if len(self._owed) < OWED_LINES and self._owed_bytes + len(line) <= OWED_BYTES:
            self._owed.append(line)
            self._owed_bytes += len(line)
        else:
            self.lost_lines += 1

    def settle(self) -> None:
        """Write every owed line, in order, into room that is made for it; raises AuditUnavailable as `append` does."""
        while self._owed:
            try:
                self._write(self._owed[0])
            except AuditUnavailable as error:
                if error.full and self._hooks.make_room():
                    continue
                raise
            self._owed_bytes -= len(self._owed.popleft())

    def open(self) -> int:
        """Open, or make, the file at the path, with mode 0600, and cut half a line off its end."""
        self.close()
        with _as_unavailable(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with ExitStack() as on_failure:
                fd = above_standard(os.open(self.path, OPEN_FLAGS, 0o600))
                on_failure.callback(os.close, fd)
                self._identity = self._adopt(fd)
                self._mark_folder()
                on_failure.pop_all()
            self._fd = fd
            return fd

    def close(self) -> None:
        """Close the descriptor, if there is one."""
        fd, self._fd, self._identity = self._fd, None, None
        if fd is not None:
            os.close(fd)

    def _mark_folder(self) -> None:
        """Have the file's name survive the loss of power, as its lines do."""
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._hooks.on_write(fd)
        finally:
            os.close(fd)

    def _adopt(self, fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise AuditUnavailable(self.path, "it is not a regular file")
        os.fchmod(fd, 0o600)
        _mend(fd)
        return found.st_dev, found.st_ino

    def _write(self, line: bytes) -> None:
        with _as_unavailable(self.path):
            fd = self._ready(len(line))
            try:
                _write_whole(fd, line)
            except OSError:
                self.close()  # opening it again mends what may be half there
                raise
        self._hooks.on_write(fd)

    def _ready(self, line_bytes: int) -> int:
        """The descriptor of the file that is at the path now and has room for the line."""
        fd = self._current()
        size_bytes = os.fstat(fd).st_size
        limit_bytes = self._keeping.max_bytes
        if limit_bytes and size_bytes and size_bytes + line_bytes > limit_bytes:
            self._rotate()
            fd = self._current()
        return fd

    def _current(self) -> int:
        if self._fd is None or self._identity != _identity_at(self.path):
            return self.open()
        return self._fd

    def _rotate(self) -> None:
        """Move the file to `.1`, `.1` to `.2` and so on. If that fails the file grows on: no line is lost for it."""
        try:
            with _only_one(self.path.parent) as alone:
                if alone and self._identity == _identity_at(self.path):
                    self._shift()
        except OSError as error:
            if not self._stuck:
                self._hooks.complain(f"{self.path} cannot be rotated, it grows on: {error.strerror}")
            self._stuck = True
        else:
            self._stuck = False

    def _shift(self) -> None:
        kept = [self.path]
        while os.path.lexists(older := self._numbered(len(kept))):
            kept.append(older)
        while kept and self._let_go(kept[-1], len(kept)):
            kept.pop()
        for number in range(len(kept), 0, -1):
            kept[number - 1].rename(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _let_go(self, path: Path, number: int) -> bool:
        """Delete *path*, which would become `.number`, if it need not be kept."""
        found = path.stat(follow_symlinks=False)
        age_s = time.time() - found.st_mtime
        if not self._keeping.drops(number, age_s):
            return False
        path.unlink()
        if age_s < self._keeping.keep_s:
            self._hooks.on_drop(path, found)
        return True


def above_standard(fd: int) -> int:
    """Move off 0, 1 and 2, which are free in a daemon: else what is printed there would be in the log."""
    if fd > STANDARD_ERROR:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STANDARD_ERROR + 1)
    finally:
        os.close(fd)


def _identity_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _write_whole(fd: int, line: bytes) -> None:
    """Write all of *line*, or cut off what was written, unless another broker's line is behind it by now."""
    written = os.write(fd, line)
    if written != len(line):
        end = os.lseek(fd, 0, os.SEEK_CUR)
        if os.fstat(fd).st_size == end:
            os.ftruncate(fd, end - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _only_one(directory: Path) -> Iterator[bool]:
    """Hold the lock of the rotation; False if another broker holds it, which then rotates for both."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _mend(fd: int) -> None:
    """Make the file end with a whole line; what a crash left half was never acknowledged.

    Only who is alone with the file may cut: the half line could be another broker's, just being written. And only
    what can be ours is cut, so that a wrong path in the configuration costs nobody a line of his notes.
    """
    size_bytes = os.fstat(fd).st_size
    alone = _lock(fd, fcntl.LOCK_EX)
    if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
        start = _last_line_start(fd, size_bytes)
        if alone and os.pread(fd, 1, start) == b"{":
            os.ftruncate(fd, start)
        else:
            os.write(fd, b"\n")
    _lock(fd, fcntl.LOCK_SH)


def _lock(fd: int, kind: int) -> bool:
    """Every broker holds a shared lock on its log, so that an exclusive one tells it is alone. Never waits."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:  # held by another, or a file system without locks: then nobody can know
        return False
    return True


def _last_line_start(fd: int, size_bytes: int) -> int:
    end = size_bytes
    while end > 0:
        start = max(0, end - BLOCK_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
