"""Find what the policy blocks in the trees that a session sees, so that it can be covered. Child side, stdlib only.

Runs at a birth, in the new root, before anything of the session does, and looks at nothing that the session will not
see. Other sessions that live meanwhile share the trees: what one of them moves while this looks may be missed.
Nearest names first, because the search is bounded: what lies deeper than the bound is not found, and `complete` says
so. No link is followed, but what a blocked link leads to is blocked with it: a `.netrc` may be kept elsewhere. Not so
if that holds a root or is no part of one: whoever may make a link could close the system with it.

The name is what is blocked. So that no session takes it away from what the next one must not see, `holds` says which
directories above are to be held in their places.
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_NAMES = 200_000  # some tenths of a second
MAX_FOUND = 1_000  # each one is a mount
_STRANGE = "/\0\0"  # a name that no rule means
_ELSEWHERE = (_STRANGE, 9 * _STRANGE)  # where in a root something could be moved to: near, and far down


class Search:
    """One search. What it counted is known when `found` is used up."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Look for what *spec* names: `roots`, `from_root`, `anywhere` (see the policy's TreeFilter)."""
        self._roots: list[str] = [os.path.realpath(root) for root in spec["roots"]]
        self._from_root = re.compile(spec["from_root"]).match
        self._anywhere = re.compile(spec["anywhere"]).search
        self._left = MAX_NAMES
        self._seen: set[tuple[int, int]] = set()
        self.complete = True
        self.count = 0

    def found(self) -> Iterator[str]:
        """Yield every blocked path, without what lies beneath one."""
        level = [root for root in self._roots if self._is_new(root)]
        for root in [root for root in level if self._blocks(root)]:
            level.remove(root)
            self.count += 1
            yield root
        while level and self.complete:
            below: list[str] = []
            for directory in level:
                yield from self._look(directory, below)
            level = below

    def _look(self, directory: str, below: list[str]) -> Iterator[str]:
        prefix = "" if directory == "/" else directory
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    path = f"{prefix}/{entry.name}"
                    if self._blocks(path):
                        if not entry.is_symlink() or self._may_cover(os.path.realpath(path)):
                            self.count += 1
                            yield path
                    elif entry.is_dir(follow_symlinks=False) and self._is_new(path):
                        below.append(path)
                    self._left -= 1
                    if not self._left or self.count >= MAX_FOUND:
                        self.complete = False
                        return
        except OSError:  # gone, or closed to us; to the session too, which has less rights
            return

    def holds(self, path: str) -> list[str]:
        """List the directories above a blocked *path*, topmost first, whose renaming or moving would unblock it.

        Above what a link leads to these are all there are: from elsewhere, the link would not lead there.
        """
        root, above = self._above(path)
        held = [each for each in above if not self._stays_blocked(root, path[len(each) :])]
        real = os.path.realpath(path)
        if real != path:
            held = [each for each in held if os.path.realpath(each) == each]  # a link can be replaced all the same
            held += self._above(real)[1]
        return held

    def _above(self, path: str) -> tuple[str, list[str]]:
        """Return the root that *path* is in, and the directories between the two, topmost first."""
        root = max((each for each in self._roots if path.startswith(f"{each.rstrip('/')}/")), key=len, default=path)
        names = path[len(root.rstrip("/")) :].split("/")[1:-1]
        return root.rstrip("/"), [f"{root.rstrip('/')}/{'/'.join(names[: at + 1])}" for at in range(len(names))]

    def _stays_blocked(self, root: str, rest: str) -> bool:
        return all(self._blocks(f"{root}{elsewhere}{rest}") for elsewhere in _ELSEWHERE)

    def _may_cover(self, target: str) -> bool:
        return any(target.startswith(f"{root}/") for root in self._roots) and not any(
            root == target or root.startswith(f"{target}/") for root in self._roots
        )

    def _blocks(self, path: str) -> bool:
        return path != "/" and bool(self._anywhere(path) or self._from_root(path))

    def _is_new(self, path: str) -> bool:
        """Tell a directory that was not looked at yet, under another name or as part of another root."""
        try:
            status = os.lstat(path)
        except OSError:
            return False
        key = (status.st_dev, status.st_ino)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True
