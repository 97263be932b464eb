"""Find what stays closed in the trees that a session sees, to cover or guard it there. Child side, stdlib only.

Runs at a birth, before anything of the session does, and looks at nothing that the session will not see. Other
sessions that live meanwhile share the trees: what one of them moves while this looks may be missed.

First what the rules name without wildcards, the broker's own files with it, by asking for it. Then the rest by
looking, nearest names first. That is bounded, and sessions can make names: what is not looked at is not found, and
`missed` says so, because there are large homes. Nobody needs so many closed names that covering them takes seconds:
there the birth fails. A tree is looked at under each of its names, as often as it is mounted.

A name that must not come to be, since a rule names it without wildcards or names others like it in one directory, is
kept away by its directory: `frames` says which take no new names.

In the machine's own /tmp the sockets of services are found as well, since whoever sees a socket can connect to it.

No link is followed, but what a closed link leads to is closed with it: a `.netrc` may be kept elsewhere. Not so if
that holds a root or is no part of one: whoever may make a link could close the system with it.

The name is what is closed. So that no session takes it away from what the next one must not see or change, `holds`
says which directories above are to be held in their places.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import time

from sandbox.inside.stages import StageFailed
from sandbox.paths import is_beneath_any

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandbox.protocol.commands import CloseSpec

MAX_NAMES = 200_000  # some tenths of a second
MAX_FOUND = 20_000  # each one is a mount: about a second
_OTHERS_WRITE = 0o022  # the mask of an access list stands in the group's bits
_NOBODYS = ("/dev", "/proc", "/sys")  # of the kernel, or of the birth: nobody keeps files there
_STEPS_MAX = 400  # names on the way of one path, those behind its links with them
_STRANGE = "/\0\0"  # a name that no rule means
CLOCK = 5  # CLOCK_REALTIME_COARSE, by which files are stamped
_ELSEWHERE = (_STRANGE, 9 * _STRANGE)  # where in a root something could be moved to: near, and far down


class ClosedNames:
    """One set of names: those that two expressions match, but for what lies in trees that stay open."""

    def __init__(self, expressions: Sequence[str], opened: tuple[str, ...]) -> None:
        from_root, anywhere = expressions
        self._from_root = re.compile(from_root).match
        self._anywhere = re.compile(anywhere).search
        self._opened = opened

    def hold(self, path: str) -> bool:
        """Tell whether *path* is closed. In an open tree only what is closed wherever it lies is."""
        for tree in self._opened:
            if path.startswith(tree) and path[len(tree) : len(tree) + 1] in ("", "/"):
                return bool(self._anywhere(path[len(tree) :]))
        return path != "/" and bool(self._anywhere(path) or self._from_root(path))


class Search:
    """One search. When `found` is used up, `missed` has the directories that were not looked at, or not to the end.

    What `inside/worker/aftermath.py` asks later: `met` has every closed name that was there, `left` those of them that
    commands reach where nothing covers names by mounts, `since_ns` when it began, as the stamps of files count.
    """

    def __init__(self, spec: CloseSpec, *, max_names: int = MAX_NAMES, max_found: int = MAX_FOUND) -> None:
        """Look for what *spec* names: see `plan.walls.close_for`.

        `sockets_in` and `sockets_of`: directories in which sockets are found too, and those in them where they are not.
        """
        self._roots: list[str] = [os.path.realpath(root) for root in spec["roots"]]
        self._writable: list[str] = [os.path.realpath(root) for root in spec["writable"]]
        self._uid = spec["uid"]
        self._places = spec["places"]
        self._names = spec["names"]
        self._folders = spec["folders"]
        self._opened = tuple(spec["opened"])
        self._blocked = ClosedNames(spec["blocked"], self._opened)
        self._guarded = ClosedNames(spec["guarded"], self._opened)
        self._may_be_closed = re.compile(spec["last_names"]).match  # a fraction of the time of the others
        self._system = spec["system"]
        self._sockets_in = spec["sockets_in"]
        self._sockets_of = spec["sockets_of"]
        self._left = max_names
        self._max_found = max_found
        self._taken: set[tuple[str, bool]] = set()
        self.met: set[str] = set()
        self.left: frozenset[str] | None = None
        self.since_ns = time.clock_gettime_ns(CLOCK)
        # Where a pattern with wildcards begins is looked at before the trees around it.
        begins = [p for p in self._places if os.path.realpath(p) == p and not self._guarded.hold(p)]
        self._starts = dict.fromkeys(path for path in (*begins, *self._roots) if not self._blocked.hold(path))
        self.missed: tuple[str, ...] = ()

    def frames(self) -> list[str]:
        """List the directories, without links in their paths, that must take no new names and could take some."""
        found = [os.path.realpath(folder) for folder in self._folders if os.path.isdir(folder)]
        for name in self._names:
            found += _turnings(name)
        return [path for path in dict.fromkeys(found) if not self.stays_closed(path) and self._may_write(path)]

    def _may_write(self, directory: str) -> bool:
        """Tell whether the session could make names in it: granted, and its own or open to others (by ACLs, too)."""
        if not is_beneath_any(directory, self._writable):
            return False
        try:
            status = os.stat(directory)
        except OSError:  # gone, or not to be seen
            return False
        return status.st_uid == self._uid or bool(status.st_mode & _OTHERS_WRITE)

    def named(self) -> Iterator[tuple[str, bool]]:
        """Yield what is there of all that can be found by asking for it: a path, and whether it is only guarded."""
        for path in self._system:
            yield from self._take(path, guarded=False)
        for path in (*self._places, *self._roots):
            if not os.path.lexists(path):
                continue
            if self._blocked.hold(path):
                yield from self._take(path, guarded=False)
            elif self._guarded.hold(path):
                yield from self._take(path, guarded=True)

    def found(self) -> Iterator[tuple[str, bool]]:
        """Yield every closed path, and whether it is only guarded, without what lies beneath a blocked one.

        Raises:
            StageFailed: there are more than can be covered, and what is to be done.
        """
        yield from self.named()
        level = list(self._starts)
        while level and not self.missed:
            below: list[str] = []
            for at, directory in enumerate(level):
                yield from self._look(directory, below)
                if not self._left:
                    self.missed = (*level[at:], *below)
                    break
            level = below

    def stays_closed(self, path: str) -> bool:
        """Tell whether a path must not be written."""
        return self._blocked.hold(path) or self._guarded.hold(path)

    def trees(self, first: str) -> list[str]:
        """List what can be written, without what is closed itself: *first*, then the rest, the session's home last."""
        open_ones = [root for root in self._writable if not self._blocked.hold(root) and not self._guarded.hold(root)]
        return sorted(open_ones, key=lambda root: (root != first, is_beneath_any(root, self._opened)))

    def closes(self, directory: str, name: str) -> str:
        """Say how a name in a directory that is open is closed: blocked, guarded, or not at all."""
        if not self._may_be_closed(f"/{name}"):
            return ""
        path = f"{directory}/{name}"
        return "blocked" if self._blocked.hold(path) else "guarded" if self._guarded.hold(path) else ""

    def _take(self, path: str, *, guarded: bool) -> Iterator[tuple[str, bool]]:
        self.met.add(path)
        real = os.path.realpath(path)
        if (path, guarded) not in self._taken and (real == path or self._may_cover(real)):
            self._taken.add((path, guarded))
            if len(self._taken) > self._max_found:
                why = f"there are more than {self._max_found}, {path} among them; remove those that nobody needs"
                raise StageFailed("blocked_paths", why)
            yield path, guarded

    def _look(self, directory: str, below: list[str]) -> Iterator[tuple[str, bool]]:
        prefix = "" if directory == "/" else directory
        sockets = is_beneath_any(directory, self._sockets_in) and not is_beneath_any(directory, self._sockets_of)
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if not self._left:
                        return
                    self._left -= 1
                    path = f"{prefix}/{entry.name}"
                    if self._may_be_closed(f"/{entry.name}"):
                        if self._blocked.hold(path):
                            yield from self._take(path, guarded=False)
                            continue
                        if self._guarded.hold(path) and not self._guarded.hold(directory):
                            yield from self._take(path, guarded=True)
                    if entry.is_dir(follow_symlinks=False):
                        if path not in self._starts and path not in _NOBODYS:
                            below.append(path)
                    elif sockets and _is_service(entry):
                        yield from self._take(path, guarded=False)
        except OSError:  # gone, no directory, or closed to us; to the session too, which has less rights
            return

    def holds(self, path: str) -> list[str]:
        """List the directories above a closed *path*, topmost first, whose renaming or moving would open it.

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
        return all(self.stays_closed(f"{root}{elsewhere}{rest}") for elsewhere in _ELSEWHERE)

    def _may_cover(self, target: str) -> bool:
        holds_a_root = any(is_beneath_any(root, (target,)) for root in self._roots)
        return is_beneath_any(target, self._roots) and not holds_a_root


def _turnings(path: str) -> list[str]:
    """List the directories that hold a link on the way of *path*, or the first name of it that is missing."""
    found: list[str] = []
    real, rest = "/", [part for part in path.split("/") if part]
    for _ in range(_STEPS_MAX):
        if not rest:
            break
        here = os.path.join(real, rest[0])
        try:
            target = os.readlink(here)
        except FileNotFoundError:
            return [*found, real]
        except NotADirectoryError:  # a file that a session could replace by a directory
            return [*found, os.path.dirname(real)]
        except OSError:  # no link, or not for us to see
            real, rest = here, rest[1:]
            continue
        found.append(real)
        rest = [part for part in os.path.normpath(os.path.join(real, target)).split("/") if part] + rest[1:]
        real = "/"
    return found


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
