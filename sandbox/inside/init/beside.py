"""Grant what lies beside what stays closed, where no mounts of our own can cover it. Child side, stdlib only.

Landlock cannot take a path out of a granted directory again. So a directory above a closed path is not granted as a
whole: it can be listed, and what else is in it now is granted one by one. That costs such a directory its new names:
nothing is made, renamed or removed in it by commands or tools until the session ends.
"""

from __future__ import annotations

import os

from sandbox.kernel import landlock

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandbox.kernel.landlock import Grant

MAX_GRANTS = 50_000  # each one is a rule and an open file for a moment: some tenths of a second
_IN_PLACE = landlock.READ | landlock.WRITE_FILE | landlock.TRUNCATE | landlock.EXECUTE  # what a frame leaves of a file


class TooMany(Exception):
    """More would have to be granted one by one than a birth has time for; says beside what."""


class Beside:
    """The paths that stay closed, and so the directories that are granted in pieces."""

    def __init__(self, blocked: Iterable[str], guarded: Iterable[str], frames: Iterable[str]) -> None:
        self._blocked = frozenset(map(os.path.realpath, blocked))
        self._guarded = frozenset(map(os.path.realpath, guarded))
        closed = self._blocked | self._guarded
        self._in_pieces = {above for path in closed for above in _above(path)} | set(frames)
        self.count = 0

    @property
    def frames(self) -> frozenset[str]:
        """The directories that take no new names, wherever they are granted."""
        return frozenset(self._in_pieces)

    def pieces(self, grants: Iterable[Grant]) -> Iterator[Grant]:
        """Yield *grants*, each as it is or in the pieces that leave out what stays closed. Raises TooMany.

        What may be executed was named by the operator, and so is granted although it is a closed path itself.
        """
        for path, rights in grants:
            real = os.path.realpath(path)
            if self._meets(real) and not (rights & landlock.EXECUTE and real in self._blocked):
                yield from self._split(real, rights, is_directory=os.path.isdir(real))
            else:
                yield path, rights

    def _meets(self, path: str) -> bool:
        return path in self._blocked or path in self._guarded or path in self._in_pieces

    def _split(self, path: str, rights: int, *, is_directory: bool) -> Iterator[Grant]:
        if path in self._blocked:
            return
        if path in self._guarded:
            rights &= landlock.RUN
        if path not in self._in_pieces:
            yield self._counted(path, rights)
            return
        if not is_directory:
            return
        yield self._counted(path, rights & landlock.READ_DIR)
        for name, inner in _entries(path):
            inner_path = f"{path.rstrip('/')}/{name}"
            yield from self._split(inner_path, rights if inner else rights & _IN_PLACE, is_directory=inner)

    def _counted(self, path: str, rights: int) -> Grant:
        self.count += 1
        if self.count > MAX_GRANTS:
            raise TooMany(f"more than {MAX_GRANTS} paths lie beside what is closed, {path} among them")
        return path, rights


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = os.path.dirname(path)
        yield path


def _entries(directory: str) -> list[tuple[str, bool]]:
    """List what may be granted in a directory: what a link leads to is granted where it is, or not."""
    try:
        with os.scandir(directory) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if not entry.is_symlink()]
    except OSError:  # not ours to list, so the session's neither
        return []
