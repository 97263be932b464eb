"""A command's output as it is kept: the newest in memory, the rest in a file without a name, up to a quota.

`Spill` performs what `Transcript` decides: bytes arrive through `add`, are written in threads by `settle`, and are
read back by cursor at any time. `Quota` is what the spills of one session share. The files have no name from the
first moment on, so nothing of them is left whatever ends the broker.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.commands.excerpt import Ends
from sandbox.commands.transcript import STDERR, STDOUT, Extract, Point, Transcript, View
from sandbox.kernel.files import open_nameless, write_at
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

PENDING_BYTES = 256 * 1024
"""Of a running command's log in memory before it is written: one hop to a thread for four full pipes."""
KEPT_BYTES = 16 * 1024
"""Of an ended command's log that may stay in memory; longer ones go to their file."""
HEADERS_BYTES = 16
"""Of the frames that one read of a pipe can need."""
CHUNK_BYTES = 256 * 1024
THREADS = 2


@attrs.frozen(kw_only=True)
class Page:
    """A part of a view. `cursor` is where `data` really begins, `end` how much of the view there was by then."""

    data: bytes
    cursor: int
    end: int
    evicted_bytes: int
    dropped_bytes: int

    @property
    def next_cursor(self) -> int:
        """Return where the next part begins."""
        return self.cursor + len(self.data)


@attrs.define(eq=False)
class Quota:
    """The bytes that the spills of one session may keep together. `make_room` asks the owner to give some up."""

    limit_bytes: int
    make_room: Callable[[int], None]
    used_bytes: int = 0

    def room(self, wanted: int) -> int:
        """Return how much may be kept, after asking for *wanted*."""
        if self.used_bytes + wanted > self.limit_bytes:
            self.make_room(self.used_bytes + wanted - self.limit_bytes)
        return max(0, self.limit_bytes - self.used_bytes)


class Spill:
    """The output of one command, and whoever waits for more of it."""

    def __init__(self, inline_bytes: int, folder: str, quota: Quota, limiter: trio.CapacityLimiter) -> None:
        """Keep nothing yet: *inline_bytes* of each stream for an answer, the rest in *folder*."""
        self.stdout = Ends(inline_bytes)
        self.stderr = Ends(inline_bytes)
        self.newest = self.stdout
        self.broken = 0  # the errno of a disk that failed
        self.changed = trio.lowlevel.ParkingLot()
        self._folder = folder
        self._quota = quota
        self._limiter = limiter
        self._log = Transcript()
        self._fd = -1
        self._lock = trio.Lock()
        self._ended = False

    # --- what a command's pipes say

    def add(self, stream: int, data: bytes) -> None:
        """Take in what *stream* said; never waits."""
        self.newest = self.stdout if stream == STDOUT else self.stderr
        self.newest.add(data)
        room = self._quota.room(len(data) + HEADERS_BYTES)
        self._quota.used_bytes += self._log.append(stream, data, room)
        self.changed.unpark_all()

    @property
    def due(self) -> bool:
        """Whether `settle` has something to do."""
        return len(self._log.pending) >= PENDING_BYTES and not self.broken

    async def settle(self) -> None:
        """Write what is pending to the file. A disk that fails is told by `broken`; then the rest is dropped."""
        async with self._lock:
            count = self._log.close_frame()
            if not count or self.broken:
                return
            data = bytes(memoryview(self._log.pending)[:count])
            try:
                if self._fd < 0:
                    self._fd = await run_in_thread(open_nameless, self._folder, limiter=self._limiter)
                await run_in_thread(write_at, self._fd, data, self._log.written, limiter=self._limiter)
            except OSError as error:
                self.broken = error.errno or errno.EIO
                self._log.sealed = True
            else:
                self._log.wrote(count)

    def finish(self) -> None:
        """Learn that no more will come."""
        self._ended = True
        self.changed.unpark_all()

    async def tuck_away(self) -> None:
        """Have what is long in the file, now that it will be asked for seldom."""
        if len(self._log.pending) > KEPT_BYTES:
            await self.settle()

    # --- what readers ask

    def total(self, view: View) -> int:
        """Return how many bytes of *view* were kept since the start, also those given up since."""
        return self._log.end.offset(view)

    def dropped(self, view: View) -> int:
        """Return how many bytes of *view* were not kept."""
        dropped = self._log.dropped
        return {"stdout": dropped[STDOUT], "stderr": dropped[STDERR], "both": sum(dropped.values())}[view]

    async def read(self, view: View, cursor: int, max_bytes: int) -> Page:
        """Return up to *max_bytes* of *view* from *cursor* on; what was given up before that is counted."""
        async with self._lock:
            end, begin = self.total(view), self._log.base.offset(view)
            start = min(max(cursor, begin), end)
            extract = Extract(view, start, max_bytes, self._log.locate(view, start))
            if extract.position < self._log.written:
                await run_in_thread(_extract, extract, self._fd, self._log.written, limiter=self._limiter)
            if not extract.satisfied and extract.position >= self._log.written:
                extract.feed(bytes(memoryview(self._log.pending)[extract.position - self._log.written :]))
            return Page(
                data=bytes(extract.data),
                cursor=start,
                end=end,
                evicted_bytes=max(0, start - cursor),
                dropped_bytes=self.dropped(view),
            )

    def read_newest(self, view: View, cursor: int, max_bytes: int) -> Page:
        """As `read`, of what is in memory alone: for when the file is gone; what was in that counts as given up."""
        pending = bytes(self._log.pending)  # it begins with a frame
        held = Extract(view, 0, len(pending) + 1, Point(0, 0, 0))
        held.feed(pending)
        end = self.total(view)
        begin = end - len(held.data)
        start = min(max(cursor, begin), end)
        return Page(
            data=bytes(held.data[start - begin :][:max_bytes]),
            cursor=start,
            end=end,
            evicted_bytes=max(0, start - cursor),
            dropped_bytes=self.dropped(view),
        )

    @property
    def said(self) -> int:
        """Return how many bytes the command has said, kept or not."""
        return self.stdout.total_bytes + self.stderr.total_bytes

    async def wait_said(self, count: int) -> None:
        """Return when the command has said more than *count* bytes, or will say no more."""
        while self.said <= count and not self._ended:
            await self.changed.park()

    async def wait_more(self, view: View, cursor: int) -> None:
        """Return when *view* has more than *cursor* bytes, or nothing more will come."""
        while self.total(view) <= cursor and not self._ended:
            await self.changed.park()

    async def open_log(self, view: View, cursor: int) -> tuple[int, Point, int]:
        """Return a descriptor of the whole log for reading, a place in it before *cursor*, and where it ends.

        Ownership: the caller closes the descriptor.

        Raises:
            OSError: there is no file for it, or not all of it could be written.
        """
        await self.settle()
        if self.broken:
            raise OSError(self.broken, os.strerror(self.broken))
        async with self._lock:
            if self._fd < 0:
                self._fd = await run_in_thread(open_nameless, self._folder, limiter=self._limiter)
            # One of its own, so that whoever searches cannot write.
            reader = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            return reader, self._log.locate(view, cursor), self._log.written

    # --- giving up

    def give_up(self) -> None:
        """Forget all that is kept; the counts stay."""
        self._quota.used_bytes -= self._log.size
        self._log.give_up()
        self.close()

    @property
    def size(self) -> int:
        """Bytes of the quota that this output takes."""
        return self._log.size

    @property
    def in_use(self) -> bool:
        """Whether a reader is at work on it now."""
        return self._lock.locked()

    def close(self) -> None:
        """Close the file, and with it everything in it is gone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _extract(extract: Extract, fd: int, written: int) -> None:
    """Feed *extract* from the file until it has enough or the file has no more."""
    while not extract.satisfied and extract.position < written:
        chunk = os.pread(fd, min(CHUNK_BYTES, written - extract.position), extract.position)
        if not chunk:
            return
        extract.feed(chunk)
