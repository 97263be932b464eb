"""One slow piece of work in a process of its own: what it says, and when it must stop (child side, stdlib only).

A worker serves one job and ends. It is forked from the opener, inside the same walls and under the same user, so
that neither a huge tree nor a regular expression that never ends can stall an open. The deadline is twofold: work
that looks at the clock stops politely and says so; work that cannot (an expression that backtracks holds the
interpreter) is ended by the kernel, through SIGALRM, soon after. The broker's leaving is a reason to stop as well.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import time

from sandbox import wire
from sandbox.protocol.files import TO_WORKER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from typing import Any

    from sandbox.inside.blocked_paths import Search
    from sandbox.protocol.files import AnyJob, Finding, Finished, Hashed, Refusal, Wish

MEMORY_BYTES = 512 * 1024 * 1024
NICE = 5  # a search of everything must not slow the machine's other work down
LOOK_S = 0.05  # between two looks at the broker's end of the socket
FLUSH_S = 0.2  # what was found waits no longer, so that little is lost when the kernel ends the work
PIECE_BYTES = 48 * 1024


class Stop(Exception):
    """The work ends here; `why` is time, left, or the name of a limit."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Job:
    """The worker's side of one job: findings go out in pieces, counts with them."""

    def __init__(self, sock: socket.socket, spec: AnyJob, search: Search | None = None) -> None:
        """Begin. *search*: what the session's birth knows of closed names, if it looked for any."""
        self.search = search
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        now = time.monotonic()
        self._deadline = now + spec["timeout_s"]
        self._look_at = now
        self._flush_at = now + FLUSH_S
        self._piece: list[Finding] = []
        self._piece_bytes = 0
        self._items_left: int = spec.get("max_items", 1 << 62)
        self._bytes_left: int = spec.get("max_bytes", 1 << 62)
        self.counts: dict[str, int] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + by

    def tick(self) -> None:
        """Look at the clock and, now and then, at the broker. Raises: Stop."""
        now = time.monotonic()
        if now >= self._look_at:
            self.look(now)

    def look(self, now: float) -> None:
        """Look at the clock and at the broker at once. Raises: Stop."""
        if now >= self._deadline:
            raise Stop("time")
        self._look_at = min(now + LOOK_S, self._deadline)
        if self._poll.poll(0):
            raise Stop("left")
        if now > self._flush_at:
            self.flush()

    def wait_ready(self, fd: int, events: int) -> None:
        """Wait until *fd* is ready for one of poll's *events*, as long as there is time. Raises: Stop."""
        poll = select.poll()
        poll.register(fd, events)
        poll.register(self._sock, select.POLLIN)
        ready: list[tuple[int, int]] = []
        while not ready:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise Stop("time")
            ready = poll.poll(1000 * min(left_s, 3600) + 1)
        if any(number == self._sock.fileno() for number, _ in ready):
            raise Stop("left")

    def emit(self, item: Finding, size_bytes: int) -> None:
        """Report a finding of about *size_bytes*. Raises: Stop when it is one more than was asked for."""
        if self._items_left <= 0:
            raise Stop("count")
        if self._bytes_left < size_bytes:
            raise Stop("size")
        self._items_left -= 1
        self._bytes_left -= size_bytes
        self._piece.append(item)
        self._piece_bytes += size_bytes
        if self._piece_bytes > PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Send what was found since the last time, and the counts. Raises: Stop when nobody listens."""
        try:
            wire.send(self._sock, {"piece": self._piece, "counts": self.counts})
        except ConnectionError:
            raise Stop("left") from None
        self._piece, self._piece_bytes = [], 0
        self._flush_at = time.monotonic() + FLUSH_S

    def next_wish(self) -> Wish:
        """Wait for what the broker asks next, of work that it asks for bit by bit.

        Raises: Stop when it has left; OSError for what is no wish.
        """
        received = wire.receive(self._sock)
        if received is None:
            raise Stop("left")
        message: Any
        message, fds = received
        for fd in fds:
            os.close(fd)
        if len(fds) not in TO_WORKER["hashing"].get(next(iter(message), ""), ()):
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        wish: Wish = message
        return wish

    def tell(self, message: Hashed) -> None:
        """Answer a wish. Raises: Stop when nobody listens."""
        try:
            wire.send(self._sock, message)
        except ConnectionError:
            raise Stop("left") from None

    def finish(self, message: Finished | Refusal) -> None:
        """Send the last message."""
        try:
            self.flush()
            wire.send(self._sock, {"counts": self.counts, **message})
        except (Stop, ConnectionError):
            return  # nobody waits for it any more


def limit_worker(timeout_s: float, grace_s: float) -> None:
    """Bound what this process may take: time, by the kernel, and memory; and let others go first."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s + grace_s)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    os.nice(NICE)
