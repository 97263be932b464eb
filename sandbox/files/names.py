"""Names, as the broker sees them: look at one, make, rename, remove (broker side).

Each works on an `EntryPlace`: a pinned directory and a name in it that is not followed. The caller decides on its
path before anything else is asked.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sandbox.files.errors import FileError, unflushed
from sandbox.files.opener_client import ENTRY, MAKE, REMOVE, RENAME, SWEEP, Exchange, checked_path
from sandbox.files.pinned import FileFacts, OwnedDescriptor, Resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.files.disk import Disk
    from sandbox.files.opener_client import Answer
    from sandbox.protocol.files import FindEntry, MakeDirectory, Nothing, Remove, Rename


class EntryPlace(OwnedDescriptor):
    """A pinned directory and a name in it, which may be a link and is not followed; `target` is a link's text."""

    def __init__(
        self, asked: str, fd: int, *, parent: FileFacts, name: str, existing: FileFacts | None, target: str | None
    ) -> None:
        super().__init__(asked, fd)
        self.parent = parent
        self.name = name
        self.existing = existing
        self.target = target

    @property
    def path(self) -> str:
        """The real path of the name itself."""
        return f"{self.parent.path.rstrip('/')}/{self.name}"


class NameWork:
    """Operations on the names of one session.

    Those that change one raise OutcomeUnknown when it may have been changed, or may not last, and nobody knows.
    """

    def __init__(self, exchange: Exchange, disk: Disk) -> None:
        self._exchange = exchange
        self._disk = disk

    async def entry(self, path: str) -> EntryPlace:
        """Pin the directory of *path* and look at its last name; that a name is free is an answer, no error.

        Raises: NotFound (a directory on the way), AccessDenied, BadPath, WrongKind (it has no last name).
        Ownership: the caller closes it (`with`).
        """
        request: FindEntry = {"path": checked_path(path)}
        answer = await self._exchange.ask(ENTRY, path, request)
        body, existing = answer.body, answer.body["existing"]
        return EntryPlace(
            path,
            answer.fds.pop(),
            parent=FileFacts.of(body["parent"]),
            name=body["name"],
            existing=FileFacts.of(existing) if existing else None,
            target=body["target"],
        )

    async def make(self, parent: Resolved, name: str) -> tuple[Resolved, bool]:
        """Make a directory, durably; return it, pinned, and whether it is new.

        Raises: Exists when something else than a directory has the name, AccessDenied, NoSpace, Changed.
        Ownership: the caller closes it.
        """
        request: MakeDirectory = {"name": name}
        answer = await self._exchange.ask(MAKE, parent.asked, request, (parent.fd,), changes=True)
        made = answer.fds.pop(0)
        try:
            await self._flush(parent.asked, answer)
        except BaseException:
            os.close(made)
            raise
        facts = FileFacts.of(answer.body["facts"])
        return Resolved(parent.asked, made, facts, readable=False, unreadable=0), answer.body["created"]

    async def rename(self, source: EntryPlace, target: EntryPlace, *, replace: bool) -> None:
        """Give *source* the name of *target*, durably and in one step.

        Raises: Exists, unless *replace* and a file that may be written is there; Changed when the source is no
            longer what was decided on; FileError with EXDEV when it must be copied instead.
        """
        request: Rename = {
            "name": source.name,
            "new_name": target.name,
            "identity": identity_of(source),
            "replace": replace,
        }
        answer = await self._exchange.ask(RENAME, target.asked, request, (source.fd, target.fd), changes=True)
        await self._flush(target.asked, answer)

    async def remove(self, entry: EntryPlace) -> None:
        """Remove a file, link or other name, or an empty directory, durably. Raises: NotEmpty, AccessDenied."""
        request: Remove = {"name": entry.name, "identity": identity_of(entry)}
        answer = await self._exchange.ask(REMOVE, entry.asked, request, (entry.fd,), changes=True)
        await self._flush(entry.asked, answer)

    async def sweep(self, directory: Resolved) -> int:
        """Remove the part files that a crashed broker left in *directory*; return how many parts are left there.

        Those have an owner, or are half-made copies of trees, which a worker removes.
        """
        request: Nothing = {}
        answer = await self._exchange.ask(SWEEP, directory.asked, request, (directory.directory(),))
        return answer.body["left"]

    async def _flush(self, asked: str, answer: Answer[Any]) -> None:
        """Write the changed directories to the disk: what is said to be done survives a power cut."""
        try:
            await self._disk.run(asked, _flush_all, tuple(answer.fds))
        except FileError as fault:
            raise unflushed(asked, fault) from fault
        finally:
            answer.close()


def identity_of(entry: EntryPlace) -> list[int]:
    """Return device and inode, which tell the file that was decided on from another that takes its name."""
    return [*entry.existing.identity] if entry.existing else []


def _flush_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.fsync(fd)
