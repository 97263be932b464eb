"""Waiting for a message or a signal, whichever comes first. Child side, stdlib only.

A plain blocking read loses a signal that lands between the interpreter's last check and the system call; the
byte which the C handler writes into the pipe cannot be lost.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM)


class Wakeup:
    """The two things a serving process waits for: its socket, and SIGCHLD or SIGTERM."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over the handling of both signals in this process."""
        self._sock_fd = sock.fileno()
        self._signals_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._sock_fd, select.POLLIN)
        self._poll.register(self._signals_fd, select.POLLIN)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in _SIGNALS:
            signal.signal(signum, _noticed)

    def wait(self, timeout_s: float | None = None) -> tuple[bool, bytes]:
        """Wait, at most *timeout_s*; return whether the socket has something, and the numbers of the signals."""
        ready = {fd for fd, _ in self._poll.poll(None if timeout_s is None else timeout_s * 1000)}
        signals = os.read(self._signals_fd, 512) if self._signals_fd in ready else b""
        return self._sock_fd in ready, signals

    def poke(self) -> None:
        """Have `wait` return as if a child had ended. For other threads of this process."""
        with contextlib.suppress(BlockingIOError):  # full: it will return in any case
            os.write(self._write_fd, bytes((signal.SIGCHLD,)))


def _noticed(_signum: int, _frame: object) -> None:
    """Do nothing: the wake-up byte says it all; without a handler there would be none."""
