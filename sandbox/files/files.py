"""The files of one session, as the broker sees them (broker side).

Owns the order of every file operation: the opener pins what is really there, the caller decides on the real
path of that descriptor, and only then is the same descriptor used. Knows no rule. Every descriptor belongs
to a context manager.

    with await files.resolve(path, read=True) as found:      # one round trip, nothing read yet
        decide(found.path, found.facts.nlink)
        data = await files.read(found, offset, length)
"""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.files.archives import Archives
from sandbox.files.disk import Data, Disk
from sandbox.files.errors import Changed, Exists, shown
from sandbox.files.hashes import Hashes
from sandbox.files.names import EntryPlace, NameWork
from sandbox.files.opener_client import (
    APPEND,
    DISCARD,
    LIST,
    PART,
    PLACE,
    RESOLVE,
    Exchange,
    checked_path,
    open_exchange,
)
from sandbox.files.part import Part
from sandbox.files.pinned import FileFacts, FilePlace, Resolved
from sandbox.files.trees import TreeWork, Work

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from sandbox.protocol.files import FindPlace, ListNames, OpenAppend, Resolve, StartPart

__all__ = [
    "EntryPlace",
    "FileFacts",
    "FilePlace",
    "Files",
    "ListedName",
    "Listing",
    "Part",
    "Resolved",
    "TreeWork",
    "Work",
    "open_files",
]

ANSWER_S = 30.0


@attrs.frozen(kw_only=True)
class ListedName:
    """One name of a directory. `kind` as in FileFacts, never followed; unknown where it may not be asked."""

    name: str
    kind: str
    size_bytes: int
    mtime_ns: int


@attrs.frozen(kw_only=True)
class Listing:
    """Names of a directory in order, whether there are more, how many in all (at least, if not `counted_all`)."""

    entries: tuple[ListedName, ...]
    total_count: int
    counted_all: bool
    more: bool


class Files:
    """File operations of one session; any number of tasks may use them at once."""

    def __init__(self, exchange: Exchange, disk: Disk, nursery: trio.Nursery) -> None:
        self._exchange = exchange
        self._disk = disk
        self.archives = Archives(exchange, nursery)
        self.hashes = Hashes(exchange)
        self.names = NameWork(exchange, disk)
        self.trees = TreeWork(exchange)
        self.links = TreeWork(exchange)  # of its own: a file is not kept waiting by searches

    def when_settled(self, call: Callable[[], None]) -> None:
        """Call *call* once nothing whose asker has left can change a name of this session any more; mostly at once."""
        self._exchange.when_settled(call)

    def settle(self) -> None:
        """Learn that the opener is gone, and with it every change that was still to come."""
        self._exchange.settle()

    async def resolve(self, path: str, *, read: bool = False) -> Resolved:
        """Follow *path* to its end and pin what is there; with *read*, open it for reading as well.

        Args:
            path: absolute; a name that is no UTF-8 as surrogateescape.
            read: False pins only (`O_PATH`), enough for facts and for a working directory.
        Raises: NotFound, AccessDenied, BadPath, Changed, OpenerGone, Unanswered. What the file's kind or
            mode forbids is said by `Resolved.file()`, after the decision.
        Ownership: the caller closes it (`with`).
        """
        request: Resolve = {"path": checked_path(path), "read": read}
        answer = await self._exchange.ask(RESOLVE, path, request)
        unreadable = answer.body.pop("unreadable", 0)
        facts = FileFacts.of(answer.body)
        return Resolved(path, answer.fds.pop(), facts, readable=read, unreadable=unreadable)

    async def read(self, resolved: Resolved, offset: int, length: int) -> bytes:
        """Return up to *length* bytes at *offset* of a file resolved with `read=True`.

        Raises: WrongKind, AccessDenied, WriteFailed.
        """
        return await self._disk.read(resolved.asked, resolved.file(), offset, length)

    async def list_directory(
        self, resolved: Resolved, *, limit: int, include_hidden: bool = False, after: str = ""
    ) -> Listing:
        """Return *limit* names of a directory resolved with `read=True`, in code point order, those after *after*.

        Raises: WrongKind, AccessDenied, OpenerGone, Unanswered.
        """
        request: ListNames = {"limit": limit, "hidden": include_hidden, "after": after}
        answer = await self._exchange.ask(LIST, resolved.asked, request, (resolved.directory(),))
        entries = tuple(
            ListedName(name=n, kind=kind, size_bytes=size, mtime_ns=at) for n, kind, size, at in answer.pieces
        )
        return Listing(entries=entries, **answer.body)

    async def place(self, path: str) -> FilePlace:
        """Find where *path* really leads for writing: links are followed, the last name may not exist yet.

        Raises: NotFound (a directory on the way), AccessDenied, BadPath, WrongKind (it ends in a slash).
        Ownership: the caller closes it (`with`).
        """
        request: FindPlace = {"path": checked_path(path)}
        answer = await self._exchange.ask(PLACE, path, request)
        body, existing = answer.body, answer.body["existing"]
        return FilePlace(
            path,
            answer.fds.pop(),
            parent=FileFacts.of(body["parent"]),
            name=body["name"],
            existing=FileFacts.of(existing) if existing else None,
        )

    async def part(self, place: FilePlace) -> Part:
        """Start new content for *place*, which may be closed at once.

        Raises: WrongKind, AccessDenied (the file there may not be written), NoSpace.
        Ownership: the caller discards it (`async with`).
        """
        place.check()
        request: StartPart = {"name": place.name}
        answer = await self._exchange.ask(PART, place.asked, request, (place.fd,), undo=DISCARD)
        with ExitStack() as undo:
            undo.callback(answer.close)
            part = Part(place, answer.fds[0], answer.body["hidden"], self._exchange, self._disk)
            undo.pop_all()
        return part

    async def overwrite(self, place: FilePlace, data: Data, *, replace: bool = True) -> None:
        """Make *data* the whole content of *place*, durably: any reader sees the old file or the new one.

        Raises: as `part` and `Part.commit`; the destination is then as it was.
        """
        async with await self.part(place) as part:
            await part.fill(data)
            await part.commit(replace=replace)

    async def append(self, place: FilePlace, data: Data) -> None:
        """Append *data* to the file at *place*, durably, or leave it as it was; a new file is made whole.

        Raises: WrongKind, AccessDenied, NoSpace, TooLarge; Changed when it is no longer the file that was
            decided on; OutcomeUnknown when it failed and what was written could not be taken back.
        """
        place.check()
        if place.existing is None:
            try:
                await self.overwrite(place, data, replace=False)
            except Exists as taken:
                raise Changed(
                    place.asked, f"{shown(place.asked)}: it appeared meanwhile; try again", "EEXIST"
                ) from taken
            return
        request: OpenAppend = {"name": place.name}
        answer = await self._exchange.ask(APPEND, place.asked, request, (place.fd,))
        try:
            now = FileFacts.of(answer.body)
            if (now.identity, now.nlink) != (place.existing.identity, place.existing.nlink):
                raise Changed(place.asked, f"{shown(place.asked)}: it was replaced meanwhile; try again", "ESTALE")
            await self._disk.append(place.asked, answer.fds[0], data)
        finally:
            answer.close()


@asynccontextmanager
async def open_files(
    sock: socket.socket, *, disk: Disk | None = None, answer_s: float = ANSWER_S
) -> AsyncIterator[Files]:
    """Speak to the opener at the other end of *sock*.

    Args:
        sock: the broker's end of the pair whose other end the opener got.
        disk: where blocking calls run; by default a few threads of this session's own.
        answer_s: seconds after which a silent opener makes a request fail as Unanswered.
    Ownership: *sock* is closed at the end, which ends the opener, after what it was asked for. Names of changes that
        may still come are kept until `Files.settle`, which is called when it is known to be gone.
    """
    async with open_exchange(sock, answer_s=answer_s) as exchange, trio.open_nursery() as nursery:
        files = Files(exchange, disk or Disk(), nursery)
        try:
            yield files
        finally:
            files.hashes.close()
            nursery.cancel_scope.cancel(reason="the files are closed")
