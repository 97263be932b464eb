"""A tar stream between a worker and a pipe: counted, bounded, compressed where asked (child side, stdlib only).

Neither side waits longer for the other than the job may take, and both end when the broker leaves. However much goes
through, memory is one buffer.
"""

from __future__ import annotations

import errno
import os
import select
import zlib

from sandbox.inside.worker.job import Stop
from sandbox.inside.worker.tar import bad
from sandbox.kernel.files import Refused

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.inside.worker.job import Job

CHUNK_BYTES = 256 * 1024
GZIP = 31  # zlib's window for a gzip header, which then bears no time
GZIP_LEVEL = 6


class Outlet:
    """The way out of an archive. `put` bounds the bytes of the stream itself; `inside`: a file is half written."""

    def __init__(self, job: Job, fd: int, *, max_bytes: int, gzip: bool) -> None:
        os.set_blocking(fd, False)
        self._job = job
        self._fd = fd
        self._left = self._limit = max_bytes
        self._buffer = bytearray()
        self._gzip = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP) if gzip else None
        self._begun = False
        self.inside = False

    @property
    def taken(self) -> int:
        """The bytes of the stream so far."""
        return self._limit - self._left

    def require(self, size: int) -> None:
        """Refuse what would make the stream longer than its limit, before any of it is written."""
        if size > self._left:
            raise Refused("too_large", errno.EFBIG, f"its archive has more than archive_max_bytes, {self._limit} bytes")

    def put(self, data: bytes | memoryview) -> None:
        """Add to the stream."""
        self.require(len(data))
        self._left -= len(data)
        self._push(data if self._gzip is None else self._gzip.compress(data))

    def finish(self) -> None:
        """Write all there still is."""
        if self._gzip is not None:
            self._push(self._gzip.flush())
        self._write(self._buffer)
        self._buffer.clear()

    def break_off(self, mark: bytes) -> None:
        """End half-way. Where what went out might pass for whole, *mark* follows it; if nothing did, nothing does."""
        if not self._begun:
            return
        if self._gzip is None and not self.inside:
            self._push(mark)
        self._write(self._buffer)

    def _push(self, data: bytes | memoryview) -> None:
        if len(self._buffer) + len(data) <= CHUNK_BYTES:
            self._buffer += data
            return
        self._write(self._buffer)
        self._buffer.clear()
        self._write(data)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            at = 0
            self._begun = True
            while at < len(view):
                self._job.tick()
                try:
                    at += os.write(self._fd, view[at:])
                except BlockingIOError:
                    self._job.wait_ready(self._fd, select.POLLOUT)
                except BrokenPipeError:
                    raise Stop("left") from None


class Inlet:
    """The way in of an archive. More than `max_bytes` of it, as it comes or uncompressed, are refused."""

    def __init__(self, job: Job, fd: int, *, max_bytes: int, gzip: bool) -> None:
        os.set_blocking(fd, False)
        self._job = job
        self._fd = fd
        self._limit = max_bytes
        self._pieces = self._inflated() if gzip else self._raw()
        self._piece = memoryview(b"")
        self._taken = 0
        if not gzip:
            self._require_plain()

    def exactly(self, size: int) -> bytes:
        """Return the next *size* bytes. Raises: Refused when there are fewer."""
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Give the next *size* bytes as they come. Raises: Refused when there are fewer."""
        while size:
            if not (self._piece or self._fill()):
                raise bad("it ends before its end: part of it is missing")
            piece, self._piece = self._piece[:size], self._piece[size:]
            size -= len(piece)
            yield piece

    def rest(self) -> Iterator[memoryview]:
        """Give what is left, to the end of the stream."""
        while self._piece or self._fill():
            piece, self._piece = self._piece, memoryview(b"")
            yield piece

    def _require_plain(self) -> None:
        self._fill()
        if bytes(self._piece[:2]) == b"\x1f\x8b":
            raise bad("it is compressed with gzip; say so (tar.gz), or send it uncompressed")

    def _fill(self) -> bool:
        """Get the next piece of the stream; False at its end."""
        piece = next(self._pieces, b"")
        self._taken += len(piece)
        self._require(self._taken)
        self._piece = memoryview(piece)
        return bool(piece)

    def _require(self, taken: int) -> None:
        if taken > self._limit:
            raise Refused("too_large", errno.EFBIG, f"it has more than archive_max_bytes, {self._limit} bytes")

    def _raw(self) -> Iterator[bytes]:
        while piece := self._read():
            yield piece

    def _read(self) -> bytes:
        while True:
            self._job.tick()
            try:
                return os.read(self._fd, CHUNK_BYTES)
            except BlockingIOError:
                self._job.wait_ready(self._fd, select.POLLIN)

    def _inflated(self) -> Iterator[bytes]:
        """Uncompress, one bounded piece at a time, to the end of the one gzip stream there may be."""
        packed, came, machine = b"", 0, zlib.decompressobj(GZIP)
        while not machine.eof:
            try:
                piece = machine.decompress(packed, CHUNK_BYTES)
            except zlib.error as fault:
                raise bad(f"it is no gzip stream, or a damaged one ({fault})") from None
            packed = machine.unconsumed_tail
            if piece:
                yield piece
            elif not (packed or machine.eof):
                packed = self._read()
                came += len(packed)
                self._require(came)
                if not packed:
                    raise bad("it ends before its end: part of it is missing")
        if machine.unused_data or self._read():
            raise bad("something follows its gzip stream")
