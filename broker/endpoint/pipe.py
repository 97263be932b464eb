"""The pipe of MCP over stdio: lines of bytes on descriptors that nothing else in the process can reach.

While it is claimed, descriptor 0 reads end-of-file and descriptor 1 goes to standard error, so that a stray
`print`, or a child, can neither eat a message nor break one. Reading and writing wait for the descriptor
inside trio instead of in a thread: a thread blocked on standard input could not be cancelled. Knows no MCP.
"""

from __future__ import annotations

import fcntl
import os
import select
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs
import trio

READ_BYTES = 64 * 1024


class LineTooLong(Exception):
    """A line is longer than the limit; it has been skipped."""


@attrs.define(eq=False)
class Wire:
    """The two descriptors. One task reads; any may write, a line at a time."""

    _in_fd: int
    _out_fd: int
    _max_line_bytes: int
    _writing: trio.Lock = attrs.field(init=False, factory=trio.Lock)

    async def lines(self) -> AsyncIterator[bytes | LineTooLong]:
        """Yield each line that is not blank, without its end, until end-of-file."""
        rest, skipping = bytearray(), False
        while data := await self._read():
            head, newline, tail = data.partition(b"\n")
            while newline:
                rest += head
                if skipping or len(rest) > self._max_line_bytes:
                    yield LineTooLong()
                elif line := rest.strip():
                    yield bytes(line)
                rest, skipping = bytearray(), False
                head, newline, tail = tail.partition(b"\n")
            rest += head
            if len(rest) > self._max_line_bytes:
                rest, skipping = bytearray(), True
        if skipping:
            yield LineTooLong()
        elif line := rest.strip():
            yield bytes(line)

    async def write_line(self, line: bytes) -> None:
        """Write one line, whole, after the ones before it.

        Raises:
            BrokenPipeError: the reader is gone.
        Cancellation: a line that was begun may stay incomplete, so only the end of the process cancels it.
        """
        async with self._writing:
            view = memoryview(line + b"\n")
            while view:
                await _wait(trio.lowlevel.wait_writable, self._out_fd)
                # No more than a pipe takes at once when it is writable at all: the descriptor is shared with
                # whoever started us, so it stays in blocking mode, and a larger write could block the loop.
                view = view[os.write(self._out_fd, view[: select.PIPE_BUF]) :]

    async def _read(self) -> bytes:
        await _wait(trio.lowlevel.wait_readable, self._in_fd)
        return os.read(self._in_fd, READ_BYTES)


async def _wait(wait: Callable[[int], Awaitable[None]], fd: int) -> None:
    try:
        await wait(fd)
    except PermissionError:
        # epoll refuses regular files, which are always ready: `broker < requests.jsonl > answers.jsonl`
        await trio.lowlevel.checkpoint()


@contextmanager
def claim_stdio(*, max_line_bytes: int) -> Iterator[Wire]:
    """Take standard input and output for the protocol; give them back on the way out."""
    with ExitStack() as restore:
        yield Wire(_move_away(0, restore), _move_away(1, restore), max_line_bytes)


def _move_away(fd: int, restore: ExitStack) -> int:
    """Duplicate *fd* out of the standard range, close-on-exec, and put something harmless in its place."""
    private = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    restore.callback(os.close, private)
    restore.callback(os.dup2, private, fd)
    if fd == 0:
        harmless = os.open(os.devnull, os.O_RDONLY)
        os.dup2(harmless, 0)
        os.close(harmless)
    else:
        os.dup2(2, fd)
    return private
