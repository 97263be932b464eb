"""Descriptors that tasks wait for, and how they are closed. Outside the walls.

The kernel polls a number together with the file behind it. A number that is closed while somebody else has the file (a
duplicate, or a process that is just being started) is polled on, and what happens to that file then wakes whoever waits
for the next file of that number. So trio is told to forget a descriptor before that is closed. One that somebody
closes without telling trio is enough to wake the wrong task; so a task that wakes looks whether it was meant.
"""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

T = TypeVar("T")


def close_socket(sock: socket.socket) -> None:
    """Close a socket that tasks have waited for; who still does gets trio.ClosedResourceError. May be called again."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
    sock.close()


@contextlib.contextmanager
def closing_socket(sock: socket.socket) -> Iterator[None]:
    """Close *sock* at the end, as `close_socket` does."""
    try:
        yield
    finally:
        close_socket(sock)


def close_descriptor(fd: int) -> None:
    """Close a descriptor that tasks have waited for; who still does gets trio.ClosedResourceError."""
    trio.lowlevel.notify_closing(fd)
    os.close(fd)


async def receive_from(sock: socket.socket, receive: Callable[[socket.socket], T]) -> T:
    """Wait for what *receive* gets from a non-blocking socket. Raises: trio.ClosedResourceError; as *receive*."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        with contextlib.suppress(BlockingIOError):  # woken for nothing
            return receive(sock)


async def wait_ended(pidfd: int) -> None:
    """Wait until the process behind *pidfd* has exited. One task at a time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    await trio.lowlevel.wait_readable(pidfd)
    while not poll.poll(0):
        await trio.lowlevel.wait_readable(pidfd)
