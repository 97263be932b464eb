"""Files with several names (hard links), and whether the rules permit all of them (child side, stdlib only).

A hard link gives a closed file a second, innocent name, and no path tells. So before a file with several names is used
its others are looked for beneath the roots. Found all and none is closed: it may be used. A closed one, one that was
not found, or names that change while they are looked for count against the file.

Directories are opened one step after the other without following a link, and a name counts where its directory really
is, not where somebody has swapped another for it. The roots are looked through once, when the first such file is met.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque

from sandbox.inside.worker.walk import Rules, open_directory
from sandbox.kernel.files import KERNEL_FILE_SYSTEMS, Held, Refused, file_system, open_path, real_path

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox import protocol
    from sandbox.inside.worker.job import Job

    Identity = tuple[int, int]

SEARCHED_ENTRIES = 200_000  # a second or two
# A name that comes or goes sets its file's ctime, by a clock that steps every 10 ms at most: what is older than twice
# that when a search begins, and still so at its end, has kept all of its names meanwhile.
SETTLED_NS = 20_000_000
STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        """Whether every name of the file is known and permitted."""
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
            try:
                with Held(open_beneath(root, steps)) as directory:
                    folders, count = self._scan(directory.fd, seen)
            except (OSError, Refused):
                continue  # gone, or not ours to look into: its names stay unknown, which counts against a file
            looked_at += count
            pending.extend((root, (*steps, name)) for name in folders)

    def _scan(self, fd: int, seen: set[Identity]) -> tuple[list[str], int]:
        """Take the names of one directory; return those of directories in it, and how many there are in all."""
        status = os.fstat(fd)
        device = status.st_dev
        elsewhere = self._wanted is not None and device != self._wanted[0]
        if elsewhere or (device, status.st_ino) in seen or file_system(fd) in KERNEL_FILE_SYSTEMS:
            return [], 1
        seen.add((device, status.st_ino))
        place, folders, count = real_path(fd).rstrip("/"), [], 1
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


def open_beneath(root: str, steps: Iterable[str]) -> int:
    """Open a directory for reading; from *root* on no step follows a link. Raises OSError."""
    fd = open_path(root, flags=os.O_DIRECTORY)
    try:
        for name in steps:
            below = os.open(name, STEP, dir_fd=fd)
            os.close(fd)
            fd = below
        return open_directory(".", fd)
    finally:
        os.close(fd)


def judge(job: Job, spec: protocol.JudgeNames, _fds: list[int]) -> protocol.NamesJudged:
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
