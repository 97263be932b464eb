"""Part files: what is written before it has its name (child side, stdlib only).

Owns the making, naming and removing of part files. An `O_TMPFILE` has no name until it is committed, so
nothing is left of it when any process dies (but for the microseconds in which an existing file is replaced). Where
the file system has none, the part is a hidden file of a random name, remembered here and removed when the
opener ends; only SIGKILL of the opener leaves such a one behind. A part is locked as long as somebody owns it,
which is how `hidden.py` knows those from the others.

A file that is replaced passes on its mode, and its group where the session's user is in it; the new file
belongs to that user. Its other names (hard links), its ACL and its extended attributes stay behind.
"""

from __future__ import annotations

import errno
import os
import stat

from sandbox.inside.unfinished.hidden import hidden_name, own
from sandbox.kernel.files import Held, Refused, kind_of, open_path, real_path

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)  # what file systems without it say
NEW_MODE = 0o666
PLAIN_MODE = 0o777  # set-user-id, set-group-id and sticky are never given to new content


class Parts:
    """The part files of one opener."""

    def __init__(self) -> None:
        self._named: dict[str, int] = {}  # hidden name -> our own descriptor of its directory
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hidden in tuple(self._named):
            self.discard(hidden)

    def has(self, hidden: str) -> bool:
        """Tell whether a part that was started has this name still."""
        return hidden in self._named

    def start(self, parent: int, name: str, mode: int = NEW_MODE) -> tuple[int, str]:
        """Open a part file for *name* of the directory; return it and its hidden name, "" if it has none.

        *mode* is what a new file gets, less the umask. Raises: Refused when something other than a regular file
        has the name, OSError.
        """
        look = self._look_of(parent, name, mode)
        fd, hidden = self._open(parent)
        with Held(fd) as part:
            _give_look(fd, *look)  # it is ours: this fails only with the disk
            return part.keep(), hidden

    def _open(self, parent: int) -> tuple[int, str]:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=parent)
        except OSError as fault:
            if fault.errno not in NO_TMPFILE:
                raise
            return self._open_named(parent, flags)
        own(fd, named=False)  # for the moment in which it replaces a file it has a name
        return fd, ""

    def _open_named(self, parent: int, flags: int) -> tuple[int, str]:
        while True:
            hidden = hidden_name()
            fd = os.open(hidden, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
            if own(fd, named=True):
                self._named[hidden] = os.dup(parent)
                return fd, hidden
            os.close(fd)

    def _look_of(self, parent: int, name: str, mode: int) -> tuple[int, int]:
        """Return mode and group of the file that is there now, or the mode of a new file and -1."""
        existing = pin_existing(parent, name)
        if existing is None:
            return mode & PLAIN_MODE & ~self._umask, -1
        with Held(existing):
            return replaceable(existing)

    def commit(self, part: int, parent: int, name: str, *, hidden: str, replace: bool, mode: int = NEW_MODE) -> None:
        """Give the part its name in one step: a reader finds the old file or the new one, always one of both.

        Raises: FileExistsError unless *replace*, Refused, OSError; the destination is then untouched.
        """
        _give_look(part, *self._look_of(parent, name, mode))  # it may have changed while we wrote
        if hidden:
            self._name_hidden(parent, name, hidden, replace=replace)
            return
        try:
            _link(part, parent, name)
        except FileExistsError:
            if not replace:
                raise
            _link_over(part, parent, name)

    def _name_hidden(self, parent: int, name: str, hidden: str, *, replace: bool) -> None:
        if not replace:
            os.link(hidden, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
            self.discard(hidden)
            return
        os.replace(hidden, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.close(self._named.pop(hidden))

    def discard(self, hidden: str) -> None:
        """Remove a named part; one that is gone, or had no name, needs nothing."""
        parent = self._named.pop(hidden, None)
        if parent is None:
            return
        try:
            os.unlink(hidden, dir_fd=parent)
        except FileNotFoundError:
            return  # someone cleaned up before us
        finally:
            os.close(parent)


def _link(part: int, parent: int, name: str) -> None:
    os.link(f"/proc/self/fd/{part}", name, dst_dir_fd=parent, follow_symlinks=True)


def _link_over(part: int, parent: int, name: str) -> None:
    """Replace *name*: link(2) cannot, so the part has a hidden name for the microseconds until the rename."""
    staged = hidden_name()
    _link(part, parent, staged)
    try:
        os.replace(staged, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.unlink(staged, dir_fd=parent)
        raise


def pin_existing(parent: int, name: str) -> int | None:
    """Return an `O_PATH` descriptor of *name* itself, never of what a link leads to; None if there is none.

    Raises: Refused when a link has taken the name since it was placed.
    """
    try:
        fd = open_path(name, dir_fd=parent, flags=os.O_NOFOLLOW)
    except FileNotFoundError:
        real_path(parent)  # nothing can be made in a directory that was removed: say so
        return None
    with Held(fd) as pinned:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise Refused("changed", errno.ELOOP, "a symbolic link took its place meanwhile")
        return pinned.keep()


def _give_look(part: int, mode: int, group: int) -> None:
    status = os.fstat(part)
    if group not in (-1, status.st_gid):
        try:
            os.fchown(part, -1, group)
        except PermissionError:
            # A group the session's user is not in: the new file gets his own, and that group no rights.
            mode &= ~0o070
    if stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(part, mode)


def replaceable(existing: int) -> tuple[int, int]:
    """Return mode and group of a file that may be written over."""
    status = os.fstat(existing)
    kind = kind_of(existing, status)
    if kind != "file":
        raise Refused("wrong_kind", errno.EISDIR, f"it is a {kind}; a file is meant")
    # A rename asks the directory only. A user who may not write the file may not replace it either.
    if not os.access(f"/proc/self/fd/{existing}", os.W_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return stat.S_IMODE(status.st_mode) & PLAIN_MODE, status.st_gid
