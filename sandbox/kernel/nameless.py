"""Files that have no name from the first moment on: nothing of them is left, whatever ends the broker."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def open_nameless(folder: str) -> int:
    """Open a file that has no name, in *folder*, which is made if need be.

    Raises:
        OSError: it cannot be had.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
    except OSError:  # a file system without such files: there for an instant under a random name
        fd, path = tempfile.mkstemp(dir=folder)
        with contextlib.suppress(FileNotFoundError):  # somebody tidied up: it has no name, which is what we want
            os.unlink(path)
        return fd


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of *data* from *at* on. Raises OSError."""
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, at)
        rest = rest[count:]
        at += count


def punch(fd: int, at: int, count: int) -> None:
    """Give the disk back what is no longer needed; a file system that cannot do it keeps it until the end."""
    flags = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    _libc.fallocate(fd, flags, ctypes.c_long(at), ctypes.c_long(count))
