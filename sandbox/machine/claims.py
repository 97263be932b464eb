"""User ids that running brokers of root have chosen: one file of this machine that they lock parts of.

An idle broker has no process of its session user, so nothing else tells another broker that the id is taken. A claim
ends with the descriptor that holds it, however its broker ends; what is left is a file that says nothing. Brokers
with one home share its user: what is theirs is the same. Blocking, for moments; runs once, at start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandbox.errors import UserUnavailable

if TYPE_CHECKING:
    from types import TracebackType

LOCK_FILE = Path("/run/remote-broker.uids")
# The range systemd uses for DynamicUser=: no distribution hands these out.
DYNAMIC_UIDS = range(61184, 65520)
_RECORD_BYTES = 8  # for each id: a digest of the home of who has it
_REMEDY = "name a user in sandbox.unprivileged_user, who needs no claim"


class Claims:
    """Claims of one broker; a context manager whose end gives them up. Opens nothing before it is asked for."""

    def __init__(self, lock_file: Path = LOCK_FILE) -> None:
        """Use *lock_file*: the same one for all brokers that could choose the same ids."""
        self._lock_file = lock_file
        self._fd = -1

    def __enter__(self) -> Self:
        """Hold nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give up everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def take(self, uid: int, home: Path) -> bool:
        """Claim *uid*, one of DYNAMIC_UIDS, until the end; return whether no broker with another home has it.

        Raises:
            UserUnavailable: claims cannot be made on this machine.
        """
        try:
            if self._fd < 0:
                self._fd = _open(self._lock_file)
            return self._take(DYNAMIC_UIDS.index(uid) * _RECORD_BYTES, _mark(home))
        except OSError as error:
            why = f"{self._lock_file}: {error.strerror or error}"
            raise UserUnavailable(f"no user id can be claimed: {why}; {_REMEDY}") from error

    def _take(self, place: int, mark: bytes) -> bool:
        if self._lock(place, fcntl.F_WRLCK, fcntl.F_OFD_SETLK):
            os.pwrite(self._fd, mark, place)
            return self._lock(place, fcntl.F_RDLCK, fcntl.F_OFD_SETLK)  # in one step: nobody gets in between
        self._lock(place, fcntl.F_RDLCK, fcntl.F_OFD_SETLKW)  # at most until the other has left its mark
        if os.pread(self._fd, _RECORD_BYTES, place) == mark:
            return True
        self._lock(place, fcntl.F_UNLCK, fcntl.F_OFD_SETLK)
        return False

    def _lock(self, place: int, kind: int, command: int) -> bool:
        # Of the open file, not of the process: closing another descriptor of the file gives nothing up.
        try:
            fcntl.fcntl(self._fd, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, place, _RECORD_BYTES, 0))
        except BlockingIOError:
            return False
        return True


def _mark(home: Path) -> bytes:
    return hashlib.blake2b(os.fsencode(os.path.realpath(home)), digest_size=_RECORD_BYTES).digest()


def _open(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        os.close(fd)
        raise OSError("it is not a file of this broker's user alone")
    return fd
