"""The blocking half of transfers: who closes a descriptor, and what worker threads do on one.

The functions here block and are called only through `run_in_thread`; chunk and hash are one hop, since a
hop costs about as much as writing 100 KiB.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
from collections.abc import Iterator

import attrs

from transfers.digest import Digest, advanced
from transfers.download_state import HashRest, Identity, Outcome, Read
from transfers.refusals import UnsizedSource
from transfers.upload_state import Write

_BUFFER_BYTES = 1024 * 1024
BURST_BUFFER_BYTES = 256 * 1024


@attrs.define(eq=False)
class Pin:
    """Owns one descriptor and closes it exactly once.

    While a thread works on it (`use`), closing only takes a note and the last user closes: the number could
    otherwise belong to another file in the middle of a write.
    """

    _fd: int
    _users: int = attrs.field(default=0, init=False)
    is_closed: bool = attrs.field(default=False, init=False)

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        """Give the descriptor out for the length of a `with` block.

        Raises:
            OSError: (EBADF) it is closed already; its number may be another file's by now.
        """
        if self.is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self._users += 1
        try:
            yield self._fd
        finally:
            self._users -= 1
            self._close_if_unused()

    def close(self) -> None:
        """Close the descriptor, now or when its last user is done."""
        if not self.is_closed:
            self.is_closed = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.is_closed and self._users == 0:
            # Linux frees the number even when close() fails, and what such a failure could tell about an
            # upload was told by fsync before the commit.
            with contextlib.suppress(OSError):
                os.close(self._fd)


def identify(fd: int, path: str) -> Identity:
    """Return what must stay the same about an open regular file.

    Raises:
        UnsizedSource: it says it is empty but is not (files of /proc); *path* is for the message.
    """
    identity = identity_of(fd)
    if identity.size_bytes == 0 and os.pread(fd, 1, 0):
        raise UnsizedSource(path)
    return identity


class Full(OSError):
    """There is no room for a chunk, and nothing of it was written or is left."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


def write_chunk(fd: int, write: Write, reserve_bytes: int) -> Digest:
    """Write one chunk whole, above the reserve, and return the running digest with it.

    Raises:
        Full: the part file is as it was.
        OSError: it is spoiled.
    """
    needed_bytes = len(write.data)
    free_bytes = _free_bytes(fd)
    if free_bytes - needed_bytes < reserve_bytes:
        raise Full(needed_bytes, free_bytes)
    rest, offset = memoryview(write.data), write.offset
    try:
        while rest:
            count = os.pwrite(fd, rest, offset)
            rest, offset = rest[count:], offset + count
    except OSError as fault:
        if fault.errno not in (errno.ENOSPC, errno.EDQUOT) or not _cut_back(fd, write.offset):
            raise
        raise Full(needed_bytes, _free_bytes(fd)) from fault
    return write.digest_after()


def _cut_back(fd: int, size_bytes: int) -> bool:
    try:
        os.ftruncate(fd, size_bytes)
    except OSError:
        return False  # then what is there is not known
    return True


def _free_bytes(fd: int) -> int:
    room = os.fstatvfs(fd)
    return room.f_bavail * room.f_frsize


def read_chunk(fd: int, read: Read) -> tuple[bytes, Outcome]:
    """Read one chunk, hash what the running digest lacks of it, and look at the file again."""
    data = _read_up_to(fd, read.length, read.offset)
    digest = read.before
    if read.hash_from is not None:
        digest = advanced(digest, memoryview(data)[read.hash_from - read.offset :])
    return data, Outcome(identity=identity_of(fd), length=len(data), digest=digest)


@attrs.frozen
class Burst:
    """The end of a burst: how far (*offset*) the bytes went, and why no further, as `Stop` says."""

    offset: int
    stop: Stop


class Stop(enum.Enum):
    """The reason why a burst ended."""

    DONE = enum.auto()
    FULL = enum.auto()
    CHANGED = enum.auto()
    GONE = enum.auto()


def send_burst(fd: int, span: tuple[int, int], known: Identity, descriptor: int) -> Burst:
    """Copy the bytes of *span* to a socket that does not block, as far as it takes them.

    The buffer stays in the cache of the processor. No byte goes out that was not read while the file was *known*.
    """
    offset, stop = span
    buffer = memoryview(bytearray(min(BURST_BUFFER_BYTES, max(1, stop - offset))))
    while offset < stop:
        piece = buffer[: os.preadv(fd, [buffer[: stop - offset]], offset)]
        if not piece or identity_of(fd) != known:
            return Burst(offset, Stop.CHANGED)
        while piece:
            try:
                count = os.write(descriptor, piece)
            except BlockingIOError:
                return Burst(offset, Stop.FULL)
            except OSError:  # the socket's own: there is no connection, whatever the kernel calls that
                return Burst(offset, Stop.GONE)
            offset, piece = offset + count, piece[count:]
    return Burst(offset, Stop.DONE)


def hash_rest(fd: int, rest: HashRest) -> Outcome:
    """Hash one piece of the file through one bounded buffer."""
    buffer = memoryview(bytearray(min(rest.length, _BUFFER_BYTES)))
    digest = rest.before.copy()
    offset, end = rest.hash_from, rest.hash_from + rest.length
    while offset < end:
        count = os.preadv(fd, [buffer[: end - offset]], offset)
        if count == 0:
            break  # the file shrank; the machine sees the short length
        digest.update(buffer[:count])
        offset += count
    return Outcome(identity=identity_of(fd), length=offset - rest.hash_from, digest=digest)


def _read_up_to(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:  # a regular file gives all at once, a network file system may not
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def identity_of(fd: int) -> Identity:
    """Return what the file's identity is now."""
    facts = os.fstat(fd)
    return Identity(size_bytes=facts.st_size, mtime_ns=facts.st_mtime_ns, ino=facts.st_ino, dev=facts.st_dev)
