"""A tree that grows under a hidden name and gets its own in one step, or is gone (child side, stdlib only)."""

from __future__ import annotations

import errno
import os

from sandbox.inside.unfinished.hidden import empty, hidden_name, own
from sandbox.kernel.files import OPEN_DIRECTORY, flush_file_system, flush_names, rename_to_free_name

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class Stage:
    """A hidden directory of a pinned one, locked so that nobody takes it for a leftover. Leaving removes it."""

    def __init__(self, parent: int) -> None:
        self._parent = parent
        self._hidden, self.fd = _make(parent)
        self._named = False

    def commit(self, name: str, *, replace_empty: bool = False) -> None:
        """Flush the tree to the disk and give it its name, durably.

        Raises: FileExistsError; with *replace_empty* an empty directory may have the name, and another thing there
            fails as rename(2) does.
        """
        flush_file_system(self.fd)
        if replace_empty:
            self._rename_over(name)
        else:
            rename_to_free_name(self._parent, self._hidden, self._parent, name)
        self._named = True
        flush_names(self._parent)

    def _rename_over(self, name: str) -> None:
        try:
            os.rename(self._hidden, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except NotADirectoryError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._named:
                empty(self.fd)
                os.rmdir(self._hidden, dir_fd=self._parent)
        finally:
            os.close(self.fd)


def _make(parent: int) -> tuple[str, int]:
    while True:
        hidden = hidden_name()
        os.mkdir(hidden, 0o700, dir_fd=parent)
        fd = os.open(hidden, OPEN_DIRECTORY, dir_fd=parent)
        if own(fd, named=True):
            return hidden, fd
        os.close(fd)
