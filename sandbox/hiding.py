"""Find what the policy blocks in the trees that a session sees, so that it can be covered. Child side, stdlib only.

Runs at a birth, in the new root, before anything of the session does, and looks at nothing that the session will not
see. Other sessions that live meanwhile share the trees: what one of them moves while this looks may be missed.

First what the rules name without wildcards, the broker's own files with it, by asking for it. Then the rest by
looking, nearest names first. That is bounded, and sessions can make names: what is not looked at is not found, and
`missed` says so, because there are large homes. Nobody needs so many blocked names that covering them takes seconds:
there the birth fails. A tree is looked at under each of its names, as often as it is mounted.

In the machine's own /tmp the sockets of services are found as well, since whoever sees a socket can connect to it.

No link is followed, but what a blocked link leads to is blocked with it: a `.netrc` may be kept elsewhere. Not so if
that holds a root or is no part of one: whoever may make a link could close the system with it.

The name is what is blocked. So that no session takes it away from what the next one must not see, `holds` says which
directories above are to be held in their places.
"""

from __future__ import annotations

import os
import re
import socket
import stat

from sandbox.beneath import is_beneath_any
from sandbox.stages import StageFailed

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAX_NAMES = 200_000  # some tenths of a second
MAX_FOUND = 20_000  # each one is a mount: about a second
_STRANGE = "/\0\0"  # a name that no rule means
_ELSEWHERE = (_STRANGE, 9 * _STRANGE)  # where in a root something could be moved to: near, and far down


class Search:
    """One search. When `found` is used up, `missed` has the directories that were not looked at, or not to the end."""

    def __init__(self, spec: dict[str, Any], *, max_names: int = MAX_NAMES, max_found: int = MAX_FOUND) -> None:
        """Look for what *spec* names: `roots`, `places`, `from_root`, `anywhere` (see the policy's TreeFilter).

        `sockets_in` and `sockets_of`: directories in which sockets are found too, and those in them where they are not.
        """
        self._roots: list[str] = [os.path.realpath(root) for root in spec["roots"]]
        self._places: list[str] = spec["places"]
        self._from_root = re.compile(spec["from_root"]).match
        self._anywhere = re.compile(spec["anywhere"]).search
        self._sockets_in: list[str] = spec["sockets_in"]
        self._sockets_of: list[str] = spec["sockets_of"]
        self._left = max_names
        self._max_found = max_found
        self._taken: set[str] = set()
        # Where a pattern with wildcards begins is looked at before the trees around it.
        begins = [place for place in self._places if os.path.realpath(place) == place]
        self._starts = dict.fromkeys(path for path in (*begins, *self._roots) if not self._blocks(path))
        self.missed: tuple[str, ...] = ()

    def found(self) -> Iterator[str]:
        """Yield every blocked path, without what lies beneath one.

        Raises:
            StageFailed: there are more than can be covered, and what is to be done.
        """
        for path in (*self._places, *self._roots):
            if self._blocks(path) and os.path.lexists(path):
                yield from self._take(path)
        level = list(self._starts)
        while level and not self.missed:
            below: list[str] = []
            for at, directory in enumerate(level):
                yield from self._look(directory, below)
                if not self._left:
                    self.missed = (*level[at:], *below)
                    break
            level = below

    def _take(self, path: str) -> Iterator[str]:
        real = os.path.realpath(path)
        if path not in self._taken and (real == path or self._may_cover(real)):
            self._taken.add(path)
            if len(self._taken) > self._max_found:
                why = f"there are more than {self._max_found}, {path} among them; remove those that nobody needs"
                raise StageFailed("blocked_paths", why)
            yield path

    def _look(self, directory: str, below: list[str]) -> Iterator[str]:
        prefix = "" if directory == "/" else directory
        sockets = is_beneath_any(directory, self._sockets_in) and not is_beneath_any(directory, self._sockets_of)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not self._left:
                        return
                    self._left -= 1
                    path = f"{prefix}/{entry.name}"
                    if self._blocks(path):
                        yield from self._take(path)
                    elif entry.is_dir(follow_symlinks=False):
                        if path not in self._starts:
                            below.append(path)
                    elif sockets and _is_service(entry):
                        yield from self._take(path)
        except OSError:  # gone, no directory, or closed to us; to the session too, which has less rights
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
        holds_a_root = any(is_beneath_any(root, (target,)) for root in self._roots)
        return is_beneath_any(target, self._roots) and not holds_a_root

    def _blocks(self, path: str) -> bool:
        return path != "/" and bool(self._anywhere(path) or self._from_root(path))


def _is_service(entry: os.DirEntry[str]) -> bool:
    """Tell a socket that somebody listens on from one that was left behind, which a program may want to replace."""
    if entry.is_file(follow_symlinks=False) or entry.is_symlink():
        return False
    if not stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(entry.path)  # a service of streams refuses the kind, and does not notice
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True
