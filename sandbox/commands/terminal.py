"""A terminal for one command: opened by the broker, handed to the waiting leader as its three streams.

The leader makes it its controlling terminal after setsid, so nothing of the broker's own terminal, or of another
command's, is ever within reach of it. It belongs to the terminals of the session, where that has its own, so that its
programs find it by name; the device stays the broker's: under root no session can open it, and what a program pushes
into it (TIOCSTI) only its own reader gets.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

import attrs

END_OF_FILE = b"\x04"
"""The key by which a person ends the input (VEOF); it works at the beginning of a line, as for a person."""


@attrs.frozen(kw_only=True)
class Size:
    """Of a terminal, in characters."""

    rows: int
    columns: int


_UNLOCK = 0x40045431  # TIOCSPTLCK
_OPEN_PEER = 0x5441  # TIOCGPTPEER, Linux 4.13: by the descriptor, whatever the name means here


def open_terminal(size: Size, maker_fd: int = -1) -> tuple[int, int]:
    """Return a terminal's two ends, the broker's and the command's.

    Args:
        size: of the terminal.
        maker_fd: the `ptmx` of a session's own terminals, opened O_PATH; -1 for the machine's.

    Ownership: the caller's.
    """
    ours, theirs = os.openpty() if maker_fd < 0 else _open_inside(maker_fd)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(os.close, theirs)
        on_failure.callback(os.close, ours)
        os.fchmod(theirs, 0o600)
        resize(theirs, size)
        on_failure.pop_all()
    return ours, theirs


def _open_inside(maker_fd: int) -> tuple[int, int]:
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    ours = os.open(f"/proc/self/fd/{maker_fd}", flags)
    try:
        fcntl.ioctl(ours, _UNLOCK, struct.pack("i", 0))
        return ours, fcntl.ioctl(ours, _OPEN_PEER, flags)
    except OSError:
        os.close(ours)
        raise


def resize(fd: int, size: Size) -> None:
    """Set the size and have the kernel tell the foreground processes (SIGWINCH)."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
