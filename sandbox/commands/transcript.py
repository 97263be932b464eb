"""The log of what a command said, in frames: exact to the byte, in the order it came. Sans-IO.

The log is one sequence of bytes: a frame is four bytes of header (the stream, and how much of it follows) and the
data. Its newest part is in memory (`pending`), the rest wherever the owner wrote it (`written`). A reader finds its
place by checkpoints, about one every CHECKPOINT_BYTES, so that memory does not grow with how the streams alternate.

A *view* is one stream or both interleaved; a *cursor* counts the bytes of a view from the command's start.
What did not fit is counted as dropped, and from the first such byte on nothing of that stream's end is kept.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Literal

import attrs

from sandbox.protocol.commands import FRAME_HEADER, STREAM_BIT

View = Literal["stdout", "stderr", "both"]
STDOUT, STDERR = 1, 2
FRAME_BYTES = 64 * 1024
CHECKPOINT_BYTES = 64 * 1024


@attrs.frozen
class Point:
    """A frame's place in the log, and how much of each stream comes before it."""

    at: int
    stdout: int
    stderr: int

    def offset(self, view: View) -> int:
        """Return the cursor of *view* here."""
        return {"stdout": self.stdout, "stderr": self.stderr, "both": self.stdout + self.stderr}[view]


class Transcript:
    """The log of one command. `base` is where the kept part begins, `end` where the next frame will."""

    def __init__(self) -> None:
        """Begin an empty log."""
        self.base = Point(0, 0, 0)
        self.end = Point(0, 0, 0)
        self.dropped = {STDOUT: 0, STDERR: 0}
        self.written = 0
        self.pending = bytearray()
        self.sealed = False
        self._frame: tuple[int, int] | None = None  # of the open frame: its header's index in pending, its stream
        self._points = (array("Q", [0]), array("Q", [0]), array("Q", [0]))
        self._both = array("Q", [0])

    @property
    def size(self) -> int:
        """Bytes of the log that are kept, headers included."""
        return self.end.at - self.base.at

    def append(self, stream: int, data: bytes, room: int) -> int:
        """Take in *data* as far as *room* bytes of log allow; return how many of them it took.

        What does not fit is dropped, and so is all that follows: a gap in the middle would be no transcript.
        """
        before = self.end.at
        rest = memoryview(data)
        while rest and not self.sealed:
            take = self._fitting(stream, len(rest), room - (self.end.at - before))
            if take <= 0:
                self.sealed = True
                break
            self._extend(stream, rest[:take])
            rest = rest[take:]
        self.dropped[stream] += len(rest)
        return self.end.at - before

    def _fitting(self, stream: int, wanted: int, room: int) -> int:
        """Return how much may go into the open frame, or else into a new one."""
        if self._frame is not None and self._frame[1] == stream:
            held = len(self.pending) - self._frame[0] - FRAME_HEADER.size
            if held < FRAME_BYTES:
                return min(wanted, FRAME_BYTES - held, room)
        self._frame = None
        return min(wanted, FRAME_BYTES, room - FRAME_HEADER.size)

    def _extend(self, stream: int, data: memoryview) -> None:
        if self._frame is None:
            self._mark()
            self._frame = (len(self.pending), stream)
            self.pending += FRAME_HEADER.pack(0)
            self.end = attrs.evolve(self.end, at=self.end.at + FRAME_HEADER.size)
        index = self._frame[0]
        self.pending += data
        length = len(self.pending) - index - FRAME_HEADER.size
        FRAME_HEADER.pack_into(self.pending, index, length | (STREAM_BIT if stream == STDERR else 0))
        stdout, stderr = (len(data), 0) if stream == STDOUT else (0, len(data))
        self.end = Point(self.end.at + len(data), self.end.stdout + stdout, self.end.stderr + stderr)

    def _mark(self) -> None:
        """Remember where a frame begins, unless the last one remembered is near."""
        places, stdouts, stderrs = self._points
        if self.end.at - places[-1] >= CHECKPOINT_BYTES:
            places.append(self.end.at)
            stdouts.append(self.end.stdout)
            stderrs.append(self.end.stderr)
            self._both.append(self.end.stdout + self.end.stderr)

    def close_frame(self) -> int:
        """Let the next byte begin a new frame; return how much is pending, which from now on stays as it is."""
        self._frame = None
        return len(self.pending)

    def wrote(self, count: int) -> None:
        """Learn that the first *count* pending bytes are written."""
        del self.pending[:count]
        self.written += count
        if self._frame is not None:
            self._frame = (self._frame[0] - count, self._frame[1])

    def locate(self, view: View, cursor: int) -> Point:
        """Return the last known frame that begins at or before *cursor* of *view*, and not before `base`."""
        places, stdouts, stderrs = self._points
        offsets = {"stdout": stdouts, "stderr": stderrs, "both": self._both}[view]
        index = bisect_right(offsets, cursor) - 1
        return Point(places[index], stdouts[index], stderrs[index]) if index >= 0 else self.base

    def give_up(self) -> None:
        """Forget everything; what was kept is counted as before `base`."""
        self.pending.clear()
        self.written = self.end.at
        self.close_frame()
        self.sealed = True
        self.base = self.end
        self._points = tuple(array("Q", [value]) for value in attrs.astuple(self.end))  # type: ignore[assignment]
        self._both = array("Q", [self.end.offset("both")])


class Extract:
    """Collects bytes of one view from the log, fed in order from `position` on; jumps over what it does not need."""

    def __init__(self, view: View, cursor: int, max_bytes: int, start: Point) -> None:
        """Begin at *start*, which `Transcript.locate` gave for *cursor*."""
        self.position = start.at
        self.data = bytearray()
        self._view = view
        self._skip = cursor - start.offset(view)
        self._max_bytes = max_bytes
        self._header = b""
        self._left = 0  # of the frame that we are in
        self._ours = False

    @property
    def satisfied(self) -> bool:
        """Whether no more is wanted."""
        return len(self.data) >= self._max_bytes

    def feed(self, chunk: bytes) -> None:
        """Take in log bytes that begin at `position`."""
        start = index = 0
        while index < len(chunk) and not self.satisfied:
            index += self._take_header(chunk, index) if self._left == 0 else self._take_data(chunk, index)
        self.position += index - start

    def _take_header(self, chunk: bytes, index: int) -> int:
        piece = chunk[index : index + FRAME_HEADER.size - len(self._header)]
        self._header += piece
        if len(self._header) == FRAME_HEADER.size:
            (word,) = FRAME_HEADER.unpack(self._header)
            self._header = b""
            self._left = word & ~STREAM_BIT
            self._ours = self._view == "both" or self._view == ("stderr" if word & STREAM_BIT else "stdout")
        return len(piece)

    def _take_data(self, chunk: bytes, index: int) -> int:
        if not self._ours:
            return self._pass(self._left)  # its bytes need not even be read
        if self._skip:
            skipped = min(self._skip, self._left)
            self._skip -= skipped
            return self._pass(skipped)
        piece = chunk[index : index + min(self._left, self._max_bytes - len(self.data))]
        self.data += piece
        self._left -= len(piece)
        return len(piece)

    def _pass(self, count: int) -> int:
        self._left -= count
        return count
