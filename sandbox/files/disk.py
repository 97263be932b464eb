"""Read and write the files behind descriptors that the opener handed over (broker side).

Owns how bytes move without blocking the loop. Knows no path, no rule and no protocol; a failed system call
leaves `Disk` as the FileError of the path it was told.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeAlias, TypeVar, TypeVarTuple

import trio

from sandbox.files.errors import NoSpace, OutcomeUnknown, from_errno, shown
from sandbox.kernel.files import STEP_BYTES, ReserveReached, require_room
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Data: TypeAlias = "bytes | bytearray | memoryview"
"""What can be written; a view must be one of bytes."""
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

INLINE_READ_BYTES = 64 * 1024
DISK_THREADS = 4  # of one session: its slow disk must not take the threads of the others


class Disk:
    """The threads in which one session's blocking file calls run."""

    def __init__(self, threads: int = DISK_THREADS, *, reserve_bytes: int = 0) -> None:
        """Write only while *reserve_bytes* of the file system stay free."""
        self._limiter = trio.CapacityLimiter(threads)
        self._reserve_bytes = reserve_bytes

    async def run(self, asked: str, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a blocking call in a thread; its OSError becomes the FileError of the path *asked*.

        Cancellation: waits for the call, whose descriptors must outlive it.
        """
        try:
            return await run_in_thread(call, *args, limiter=self._limiter)
        except ReserveReached as full:
            raise NoSpace(asked, f"{shown(asked)}: {full.strerror}", "ENOSPC") from full
        except _LeftBehind as left:
            name = errno.errorcode.get(left.errno or errno.EIO, "")
            raise OutcomeUnknown(asked, f"{shown(asked)}: {left.strerror}", name) from left
        except OSError as fault:
            raise from_errno(asked, fault.errno or errno.EIO) from fault

    async def write(self, asked: str, fd: int, offset: int, data: Data) -> None:
        """Write all of *data* at *offset*. Raises: NoSpace, TooLarge, WriteFailed."""
        await self.run(asked, _write_fully, fd, offset, data, self._reserve_bytes)

    async def fill(self, asked: str, fd: int, *pieces: Data) -> None:
        """Write *pieces*, one after the other from the beginning on, and flush them to the disk. Raises: as `write`."""
        await self.run(asked, _fill_durably, fd, pieces, self._reserve_bytes)

    async def append(self, asked: str, fd: int, data: Data) -> None:
        """Append all of *data* and flush it to the disk, or leave the file as it was.

        Raises: as `write`; OutcomeUnknown when it failed and what was written could not be taken back.
        """
        await self.run(asked, _append_durably, fd, data, self._reserve_bytes)

    async def read(self, asked: str, fd: int, offset: int, length: int) -> bytes:
        """Return up to *length* bytes at *offset*; fewer only at the end of the file."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            length = min(length, max(0, os.fstat(fd).st_size - offset))
        except OSError as fault:
            raise from_errno(asked, fault.errno or errno.EIO) from fault
        # A thread costs about as much as all the rest of a small read. RWF_NOWAIT reads what the page cache
        # holds and never waits for a disk, so it may run in the loop; the rest is the thread's.
        done = _read_cached(fd, offset, length) if length <= INLINE_READ_BYTES else b""
        if len(done) == length:
            return done
        return done + await self.run(asked, _read_fully, fd, offset + len(done), length - len(done))


def _read_cached(fd: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError:
        return b""  # not in the cache, or not on this file system; what is really wrong the thread will find
    return bytes(memoryview(buffer)[:count])


def _read_fully(fd: int, offset: int, length: int) -> bytes:
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break  # the file became shorter meanwhile
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _write_fully(fd: int, offset: int, data: Data, reserve_bytes: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        require_room(fd, len(view), reserve_bytes)
        count = os.pwrite(fd, view[:STEP_BYTES], offset)
        offset += count
        view = view[count:]


def _fill_durably(fd: int, pieces: Sequence[Data], reserve_bytes: int) -> None:
    require_room(fd, sum(map(len, pieces)), reserve_bytes)  # of all, before anything is written
    offset = 0
    for piece in pieces:
        _write_fully(fd, offset, piece, reserve_bytes)
        offset += len(piece)
    os.fsync(fd)


def _append_durably(fd: int, data: Data, reserve_bytes: int) -> None:
    """The bytes are taken back only while they are the last ones: those of another writer are never cut off."""
    view, before, written = memoryview(data).cast("B"), os.fstat(fd).st_size, 0
    try:
        while written < len(view):
            require_room(fd, len(view) - written, reserve_bytes)
            written += os.write(fd, view[written : written + STEP_BYTES])
        os.fsync(fd)
    except OSError as fault:
        if written and not _taken_back(fd, before, written):
            why = (
                f"{written} of {len(view)} bytes were appended, and then it failed ({os.strerror(fault.errno or 0)}); "
            )
            raise _LeftBehind(
                fault.errno, f"{why}they could not be taken back, and may not outlast a power cut"
            ) from fault
        raise


class _LeftBehind(OSError):
    """An append failed and some of it is in the file."""


def _taken_back(fd: int, before: int, written: int) -> bool:
    try:
        if os.fstat(fd).st_size == before + written:
            os.ftruncate(fd, before)
            return True
    except OSError:
        return False
    return False
