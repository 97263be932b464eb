"""The broker's ends of a command's pipes: what it says is kept up to a limit, what it is told is fed. Never waits."""

from __future__ import annotations

import contextlib
import os

import attrs

READ_BYTES = 64 * 1024  # what a pipe holds


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

    def __init__(self, limit_bytes: int) -> None:
        """Open the pipe."""
        super().__init__(*os.pipe2(os.O_CLOEXEC))
        self._limit_bytes = limit_bytes
        self._data = bytearray()  # not a list of pieces: a million one-byte pieces weigh 50 MB
        self._total_bytes = 0

    def pump(self) -> bool:
        """Read what is there, at most READ_BYTES; return False at the end of the stream."""
        try:
            piece = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        self._total_bytes += len(piece)
        if (room := self._limit_bytes - len(self._data)) > 0:
            self._data += piece[:room]
        return bool(piece)

    def captured(self) -> Captured:
        """Return what was read so far."""
        return Captured(bytes(self._data), self._total_bytes)


class Input(Pipe):
    """One stream into the command: written as fast as it reads, closed at the end."""

    def __init__(self, data: bytes) -> None:
        """Open the pipe."""
        theirs, fd = os.pipe2(os.O_CLOEXEC)
        super().__init__(fd, theirs)
        self._rest = memoryview(data)

    def pump(self) -> bool:
        """Write what fits; return False when all is written or nobody reads it any more."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self.fd, self._rest) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # a program need not read its input
            return False
        return False


class Streams:
    """A command's two or three pipes; without *stdin* it keeps the /dev/null its leader has."""

    def __init__(self, stdin: bytes | None, output_bytes: int) -> None:
        """Open them all, or none."""
        with contextlib.ExitStack() as opened:
            self.stdout = Output(output_bytes)
            opened.callback(self.stdout.close)
            self.stderr = Output(output_bytes)
            opened.callback(self.stderr.close)
            self.stdin = None if stdin is None else Input(stdin)
            if self.stdin is not None:
                opened.callback(self.stdin.close)
            self.close = opened.pop_all().close

    @property
    def theirs(self) -> dict[int, int]:
        """The command's ends by the number they get in the command."""
        outputs = {1: self.stdout.theirs, 2: self.stderr.theirs}
        return outputs if self.stdin is None else {0: self.stdin.theirs, **outputs}

    @property
    def open_outputs(self) -> bool:
        """Whether more may come."""
        return self.stdout.fd >= 0 or self.stderr.fd >= 0

    def close_theirs(self) -> None:
        """Close the command's ends here, so that the command's own are the last."""
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe is not None:
                pipe.close_theirs()
