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
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from sandbox.file_errors import FileError, OpenerGone, TookTooLong, shown
from sandbox.treework import TreeWork, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sandbox.exchange import Exchange
    from sandbox.namework import EntryPlace
    from sandbox.pinned import Resolved

PIPE_BYTES = 1024 * 1024
PIECE_BYTES = 256 * 1024
TIDY_S = 10.0  # for a worker to remove a half-unpacked tree when its caller has left


@attrs.frozen(kw_only=True)
class Summary:
    """What an archive holds. `content_bytes` are those of its files, or of its whole stream when it was packed.

    `left_out` are (relative path, why) of the first few of `left_out_count` names.
    """

    files: int
    directories: int
    content_bytes: int
    left_out_count: int
    left_out: tuple[tuple[str, str], ...]


@attrs.define(eq=False)
class _Run:
    """A worker at its job, and what came of it."""

    asked: str
    pipe: trio.lowlevel.FdStream | None
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    done: trio.Event = attrs.field(factory=trio.Event)
    work: Work | None = None
    error: FileError | None = None

    def result(self) -> Summary:
        """Return what was done. Raises: FileError as the worker refuses; TookTooLong."""
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


class Packing:
    """The bytes of an archive, once, as they come. `summary` is there when they came to their end."""

    def __init__(self, run: _Run, pipe: trio.lowlevel.FdStream) -> None:
        self._run = run
        self._pipe = pipe
        self._summary: Summary | None = None

    @property
    def summary(self) -> Summary:
        """What was packed. Raises: LookupError before the end."""
        if self._summary is None:
            raise LookupError("the archive was not read to its end")
        return self._summary

    def __aiter__(self) -> Packing:
        return self

    async def __anext__(self) -> bytes:
        """Return the next bytes. Raises: FileError; what came before is then no archive, and says so itself."""
        if piece := await self._pipe.receive_some(PIECE_BYTES):
            return bytes(piece)
        await self._run.done.wait()
        self._summary = self._run.result()
        raise StopAsyncIteration


class Unpacking:
    """Takes the bytes of an archive. Nothing is in place before `finish` returned."""

    def __init__(self, run: _Run, pipe: trio.lowlevel.FdStream) -> None:
        self._run = run
        self._pipe = pipe

    async def write(self, data: bytes | memoryview) -> None:
        """Pass on the next bytes. Raises: FileError as soon as the worker refuses them."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._pipe.send_all(data)
            return
        await self._run.done.wait()
        self._run.result()
        raise ValueError("the archive was finished")

    async def finish(self) -> Summary:
        """Say that these were all; return when the tree is in its place, durably.

        Raises: FileError, and nothing is there. Cancellation: all of it is there, or nothing.
        """
        await self._pipe.aclose()
        await self._run.done.wait()
        return self._run.result()


class Archives:
    """The archives of one session that are being made or unpacked; each has a worker of its own."""

    def __init__(self, exchange: Exchange, nursery: trio.Nursery) -> None:
        self._trees = TreeWork(exchange)  # with turns of their own: a slow client keeps nobody from searching
        self._nursery = nursery

    @asynccontextmanager
    async def open_pack(self, found: Resolved, spec: dict[str, Any], *, timeout_s: float) -> AsyncIterator[Packing]:
        """Pack a directory that was resolved with `read=True`.

        Args:
            spec: rules, link_roots, max_entries, max_bytes, gzip.
            timeout_s: seconds for all of it, the time that the reader takes included.
        Raises: WrongKind, AccessDenied. Ownership: leaving ends the worker; *found* stays the caller's.
        """
        directory = found.directory()
        ours, theirs = _pipe()
        async with (
            trio.lowlevel.FdStream(ours) as pipe,
            self._at_work("pack", found.asked, spec, (directory, theirs), timeout_s=timeout_s) as run,
        ):
            yield Packing(run, pipe)

    @asynccontextmanager
    async def open_unpack(
        self, target: EntryPlace, spec: dict[str, Any], *, timeout_s: float
    ) -> AsyncIterator[Unpacking]:
        """Unpack to a name that is free, or an empty directory's.

        Args:
            spec: rules, new_path, mode (None, or that of the directory there), replace_empty, max_entries,
                max_bytes, max_file_bytes, reserve_bytes, gzip.
            timeout_s: seconds for all of it, the time that the writer takes included.
        Ownership: leaving without `finish` removes what there was, and so does the end of the session; *target*
            stays the caller's.
        Cancellation: as leaving; within TIDY_S.
        """
        theirs, ours = _pipe()
        fds = (target.fd, theirs)
        async with (
            trio.lowlevel.FdStream(ours) as pipe,  # closed last: an end of the pipe is an end of the archive
            self._at_work(
                "unpack", target.asked, {**spec, "name": target.name}, fds, timeout_s=timeout_s, until_done=pipe
            ) as run,
        ):
            yield Unpacking(run, pipe)

    @asynccontextmanager
    async def _at_work(
        self,
        op: str,
        asked: str,
        spec: dict[str, Any],
        fds: Sequence[int],
        *,
        timeout_s: float,
        until_done: trio.lowlevel.FdStream | None = None,
    ) -> AsyncIterator[_Run]:
        """Have a worker at it while the block lasts; *fds* are the caller's, but the last, its end of the pipe.

        *until_done*: our end, which is of no use once the worker has ended.
        """
        run = _Run(asked=asked, pipe=until_done)
        own = [os.dup(fds[0]), fds[-1]]  # the job may outlive the caller's `with` by the moment that it is ended in
        try:
            self._nursery.start_soon(self._mind, run, op, spec, own, timeout_s)
        except RuntimeError:  # the nursery is closed: so is the session
            _close(own)
            run.done.set()
        try:
            yield run
        finally:
            run.scope.cancel(reason="nobody wants the archive any more")
            with trio.CancelScope(shield=True):  # bounded by the worker's own end
                await run.done.wait()

    async def _mind(self, run: _Run, op: str, spec: dict[str, Any], fds: Sequence[int], timeout_s: float) -> None:
        try:
            with run.scope:
                run.work = await self._trees.run(
                    op, run.asked, spec, fds, timeout_s=timeout_s, changes=op == "unpack", tidy_s=TIDY_S
                )
        except FileError as error:
            run.error = error
        finally:
            _close(fds)
            if run.pipe is not None:
                run.pipe.close()
            run.done.set()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _pipe() -> tuple[int, int]:
    """Return its ends for reading and writing."""
    read, write = os.pipe2(os.O_CLOEXEC)
    with contextlib.suppress(OSError):  # who has many pipes may not have large ones: it is only slower
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return read, write
