"""A terminal for one command: opened by the broker, handed to the waiting leader as its three streams.

The leader makes it its controlling terminal after setsid, so nothing of the broker's own terminal, or of another
command's, is ever within reach of it. The device stays the broker's: under root no session can open it by name, and
what a program pushes into it (TIOCSTI) only its own reader gets.
"""

from __future__ import annotations

import fcntl
import os
import struct
import termios

import attrs

END_OF_FILE = b"\x04"
"""What a person types to end the input (VEOF); it works at the beginning of a line, as for a person."""


@attrs.frozen(kw_only=True)
class Size:
    """Of a terminal, in characters."""

    rows: int
    columns: int


def open_terminal(size: Size) -> tuple[int, int]:
    """Return a terminal's two ends, the broker's and the command's.

    Ownership: the caller's.
    """
    ours, theirs = os.openpty()
    os.fchmod(theirs, 0o600)
    resize(theirs, size)
    return ours, theirs


def resize(fd: int, size: Size) -> None:
    """Set the size and have the kernel tell the foreground processes (SIGWINCH)."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
