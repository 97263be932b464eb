"""Whose process is it: numbers as this side sees them. Broker side.

A process in a pid namespace of its own knows itself and its children by numbers that mean something else, or
nobody, out here. So it hands over pidfds, which mean the same everywhere, and the kernel says the number.
"""

from __future__ import annotations

import os

_FIELD = b"\nPid:\t"


def pid_of(pidfd: int) -> int:
    """Return the number of the process behind *pidfd* in our pid namespace, or 0 when it is gone.

    Ownership: the descriptor stays the caller's.
    """
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    _, _, rest = text.partition(_FIELD)
    return max(0, int(rest.split(b"\n", 1)[0] or 0))


def take_pid(pidfd: int) -> int:
    """Return the number as `pid_of` does. Ownership: closes *pidfd*."""
    try:
        return pid_of(pidfd)
    finally:
        os.close(pidfd)
