"""Part files and half-made copies whose owner died: found by their names, known by their locks (child side).

The owner of a part holds an exclusive flock(2) on it from its first moment until it has its name or is discarded.
The lock belongs to the open file, which the broker shares, and the kernel lets go of it when the last of them dies,
however they die. So a part that can be locked has no owner any more, and what cannot be locked is left alone. That
is true across sessions, and across brokers that share a directory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from sandbox.kernel.files import OPEN_DIRECTORY

MAX_DEPTH = 200  # deeper than any copy that is made here
HIDDEN_PREFIX = ".remote-broker-part-"
_IS_PART = re.compile(re.escape(HIDDEN_PREFIX) + "[0-9a-f]{24}").fullmatch
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def hidden_name() -> str:
    """Return a name for a part: random, so that nobody can put something else in its place."""
    return HIDDEN_PREFIX + os.urandom(12).hex()


def is_part(name: str) -> bool:
    """Tell whether this is the name of a part."""
    return name.startswith(HIDDEN_PREFIX) and _IS_PART(name) is not None


def own(fd: int, *, named: bool) -> bool:
    """Lock a part that was just made; False when somebody took it for ownerless first, which removes it.

    A file system without locks lets nobody lock, so that nobody removes anything there either.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not named or os.fstat(fd).st_nlink > 0


def take(parent: int, name: str) -> int | None:
    """Return a locked descriptor of an ownerless part of ours, or None. The caller closes it after the removal."""
    status = os.lstat(name, dir_fd=parent)
    if status.st_uid != os.geteuid() or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return None
    fd = os.open(name, _LOOK, dir_fd=parent)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # By now the owner may have given it its name: only what still has the hidden one is a leftover.
        if os.path.samestat(os.fstat(fd), os.lstat(name, dir_fd=parent)):
            return fd
    except OSError:
        pass  # it is owned, or gone, or there are no locks here: leave it alone
    os.close(fd)
    return None


def was_reclaimed(parent: int, name: str, *, trees: bool = True) -> bool:
    """Remove *name* if it is a part without an owner, and tell whether it is gone.

    With *trees*, a half-made copy of a tree as well, which may take its time.
    """
    if not is_part(name):
        return False
    try:
        fd = take(parent, name)
        if fd is None:
            return False
        try:
            _remove(parent, name, fd, trees=trees)
        finally:
            os.close(fd)
    except OSError:
        return False  # somebody else's directory, or it went away meanwhile
    return True


def reclaim(directory: int, limit: int, *, trees: bool) -> int:
    """Remove the ownerless parts among the first *limit* names of a directory; return how many parts are left."""
    with os.scandir(directory) as entries:
        names = [entry.name for _, entry in zip(range(limit), entries, strict=False) if is_part(entry.name)]
    return sum(not was_reclaimed(directory, name, trees=trees) for name in names)


def _remove(parent: int, name: str, fd: int, *, trees: bool) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if trees:
        empty(fd)
    os.rmdir(name, dir_fd=parent)


def empty(fd: int, depth: int = 0) -> None:
    """Remove everything in a directory that was ours alone; no link is followed."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    for name in os.listdir(fd):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
            os.unlink(name, dir_fd=fd)
            continue
        below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
        try:
            os.fchmod(below, 0o700)  # a copy has the modes of what it copies, which may be read-only
            empty(below, depth + 1)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=fd)
