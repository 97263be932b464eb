"""Room on a file system, and the part of it that must stay free (both sides, stdlib only)."""

from __future__ import annotations

import errno
import os

STEP_BYTES = 8 * 1024 * 1024  # written between two looks at the room


class ReserveReached(OSError):
    """What is to be written would leave less room than must stay free; it was not written."""

    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, "it would take of what must stay free of its file system")


def free_bytes(fd: int) -> int:
    """How much an unprivileged user may still write where *fd* is."""
    room = os.fstatvfs(fd)
    return room.f_bavail * room.f_frsize


def require_room(fd: int, needed_bytes: int, reserve_bytes: int) -> None:
    """Raise ReserveReached where *needed_bytes* more do not fit above the reserve. No reserve: the disk decides."""
    if needed_bytes and reserve_bytes and free_bytes(fd) - needed_bytes < reserve_bytes:
        raise ReserveReached
