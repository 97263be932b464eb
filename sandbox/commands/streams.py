"""The broker's ends of a command's pipes: what it says is kept up to a limit, what it is told is fed. Never waits."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import attrs

from sandbox.commands.terminal import END_OF_FILE, open_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.commands.terminal import Size

READ_BYTES = 64 * 1024  # what a pipe holds
REST_BYTES = 256 * 1024  # more than a pipe or a terminal holds: whoever still writes cannot keep the reader


@attrs.frozen
class Captured:
    """The first bytes of a stream, and how many there were."""

    data: bytes
    total_bytes: int

    @property
    def truncated(self) -> bool:
        """Tell whether there was more than was kept."""
        return self.total_bytes > len(self.data)


class Pipe:
    """A pipe with one end here (`fd`, non-blocking) and one for the command (`theirs`); -1 once closed."""

    def __init__(self, fd: int, theirs: int) -> None:
        """Own both ends."""
        self.fd = fd
        self.theirs = theirs
        os.set_blocking(fd, False)

    def close_theirs(self) -> None:
        """Close the command's end here, once the command has its copy."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Close what is open."""
        self.close_theirs()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Output(Pipe):
    """One stream out of the command: read to its end, kept up to a limit, counted beyond it."""

    def __init__(
        self,
        limit_bytes: int,
        on_data: Callable[[bytes], None] | None = None,
        ends: tuple[int, int] | None = None,
    ) -> None:
        """Open the pipe, or own *ends* of something like one; *on_data* is told every piece."""
        super().__init__(*(ends or os.pipe2(os.O_CLOEXEC)))
        self._on_data = on_data
        self._limit_bytes = limit_bytes
        self._data = bytearray()  # not a list of pieces: a million one-byte pieces weigh 50 MB
        self._total_bytes = 0

    def pump(self) -> bool:
        """Read what is there, at most READ_BYTES; return False at the end of the stream."""
        try:
            piece = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:  # how a terminal says that nobody has its other end
                raise
            return False
        self._total_bytes += len(piece)
        if piece and self._on_data is not None:
            self._on_data(piece)
        if (room := self._limit_bytes - len(self._data)) > 0:
            self._data += piece[:room]
        return bool(piece)

    def pump_rest(self) -> bool:
        """Read all that is there, at most REST_BYTES and a piece; return False at the end of the stream."""
        before, bound = -1, self._total_bytes + REST_BYTES
        while before < self._total_bytes < bound:
            before = self._total_bytes
            if not self.pump():
                return False
        return True

    def captured(self) -> Captured:
        """Return what was read so far."""
        return Captured(bytes(self._data), self._total_bytes)


class Input(Pipe):
    """One stream into the command: written as fast as it reads; closed at the end, or kept open for more."""

    def __init__(self, data: bytes | bytearray, *, stays: bool = False, ends: tuple[int, int] | None = None) -> None:
        """Open the pipe, or own *ends* of something like one; *stays*: more may be fed."""
        theirs, fd = ends or os.pipe2(os.O_CLOEXEC)
        super().__init__(fd, theirs)
        self._rest = memoryview(data)
        self._stays = stays

    @property
    def waiting_bytes(self) -> int:
        """How much the command has not taken yet."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray, *, last: bool) -> None:
        """Have *data* written after what still waits; *last*: then close."""
        self._rest = memoryview(bytes(self._rest) + data)
        self._stays = self._stays and not last

    def pump(self) -> bool:
        """Write what fits; return False when all is written or nobody reads it any more."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self.fd, self._rest) :]
            self._rest = memoryview(b"")  # an empty view would keep all that was written
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.EIO}:
                raise
            self._stays = False  # a program need not read its input
            self._rest = memoryview(b"")
        return False

    def rest(self) -> None:
        """There is nothing to write now: close, unless more may come."""
        if not self._stays:
            self.close()


class Streams:
    """A command's two or three pipes, or its terminal; without *stdin* it keeps the /dev/null its leader has."""

    def __init__(
        self,
        stdin: bytes | bytearray | None,
        output_bytes: int,
        *,
        stdin_stays: bool = False,
        terminal: Size | None = None,
        terminal_maker_fd: int = -1,
        on_data: Callable[[int, bytes], None] | None = None,
    ) -> None:
        """Open them all, or none. *on_data* is told every piece and the number of its stream."""
        tell = on_data or _told_nobody
        self.is_terminal = terminal is not None
        with contextlib.ExitStack() as opened:
            self.stdout = Output(
                output_bytes,
                lambda piece: tell(1, piece),
                None if terminal is None else open_terminal(terminal, terminal_maker_fd),
            )
            opened.callback(self.stdout.close)
            self.stderr = Output(output_bytes, lambda piece: tell(2, piece))
            opened.callback(self.stderr.close)
            self.stdin: Input | None = None
            if terminal is not None:
                self.stderr.close()  # a terminal has one way out
                # A descriptor of its own for the way in: an epoll set has one entry for each.
                self.stdin = Input(stdin or b"", stays=True, ends=(-1, os.dup(self.stdout.fd)))
            elif stdin is not None or stdin_stays:
                self.stdin = Input(stdin or b"", stays=stdin_stays)
            if self.stdin is not None:
                opened.callback(self.stdin.close)
            self.close = opened.pop_all().close

    @property
    def theirs(self) -> dict[int, int]:
        """The command's ends by the number they get in the command."""
        if self.is_terminal:
            return dict.fromkeys((0, 1, 2), self.stdout.theirs)
        outputs = {1: self.stdout.theirs, 2: self.stderr.theirs}
        return outputs if self.stdin is None else {0: self.stdin.theirs, **outputs}

    def feed(self, data: bytes | bytearray, *, last: bool) -> Input | None:
        """Have *data* written to the command; return the stream that now has something to write, None if it is closed.

        A terminal does not close: its program is told the end as a person tells it.
        """
        if self.stdin is None or self.stdin.fd < 0:
            return None
        if self.is_terminal:
            self.stdin.feed(data + END_OF_FILE if last else data, last=False)
        else:
            self.stdin.feed(data, last=last)
        return self.stdin

    @property
    def open_outputs(self) -> bool:
        """Whether more may come."""
        return self.stdout.fd >= 0 or self.stderr.fd >= 0

    def close_theirs(self) -> None:
        """Close the command's ends here, so that the command's own are the last."""
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe is not None:
                pipe.close_theirs()


def _told_nobody(_stream: int, _piece: bytes) -> None:
    """Do nothing with it."""
