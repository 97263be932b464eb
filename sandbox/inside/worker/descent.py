"""Where in a growing tree the next entry goes: the open directories on the way there (child side, stdlib only).

One step down opens one name in one open directory and follows nothing. A directory that is left gets back the time
that it had, or was given: what was made in it meanwhile does not count as a change.
"""

from __future__ import annotations

import os

from sandbox.inside.worker.walk import open_directory

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Level:
    """An open directory; set `mtime_ns` for the time that it is to have when it is left."""

    __slots__ = ("fd", "mtime_ns", "name")

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.mtime_ns = os.fstat(fd).st_mtime_ns


class Descent:
    """The way from the top to the directory in hand. `permit` is asked about each directory before it is made."""

    def __init__(self, top: int, permit: Callable[[str], None]) -> None:
        self._top = Level("", top)
        self._permit = permit
        self._way: list[Level] = []

    def enter(self, parts: Sequence[str]) -> Level:
        """Go to a directory, making what is missing on the way. No parts: the top, and all others are left."""
        common = 0
        for level, name in zip(self._way, parts, strict=False):
            if level.name != name:
                break
            common += 1
        while len(self._way) > common:
            self._leave()
        for depth in range(common, len(parts)):
            self._way.append(self._step(parts, depth))
        return self._way[-1] if self._way else self._top

    def close(self) -> None:
        """Close all descriptors but the top's, and leave the times as they are."""
        while self._way:
            os.close(self._way.pop().fd)

    def _step(self, parts: Sequence[str], depth: int) -> Level:
        above, name = self._way[-1] if self._way else self._top, parts[depth]
        try:
            return Level(name, open_directory(name, above.fd))
        except FileNotFoundError:
            self._permit("/".join(parts[: depth + 1]))
            os.mkdir(name, dir_fd=above.fd)
            return Level(name, open_directory(name, above.fd))

    def _leave(self) -> None:
        level = self._way.pop()
        try:
            os.utime(level.fd, ns=(level.mtime_ns, level.mtime_ns))
        finally:
            os.close(level.fd)
