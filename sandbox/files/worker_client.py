"""A worker inside the walls, as the broker sees it: started, spoken to, heard, ended (broker side).

Owns its socket and its pidfd. Knows nothing of what a job is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

import attrs
import trio

from sandbox import wire
from sandbox.files.errors import from_errno, is_refusal
from sandbox.files.opener_client import WORKER
from sandbox.polled import close_descriptor, close_socket, receive_from, wait_ended

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from sandbox.files.opener_client import Exchange
    from sandbox.protocol.files import FromWorker, Nothing


@attrs.define(eq=False)
class WorkerProcess:
    """One process at one piece of work. *asked*: what the caller calls the path, for an error's text."""

    asked: str
    _sock: socket.socket
    _pidfd: int

    @classmethod
    async def start(cls, exchange: Exchange, asked: str) -> Self:
        """Have the opener fork a worker. Raises: FileError, as the opener. Ownership: the caller ends it."""
        nothing: Nothing = {}
        sock_fd, pidfd = (await exchange.ask(WORKER, asked, nothing)).fds
        sock = socket.socket(fileno=sock_fd)
        sock.setblocking(False)
        return cls(asked, sock, pidfd)

    def send(self, message: Mapping[str, object], *fds: int) -> None:
        """Ask for something: one thing at a time, so there is always room.

        Raises: ConnectionError when it has ended; FileError.
        """
        try:
            wire.send(self._sock, message, fds)
        except ConnectionError:
            raise
        except OSError as fault:  # too many descriptors under way
            raise from_errno(self.asked, fault.errno or errno.EIO) from fault

    async def hear(self) -> FromWorker | None:
        """Wait for what it says next; None when it has ended. Raises: WireBroken, trio.ClosedResourceError."""
        received = await receive_from(self._sock, wire.receive)
        if received is None:
            return None
        said: Any
        said, came = received
        for fd in came:
            os.close(fd)  # a worker sends none
        if "refused" in said and not is_refusal(said):
            raise wire.WireBroken("an answer came that no worker of ours gives")
        heard: FromWorker = said
        return heard

    def has_exited(self) -> bool:
        """Tell whether the process is gone, without waiting."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def end(self) -> None:
        """End the process, stopped or not, at once; the kernel reaps it."""
        close_socket(self._sock)
        self._kill()
        os.close(self._pidfd)

    async def end_tidily(self, tidy_s: float) -> None:
        """Give it *tidy_s* seconds to end by itself, then end it; return when it is gone."""
        close_socket(self._sock)  # which a worker takes for the wish that it stop
        try:
            if tidy_s:
                with trio.move_on_after(tidy_s):
                    await wait_ended(self._pidfd)
            if self._kill():
                await wait_ended(self._pidfd)
        finally:
            close_descriptor(self._pidfd)

    def _kill(self) -> bool:
        # It is gone already, or it is not ours to kill: then it ends by its socket, or by SIGALRM at its deadline.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            return True
        return False
