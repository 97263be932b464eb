"""Walk a tree by descriptors, without ever following a link, and never into what the rules do not permit.

Child side, stdlib only. The rules come as data (see the policy's `TreeFilter`) and are asked about real paths: each
directory says where it is when it is opened, not where it was when its name was read.

A hard link gives a closed file a second, innocent name, and no path tells. So before a file with several names is used
its others are looked for beneath the roots. Found all and none is closed: it may be used. A closed one, one that was
not found, or names that change while they are looked for count against the file. A name counts where its directory
really is, not where somebody has swapped another for it. The roots are looked through once, when the first such file is
met.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections import deque

from sandbox.inside.unfinished import hidden
from sandbox.kernel.files import (
    KERNEL_FILE_SYSTEMS,
    KINDS,
    OPEN_DIRECTORY,
    Held,
    Refused,
    file_system,
    open_path,
    real_path,
)
from sandbox.protocol.files import MAX_DEPTH

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from sandbox.inside.worker.job import Job
    from sandbox.protocol.files import JudgeNames, NamesJudged, TreeRules

    Identity = tuple[int, int]  # device and inode
    T = TypeVar("T")

MAX_NAMES = 1_000_000  # of one directory
SEARCHED_ENTRIES = 200_000  # a second or two
# A name that comes or goes sets its file's ctime, by a clock that steps every 10 ms at most: what is older than twice
# that when a search begins, and still so at its end, has kept all of its names meanwhile.
SETTLED_NS = 20_000_000
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Rules:
    """Which paths may be touched."""

    def __init__(self, spec: TreeRules) -> None:
        self._allowed = re.compile(spec["allowed"]).fullmatch
        self._opened = re.compile(spec["opened"]).match
        self._blocked_from_root = re.compile(spec["blocked_from_root"]).match
        self._blocked_anywhere = re.compile(spec["blocked_anywhere"]).search
        self._guards: tuple[str, str] = spec["guarded_from_root"], spec["guarded_anywhere"]
        self._extensions = frozenset(spec["blocked_extensions"])

    def permit(self, path: str) -> bool:
        """Tell whether an absolute real path may be touched at all."""
        text = "" if path == "/" else path
        inside = self._opened(text)
        if inside is not None:
            return not (self._blocked_anywhere(text, inside.end()) or self._allowed(text) is None)
        return not (self._blocked_anywhere(text) or self._blocked_from_root(text) or self._allowed(text) is None)

    def permit_change(self, path: str) -> bool:
        """Tell whether something may be made, written, moved away or removed at this path."""
        if not self.permit(path):
            return False
        from_root, anywhere = map(re.compile, self._guards)  # most walks never ask; the others find them in a cache
        text = "" if path == "/" else path
        inside = self._opened(text)
        if inside is not None:
            return not anywhere.search(text, inside.end())
        return not (anywhere.search(text) or from_root.match(text))

    def permit_file(self, path: str) -> bool:
        """Tell whether a file may be written at this path."""
        return self.permit_change(path) and self._extensions.isdisjoint(path.rpartition("/")[2].lower().split(".")[1:])


class Found:
    """One name of a tree. `parent_fd` is open until the walk goes on; set `descend` to False to stay out of it."""

    __slots__ = ("depth", "descend", "kind", "name", "parent_fd", "path", "permitted", "relative")

    def __init__(self, level: _Level, name: str, kind: str, *, permitted: bool) -> None:
        self.parent_fd, self.name, self.kind, self.permitted = level.fd, name, kind, permitted
        self.path = f"{level.path}/{name}"
        self.relative = f"{level.relative}{name}"
        self.depth = level.depth
        self.descend = kind == "directory"

    def status(self) -> os.stat_result | None:
        """Return the facts of the name itself; None when it went away."""
        try:
            return os.lstat(self.name, dir_fd=self.parent_fd)
        except OSError:
            return None  # gone, or in a directory that may be read but not searched


class _Level:
    """An open directory of the walk, and the names that are still to come."""

    __slots__ = ("depth", "device", "fd", "names", "path", "relative")

    def __init__(self, fd: int, path: str, relative: str, depth: int) -> None:
        self.fd, self.path, self.relative, self.depth = fd, "" if path == "/" else path, relative, depth
        self.device = os.fstat(fd).st_dev
        self.names: Iterator[tuple[str, str]] = iter(())


def open_directory(name: str, parent_fd: int) -> int:
    """Open a directory by its name in another; a link in its place fails."""
    return os.open(name, OPEN_DIRECTORY, dir_fd=parent_fd)


def names_of(fd: int, keep: Callable[[str], bool] | None = None) -> list[tuple[str, str]]:
    """Return (name, kind) of what a directory holds, in code point order."""
    found = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if keep is None or keep(entry.name):
                found.append((entry.name, _kind_of(entry)))
            if len(found) > MAX_NAMES:
                raise Refused("too_large", errno.EFBIG, f"a directory holds more than {MAX_NAMES} names")
    found.sort()
    return found


def _kind_of(entry: os.DirEntry[str]) -> str:
    if entry.is_dir(follow_symlinks=False):
        return "directory"
    if entry.is_file(follow_symlinks=False):
        return "file"
    if entry.is_symlink():
        return "symlink"
    try:
        return KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "device")
    except OSError:
        return "unknown"  # gone, or not to be asked


class Walk:
    """One walk, names in order, a directory before what it holds. Counts what it passed over."""

    def __init__(self, job: Job, rules: Rules, *, hidden: bool = True, depth: int = MAX_DEPTH) -> None:
        self._job = job
        self._rules = rules
        self._hidden = hidden
        self._depth = depth

    def tree(self, root_fd: int) -> Iterator[Found]:
        """Yield everything below *root_fd*, which stays the caller's. Raises: Stop, OSError for the root itself."""
        stack = [self._filled(_Level(os.dup(root_fd), real_path(root_fd), "", 1))]
        try:
            while stack:
                level = stack[-1]
                entry = next(level.names, None)
                if entry is None:
                    os.close(stack.pop().fd)
                    continue
                found = self._found(level, *entry)
                yield found
                if found.descend and (below := self._below(level, found)):
                    stack.append(below)
        finally:
            for level in stack:
                os.close(level.fd)

    def _found(self, level: _Level, name: str, kind: str) -> Found:
        self._job.tick()
        permitted = self._rules.permit(f"{level.path}/{name}")
        found = Found(level, name, kind, permitted=permitted)
        if not permitted:
            found.descend = False
        return found

    def _below(self, level: _Level, found: Found) -> _Level | None:
        if level.depth >= self._depth:
            if self._depth == MAX_DEPTH:
                self._job.count("too_deep")
            return None
        try:
            fd = open_directory(found.name, level.fd)
        except OSError:
            self._job.count("unreadable")
            return None
        try:
            below = self._entered(fd, found, level)
        except BaseException:
            os.close(fd)
            raise
        if below is None:
            os.close(fd)
        return below

    def _entered(self, fd: int, found: Found, level: _Level) -> _Level | None:
        """The next level, unless it turns out to be somewhere else or part of the kernel's own trees."""
        try:
            below = _Level(fd, real_path(fd), f"{found.relative}/", level.depth + 1)
        except Refused:
            return None  # removed since its name was read
        if not self._rules.permit(below.path):
            self._job.count("blocked")
            return None
        if below.device != level.device and file_system(fd) in KERNEL_FILE_SYSTEMS:
            return None
        return self._filled(below)

    def _filled(self, level: _Level) -> _Level:
        names = names_of(level.fd, None if self._hidden else _is_plain)
        level.names = (entry for entry in names if not hidden.was_reclaimed(level.fd, entry[0]))
        return level


def _is_plain(name: str) -> bool:
    return not name.startswith(".")


class Links:
    """The names of all files beneath the roots, or of the *wanted* one alone, until all of its are known."""

    def __init__(self, job: Job, rules: Rules, roots: Iterable[str], wanted: Identity | None = None) -> None:
        self._job = job
        self._rules = rules
        self._roots = tuple(dict.fromkeys(roots))
        self._wanted = wanted
        self._left = -1  # names of the wanted one that are still to be found
        self._since_ns = 0
        self._names: dict[Identity, set[str]] | None = None

    def are_innocent(self, fd: int) -> bool:
        """Tell whether every name of the file is known and permitted."""
        return not self.fault(fd)

    def fault(self, fd: int) -> str:
        """Return what stands against the file: "closed", "unknown" or "changing"; nothing for one that may be used."""
        before = os.fstat(fd)
        if before.st_nlink < 2:
            return ""
        if self._names is None:
            self._names = {}
            self._look(before)
        after = os.fstat(fd)
        names = self._names.get((after.st_dev, after.st_ino), set())
        if not all(map(self._rules.permit, names)):
            return "closed"
        settled = after.st_ctime_ns <= self._since_ns - SETTLED_NS
        if not settled or (before.st_nlink, before.st_ctime_ns) != (after.st_nlink, after.st_ctime_ns):
            return "changing"
        return "" if len(names) == after.st_nlink else "unknown"

    def found(self, fd: int) -> int:
        """Return how many names of the file were found."""
        status = os.fstat(fd)
        return len((self._names or {}).get((status.st_dev, status.st_ino), ()))

    def _look(self, first: os.stat_result) -> None:
        """Find the names; *first* is the file that they are wanted for now."""
        if time.time_ns() - first.st_ctime_ns < SETTLED_NS:
            time.sleep(SETTLED_NS / 1e9)
        self._since_ns = time.time_ns()
        self._left = first.st_nlink if self._wanted else -1
        pending: deque[tuple[str, tuple[str, ...]]] = deque((root, ()) for root in self._roots)
        seen, looked_at = set[tuple[int, int]](), 0
        while pending and looked_at < SEARCHED_ENTRIES and self._left:
            root, steps = pending.popleft()
            self._job.tick()
            # Names in a directory that is not looked into stay unknown, which counts against a file.
            folders, count = look_into(root, steps, seen, self._scan) or ([], 1)
            looked_at += count
            pending.extend((root, (*steps, name)) for name in folders)

    def _scan(self, fd: int, place: str) -> tuple[list[str], int]:
        """Take the names of one directory; return those of directories in it, and how many there are in all."""
        device = os.fstat(fd).st_dev
        if self._wanted is not None and device != self._wanted[0]:
            return [], 1
        folders, count = [], 1
        with os.scandir(fd) as entries:
            for entry in entries:
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    self._take((device, entry.inode()), f"{place}/{entry.name}")
        return folders, count

    def _take(self, identity: Identity, path: str) -> None:
        if self._wanted is not None:
            if identity != self._wanted:
                return
            self._left -= 1
        if self._names is not None:
            self._names.setdefault(identity, set()).add(path)


def look_into(root: str, steps: Iterable[str], seen: set[Identity], scan: Callable[[int, str], T]) -> T | None:
    """Return what *scan* says of a directory that is open for reading, and where it really is, without a last slash.

    From *root* on no step follows a link. None for a directory that was *seen* before, is part of the kernel's own
    trees, is gone, or is not ours to look into.
    """
    try:
        with Held(_open_beneath(root, steps)) as directory:
            status = os.fstat(directory.fd)
            identity = (status.st_dev, status.st_ino)
            if identity in seen or file_system(directory.fd) in KERNEL_FILE_SYSTEMS:
                return None
            seen.add(identity)
            return scan(directory.fd, real_path(directory.fd).rstrip("/"))
    except (OSError, Refused):
        return None


def _open_beneath(root: str, steps: Iterable[str]) -> int:
    fd = open_path(root, flags=os.O_DIRECTORY)
    try:
        for name in steps:
            below = os.open(name, STEP, dir_fd=fd)
            os.close(fd)
            fd = below
        return open_directory(".", fd)
    finally:
        os.close(fd)


def judge_names(job: Job, spec: JudgeNames, _fds: list[int]) -> NamesJudged:
    """Say what stands against using the file at `path`, and how many of its names were found.

    Raises: Refused when it is not the file that was decided on any more.
    """
    wanted = (spec["dev"], spec["ino"])
    with Held(open_path(spec["path"], flags=os.O_NOFOLLOW)) as pinned:
        status = os.fstat(pinned.fd)
        if (status.st_dev, status.st_ino) != wanted:
            raise Refused("changed", errno.ESTALE, "it was replaced meanwhile; try again")
        links = Links(job, Rules(spec["rules"]), spec["link_roots"], wanted)
        return {"fault": links.fault(pinned.fd), "found": links.found(pinned.fd), "names": status.st_nlink}
