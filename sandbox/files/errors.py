"""Errors of work on files: the vocabulary of the file rooms (broker side).

Owns the exception types and the one table from errno to type. Knows no rule and no wire code. A sentence
names the path as the caller gave it, never the real one: that may be a place the caller is not told about.
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sandbox import shortage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeGuard

    from sandbox.protocol.files import Refusal

MAX_ERRNO = 4095  # as the kernel has it


class FileError(Exception):
    """A file operation failed; nothing else happened than its text says.

    Attributes:
        path: the path as the caller gave it.
        errno_name: `ENOENT` and the like, or "" when no system call failed.
        sentence: what happened, for a person.
    """

    def __init__(self, path: str, sentence: str, errno_name: str = "") -> None:
        super().__init__(sentence)
        self.path = path
        self.sentence = sentence
        self.errno_name = errno_name


class NotFound(FileError):
    """No file has this path. `led_to`: where its links lead, if that is elsewhere; not for the caller's eyes."""

    _led_to = ""

    @property
    def led_to(self) -> str:
        """Return a real path at which there is nothing, or nothing that the session can see; or an empty text."""
        return self._led_to

    def led(self, path: str) -> None:
        """Remember where the links led."""
        self._led_to = path if path != self.path else ""


class AccessDenied(FileError):
    """The session's user, or its walls, may not do this to the file."""


class WrongKind(FileError):
    """There is something else than was meant: a directory for a file, a FIFO, a device, ..."""


class BadPath(FileError):
    """The path cannot name a file: too long, a NUL in it, relative, a loop of links, a magic link."""


class NoSpace(FileError):
    """The disk, the quota or the table of inodes is full. The destination is as it was.

    `needed_bytes`: as many were to be written; None where that is not known.
    """

    needed_bytes: int | None = None


class TooLarge(FileError):
    """The file would be larger than a limit allows. The destination is as it was."""


class Changed(FileError):
    """The file was changed, moved or replaced by someone else in the middle of the work."""


class Exists(FileError):
    """Something has the name already. It is as it was."""


class NotEmpty(FileError):
    """The directory holds something. It is as it was."""


class HoldsClosedPaths(FileError):
    """The tree holds paths that the policy keeps closed, so that it is not touched as a whole."""


class BadPattern(FileError):
    """A glob or a regular expression has no meaning."""


class BadArchive(FileError):
    """The archive is damaged, incomplete, or holds something else than plain files and directories."""


class TookTooLong(FileError):
    """The work on a tree was stopped at its deadline; what its text says was done stays done."""


class WriteFailed(FileError):
    """Reading or writing failed for a reason of the machine: a bad disk, ..."""


class RanShort(FileError):
    """The machine, the user or a process had no more of something; see `sandbox/shortage.py`. Try again."""


class OpenerGone(FileError):
    """The process that opens files for this session ended: no file of it can be opened any more."""


class Unanswered(FileError):
    """The opener did not answer in time (a file system that hangs); what was asked may still happen."""


class OutcomeUnknown(FileError):
    """A change was begun and nobody knows whether it was made, or whether it lasts. Its text says which.

    `size_bytes` and `sha256`, where they are known, are those of the file after the change.
    """

    size_bytes: int | None = None
    sha256: str | None = None


_REASONS: Mapping[type[FileError], tuple[int, ...]] = MappingProxyType(
    {
        NotFound: (errno.ENOENT, errno.ENOTDIR),
        AccessDenied: (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EBUSY),
        WrongKind: (errno.EISDIR, errno.ENXIO),
        BadPath: (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
        NoSpace: (errno.ENOSPC, errno.EDQUOT, errno.EMLINK),
        TooLarge: (errno.EFBIG,),
        Changed: (errno.ESTALE,),
        Exists: (errno.EEXIST,),
        NotEmpty: (errno.ENOTEMPTY,),
        RanShort: tuple(shortage.LIMITS),
    }
)
_BY_ERRNO = MappingProxyType({number: kind for kind, numbers in _REASONS.items() for number in numbers})
_HINTS = MappingProxyType(
    {
        # Where a session has mounts of its own this is nearly always a frame or a guard (`kernel/masks.py`).
        errno.EROFS: ", or a directory that takes no new names, since some in it must stay closed (blocked_paths; "
        "layer blocked_paths in `isolation` names it): work in a folder beneath it",
    }
)
_BY_REFUSAL = MappingProxyType(
    {
        "wrong_kind": WrongKind,
        "changed": Changed,
        "blocked": HoldsClosedPaths,
        "pattern": BadPattern,
        "archive": BadArchive,
        "too_large": TooLarge,
        "no_space": NoSpace,
        "done": OutcomeUnknown,
    }
)


def from_errno(path: str, number: int) -> FileError:
    """Return the error for a failed system call on *path*."""
    kind = _BY_ERRNO.get(number, WriteFailed)
    what = shortage.said(number) if kind is RanShort else f"{os.strerror(number)}{_HINTS.get(number, '')}"
    sentence = f"{shown(path)}: {what}"
    return kind(path, sentence, errno.errorcode.get(number, str(number)))


def is_refusal(body: Any) -> TypeGuard[Refusal]:
    """Tell whether an answer refuses, and has the shape that the error for it relies on."""
    number = body.get("errno")
    texts = (body.get("refused"), body.get("why"), body.get("led_to", ""))
    return type(number) is int and 0 <= number <= MAX_ERRNO and all(isinstance(text, str) for text in texts)


def from_refusal(path: str, refusal: Refusal) -> FileError:
    """Return the error for an answer of the opener or a worker that refuses."""
    number = refusal["errno"]
    kind = _BY_REFUSAL.get(refusal["refused"])
    if kind is None:
        return from_errno(path, number)
    return kind(path, f"{shown(path)}: {refusal['why']}", errno.errorcode.get(number, str(number)))


def unflushed(path: str, fault: FileError) -> OutcomeUnknown:
    """Return the error for a change that was made and could not be written to the disk: a power cut may undo it."""
    sentence = f"{shown(path)}: it was changed, and flushing that to the disk failed ({fault.errno_name}); "
    return OutcomeUnknown(path, f"{sentence}whether the change outlasts a power cut is not known", fault.errno_name)


def shown(path: str) -> str:
    """Return *path* as a person may read it: control characters, bidi marks and odd bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in path)
