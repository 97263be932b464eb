"""Archives of directories, streamed from and to a worker inside the walls (broker side).

Owns the pipe and the task that minds the worker. The bytes pass through the broker and are nowhere in it: what the
one side does not take, the other does not make. Knows no rule; the caller decided on the directory, and *spec* is
what the worker reads.

    async with archives.open_pack(found, spec, timeout_s=600) as packing:
        async for piece in packing:
            await send(piece)
    packing.summary
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.files.errors import FileError, OpenerGone, TookTooLong, shown
from sandbox.files.trees import PACK, UNPACK, TreeWork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Never, Self

    from sandbox.files.names import EntryPlace
    from sandbox.files.opener_client import Exchange
    from sandbox.files.pinned import Resolved
    from sandbox.files.trees import TreeJob, Work
    from sandbox.protocol.files import Pack, Packed, Unpack, UnpackBounded

PIPE_BYTES = 1024 * 1024
PIECE_BYTES = 256 * 1024
WORKERS = 16  # of one session at a time, of which those of slow clients do little
TIDY_S = 10.0  # for a worker to remove a half-unpacked tree when its caller has left


@attrs.frozen(kw_only=True)
class Summary:
    """The content of an archive, counted.

    `content_bytes` are those of its files, or of its whole stream when it was packed. `left_out` are (relative path,
    why) of the first few of `left_out_count` names.
    """

    files: int
    directories: int
    content_bytes: int
    left_out_count: int
    left_out: tuple[tuple[str, str], ...]


class _AtWork:
    """A worker at its job, and our end of its pipe. Leaving the context ends both."""

    def __init__(self, asked: str, pipe: trio.lowlevel.FdStream) -> None:
        self.asked = asked
        self.pipe = pipe
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.work: Work[Packed, Never] | None = None
        self.error: FileError | None = None

    def result(self) -> Summary:
        """Return what was done. Raises: FileError as the worker refuses; TookTooLong; OpenerGone."""
        if self.error is not None:
            raise self.error
        if self.work is None:
            raise OpenerGone(self.asked, f"{shown(self.asked)}: the session has ended, and its archives with it")
        if self.work.stopped:
            raise TookTooLong(self.asked, f"{shown(self.asked)}: the archive took too long", "ETIMEDOUT")
        counts = self.work.counts
        return Summary(
            files=counts.get("files", 0),
            directories=counts.get("directories", 0),
            content_bytes=counts.get("bytes", 0),
            left_out_count=counts.get("left_out", 0),
            left_out=tuple((path, why) for path, why in self.work.done.get("left_out", ())),
        )

    async def aclose(self) -> None:
        """End the worker, if it has not, and close the pipe after it: its end would be the end of an archive.

        Cancellation: shielded, at most TIDY_S and what the exchange takes.
        """
        self.scope.cancel(reason="nobody wants the archive any more")
        with trio.CancelScope(shield=True):
            await self.done.wait()
        self.pipe.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Packing(_AtWork):
    """The bytes of an archive, once, as they come. `summary` is there when they came to their end."""

    _summary: Summary | None = None

    @property
    def summary(self) -> Summary:
        """The content that was packed. Raises: LookupError before the end."""
        if self._summary is None:
            raise LookupError("the archive was not read to its end")
        return self._summary

    def __aiter__(self) -> Packing:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes. Raises: FileError; what came before is then no archive, and says so itself."""
        with contextlib.suppress(trio.ClosedResourceError):  # the session has ended, as the result will say
            if piece := await self.pipe.receive_some(PIECE_BYTES):
                return bytes(piece)
        await self.done.wait()
        self._summary = self.result()
        raise StopAsyncIteration


class Unpacking(_AtWork):
    """Takes the bytes of an archive. Nothing is in place before `finish` returned."""

    async def write(self, data: bytes | memoryview) -> None:
        """Pass on the next bytes. Raises: FileError as soon as the worker refuses them."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.pipe.send_all(data)
            return
        await self.done.wait()
        self.result()
        raise ValueError("the archive was finished")

    async def finish(self) -> Summary:
        """Say that these were all; return when the tree is in its place, durably.

        Raises: FileError, and nothing is there. Cancellation: all of it is there, or nothing.
        """
        await self.pipe.aclose()
        await self.done.wait()
        return self.result()


class Archives:
    """The archives of one session that are being made or unpacked; each has a worker of its own.

    The session's end ends them all, and frees what they hold.
    """

    def __init__(self, exchange: Exchange, nursery: trio.Nursery) -> None:
        self._trees = TreeWork(exchange, WORKERS)  # of their own: a slow client keeps nobody from searching
        self._nursery = nursery

    def open_pack(self, found: Resolved, spec: Pack, *, timeout_s: float) -> Packing:
        """Pack a directory that was resolved with `read=True`.

        Args:
            spec: rules, link_roots, max_entries, max_bytes, gzip.
            timeout_s: seconds for all of it, the time that the reader takes included.
        Raises: WrongKind, AccessDenied, OpenerGone. Ownership: leaving ends the worker (`async with`); *found* stays
            the caller's, who may close it at once.
        """
        directory = found.directory()
        ours, theirs = _pipe()
        packing = Packing(found.asked, trio.lowlevel.FdStream(ours))
        self._start(packing, PACK, spec, [os.dup(directory), theirs], timeout_s=timeout_s)
        return packing

    def open_unpack(self, target: EntryPlace, spec: UnpackBounded, *, timeout_s: float) -> Unpacking:
        """Unpack to a name that is free, or an empty directory's.

        Args:
            spec: rules, new_path, mode (None, or that of the directory there), replace_empty, max_entries,
                max_bytes, max_file_bytes, max_content_bytes, reserve_bytes, gzip.
            timeout_s: seconds for all of it, the time that the writer takes included.
        Raises: OpenerGone. Ownership: leaving (`async with`) without `finish` removes what there was, and so does the
            end of the session; *target* stays the caller's, who may close it at once.
        """
        parent = os.dup(target.fd)
        theirs, ours = _pipe()
        unpacking = Unpacking(target.asked, trio.lowlevel.FdStream(ours))
        named: Unpack = {**spec, "name": target.name}
        self._start(unpacking, UNPACK, named, [parent, theirs], timeout_s=timeout_s)
        return unpacking

    def _start(
        self,
        at_work: _AtWork,
        job: TreeJob[Any, Packed, Never],
        spec: Pack,
        fds: Sequence[int],
        *,
        timeout_s: float,
    ) -> None:
        """Have a worker at it, in the background; *fds* are its own."""
        try:
            self._nursery.start_soon(self._mind, at_work, job, spec, fds, timeout_s)
        except RuntimeError:  # the nursery is closed: so is the session
            _end(at_work, fds)

    async def _mind(
        self,
        at_work: _AtWork,
        job: TreeJob[Any, Packed, Never],
        spec: Pack,
        fds: Sequence[int],
        timeout_s: float,
    ) -> None:
        try:
            with at_work.scope:
                at_work.work = await self._trees.run(
                    job, at_work.asked, spec, fds, timeout_s=timeout_s, changes=job == UNPACK, tidy_s=TIDY_S
                )
        except FileError as error:
            at_work.error = error
        finally:
            _end(at_work, fds)


def _end(at_work: _AtWork, fds: Sequence[int]) -> None:
    """Free what is of no use without the worker; what it packed may still be read."""
    for fd in fds:
        os.close(fd)
    has_ended = at_work.work is not None or at_work.error is not None
    if isinstance(at_work, Unpacking) or not has_ended:
        at_work.pipe.close()
    at_work.done.set()


def _pipe() -> tuple[int, int]:
    """Return its ends for reading and writing."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # a user with many pipes may not have large ones: it is only slower
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read, write
