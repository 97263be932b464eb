"""Descriptors that the opener pinned: of a file that is there, or of a place where one may be (broker side).

Owns the received descriptors, one by one, and says what may be done with each. `Resolved.path` and
`FilePlace.path` are what a policy decides on before anything else is asked of them.
"""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import TYPE_CHECKING

import attrs

from sandbox.files.errors import FileError, WrongKind, from_errno, shown

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from sandbox.protocol.files import Facts


# As a person calls it.
_WORDS = MappingProxyType({"fifo": "FIFO", "kernel": "part of the kernel's own tree (/proc, /sys and the like)"})


@attrs.frozen(kw_only=True)
class FileFacts:
    """Facts of a file, from the kernel. `path` is real: no link is left in it, names as surrogateescape.

    `kind` is file, directory, symlink, fifo, socket, device, or kernel (of /proc, /sys and the like).
    """

    path: str
    kind: str
    size_bytes: int
    mode: int
    nlink: int
    uid: int
    dev: int
    ino: int
    mtime_ns: int

    @classmethod
    def of(cls, facts: Facts) -> Self:
        """Return the facts that the opener told."""
        return cls(**facts)

    @property
    def identity(self) -> tuple[int, int]:
        """Tell one file from every other that exists at the same time."""
        return self.dev, self.ino


class OwnedDescriptor:
    """Owns one descriptor until `close`."""

    def __init__(self, asked: str, fd: int) -> None:
        self.asked = asked
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor. Raises: ValueError when it is closed, as files do."""
        if self._fd < 0:
            raise ValueError(f"{self.asked!r} is closed")
        return self._fd

    def close(self) -> None:
        """Close the descriptor; a second time does nothing."""
        fd, self._fd = self._fd, -1  # never a number that someone else may own by now
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Resolved(OwnedDescriptor):
    """A path that was followed to its end, and pinned.

    The policy decides on `path` first; `file()` and `directory()` say afterwards what else is in the way.
    """

    def __init__(self, asked: str, fd: int, facts: FileFacts, *, readable: bool, unreadable: int) -> None:
        super().__init__(asked, fd)
        self.facts = facts
        self._readable = readable
        self._unreadable = unreadable

    @property
    def path(self) -> str:
        """The real path at the moment it was pinned."""
        return self.facts.path

    def file(self) -> int:
        """Return the descriptor of a regular file, open for reading. Raises: WrongKind, AccessDenied."""
        return self._usable("file")

    def directory(self) -> int:
        """Return the descriptor of a directory, open for reading. Raises: WrongKind, AccessDenied."""
        return self._usable("directory")

    def _usable(self, kind: str) -> int:
        if self.facts.kind != kind:
            raise _wrong_kind(self.asked, self.facts.kind, kind)
        if self._unreadable:
            raise from_errno(self.asked, self._unreadable)
        if not self._readable:
            raise ValueError("resolved without read=True")
        return self.fd


class FilePlace(OwnedDescriptor):
    """A pinned directory and a name in it that is no link: where a file is or will be.

    The policy decides on `path`. `existing` are the facts of what has the name already.
    """

    def __init__(self, asked: str, fd: int, *, parent: FileFacts, name: str, existing: FileFacts | None) -> None:
        super().__init__(asked, fd)
        self.parent = parent
        self.name = name
        self.existing = existing

    @property
    def path(self) -> str:
        """The real path that a file written here will have."""
        return f"{self.parent.path.rstrip('/')}/{self.name}"

    def check(self) -> None:
        """Raise WrongKind unless a regular file is here or can be made here."""
        if self.parent.kind != "directory":
            raise _wrong_kind(self.asked, self.parent.kind, "directory")
        if self.existing is not None and self.existing.kind != "file":
            raise _wrong_kind(self.asked, self.existing.kind, "file")


def _wrong_kind(asked: str, kind: str, meant: str) -> FileError:
    return WrongKind(asked, f"{shown(asked)} is a {_WORDS.get(kind, kind)}; a {meant} is needed")
