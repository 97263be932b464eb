"""The socket of a connection, lent to who sends a long body of known length without Hypercorn's turns for each piece.

The head and the end of the answer go through Hypercorn as ever. h11 is told the length of what goes past it, as its
own manual does for sendfile(2). Bytes are written by a thread that never waits: it stops where the socket is full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import IPPROTO_TCP, TCP_USER_TIMEOUT
from typing import Any, TypeVar

import attrs
import h11
import trio

from sandbox.threads import run_in_thread

T = TypeVar("T")
WITHOUT_END = 0
"""As TCP_USER_TIMEOUT, which is in milliseconds."""


class ConnectionGone(Exception):
    """There is no connection any more."""


@attrs.frozen
class _Elsewhere:
    """Stands for bytes that are written elsewhere; h11 asks only for their number."""

    _length: int

    def __len__(self) -> int:
        return self._length


@attrs.frozen(eq=False)
class BodySocket:
    """One connection's socket, between the head and the end of an answer with Content-Length."""

    _socket: trio.socket.SocketType
    _http: Callable[[], h11.Connection]

    @contextmanager
    def patient(self, rest_s: float) -> Iterator[None]:
        """Leave it to the block how long the client may take nothing: the kernel would break the connection unasked.

        Afterwards the client has at least *rest_s* seconds for what the kernel still holds of the body, and the
        connection keeps that patience.
        """
        usual_ms = self._let_stall(WITHOUT_END)
        try:
            yield
        finally:
            self._let_stall(max(usual_ms, int(rest_s * 1000)))

    def _let_stall(self, milliseconds: int) -> int:
        """Set how long data may wait for the client; return what it was."""
        try:
            before: int = self._socket.getsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT)
            self._socket.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, milliseconds)
        except OSError:  # it is closed: nothing waits any more
            return WITHOUT_END
        return before

    def announce(self, length: int) -> None:
        """Say that so many bytes of the body are written here."""
        elsewhere: Any = _Elsewhere(length)  # h11 wants bytes, and asks them for their number alone
        self._http().send_with_data_passthrough(h11.Data(data=elsewhere))

    async def burst(self, write: Callable[[int], T], limiter: trio.CapacityLimiter) -> T:
        """Run *write* in a thread, with a descriptor of the socket; it must not wait.

        The descriptor is the thread's own: the connection may be closed meanwhile, and its number be another's.
        Raises: ConnectionGone.
        """
        try:
            descriptor = os.dup(self._socket.fileno())
        except OSError as error:
            raise ConnectionGone from error
        try:
            return await run_in_thread(write, descriptor, limiter=limiter)
        finally:
            os.close(descriptor)

    async def wait_writable(self) -> None:
        """Return when the socket takes more. Raises: ConnectionGone."""
        try:
            await trio.lowlevel.wait_writable(self._socket)
        except (trio.ClosedResourceError, OSError) as error:
            raise ConnectionGone from error
