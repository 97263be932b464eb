"""Look for closed names that came to be after a session's birth. Child side, stdlib only.

What a rule closes wherever it lies (`.git/hooks`) can be made by commands in a directory that is open: the birth
could not cover what was not there. So it is looked for while the session lives. Found is a closed name

- that the birth did not meet,
- that it met and that nothing covers, changed since: its cover went when somebody outside replaced what lay beneath,
  or there are no mounts to cover with.

Where the configuration of repositories is closed, also what makes another folder one: a `.git` that is no directory,
and a `config` beside what git tells a repository by. And in a guarded directory of these, every program: git runs a
hook only if it may be executed, and leaves examples that end in `.sample`.

Those are not moved aside, as nothing is here. A clone's own `.git/config` is honest work, and so are most hooks: the
tools that put them there (git-lfs, pre-commit, husky) would silently do nothing. Nor would it help against a process
that puts one back. Whoever runs the broker is told, and the next session has them covered.

Who made a name is not known: another session or somebody outside may have. No link is followed. The walk goes by
descriptors, tree after tree, nearest names first; it is bounded, and says when it did not come to its end. Changes
are told by the stamp of the last change (ctime), which no session sets, but a foreign file system may have its own
clock for.
"""

from __future__ import annotations

import os
import stat
from collections import deque

from sandbox.job import Stop
from sandbox.links import open_beneath
from sandbox.openat import KERNEL_FILE_SYSTEMS, Held, Refused, file_system, real_path

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from typing import Any

    from sandbox.hiding import Search
    from sandbox.job import Job

    Folder = tuple[str, str]  # its name, and what is known of the guarded directory that it is or lies in

MAX_NAMES = 50_000  # of one look: about a quarter of a second
_OPEN, _MET, _NEW = "", "met", "new"  # no guarded directory; one that the birth met; one that came later
_EXAMPLE = ".sample"
_REPOSITORY, _CONFIGURATION = ".git", "config"
_BARE = frozenset(("HEAD", "objects", "refs", _CONFIGURATION))  # a directory with these is a repository to git
_TELLING = _BARE | {_REPOSITORY}
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_ITEM_BYTES = 16  # of a finding, beside the path


def look(job: Job, spec: dict[str, Any], _fds: list[int]) -> dict[str, Any]:
    """Report the path of each closed name that is new, and whether it is a program; begin in the directory `first`.

    Raises: Stop: names, time, count.
    """
    if job.search is not None:  # without one, no layer keeps commands from any name
        _Look(job, job.search).perform(os.path.realpath(spec["first"]))
    return {}


class _Look:
    def __init__(self, job: Job, search: Search) -> None:
        self._job = job
        self._search = search
        self._bare = search.met - _mount_points() if search.left is None else search.left
        self._names_left = MAX_NAMES
        self._seen: set[tuple[int, int]] = set()

    def perform(self, first: str) -> None:
        for root in self._search.trees(first):
            pending: deque[tuple[tuple[str, ...], str]] = deque([((), _OPEN)])
            while pending:
                steps, guarded = pending.popleft()
                pending.extend(((*steps, name), within) for name, within in self._folders(root, steps, guarded))

    def _folders(self, root: str, steps: tuple[str, ...], guarded: str) -> list[Folder]:
        """Look at the names of one directory; return those of directories in it that are to be looked at."""
        self._job.tick()
        try:
            with Held(open_beneath(root, steps)) as directory:
                status = os.fstat(directory.fd)
                identity = (status.st_dev, status.st_ino)
                if identity in self._seen or file_system(directory.fd) in KERNEL_FILE_SYSTEMS:
                    return []
                self._seen.add(identity)
                return self._scan(directory.fd, real_path(directory.fd).rstrip("/"), guarded)
        except (OSError, Refused):
            return []  # gone, covered, or closed to us; to the session too, which has the same rights

    def _scan(self, fd: int, place: str, guarded: str) -> list[Folder]:
        folders: list[Folder] = []
        telling: dict[str, os.DirEntry[str]] = {}
        with os.scandir(fd) as entries:
            for entry in entries:
                if not self._names_left:
                    raise Stop("names")
                self._names_left -= 1
                if not self._names_left % 1000:
                    self._job.tick()
                within = guarded
                if guarded:
                    self._take_program(entry, place, guarded)
                elif how := self._search.closes(place, entry.name):
                    within = self._take(entry, f"{place}/{entry.name}")
                    if how == "blocked" or not within:
                        continue
                elif entry.name in _TELLING:
                    telling[entry.name] = entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.name, within))
        if telling:
            self._take_repository(telling, place)
        return folders

    def _take(self, entry: os.DirEntry[str], path: str) -> str:
        """Report a closed name if it is new or changed. Return what is known of it; nothing where it is covered."""
        met = path in self._search.met
        if met and path not in self._bare:
            return ""
        # Where the birth did not see every name, what it did not meet may have been there.
        new = not met and not self._search.missed
        if new or self._changed(entry):
            self._emit(path, program=_is_program(entry))
        return _NEW if new else _MET

    def _take_program(self, entry: os.DirEntry[str], place: str, guarded: str) -> None:
        if not entry.name.endswith(_EXAMPLE) and _is_program(entry) and (guarded == _NEW or self._changed(entry)):
            self._emit(f"{place}/{entry.name}", program=True)

    def _take_repository(self, entries: dict[str, os.DirEntry[str]], place: str) -> None:
        """Report what tells git which configuration to obey, where that has no closed name itself."""
        if not self._search.closes(f"{place}/{_REPOSITORY}", _CONFIGURATION):
            return
        pointer = entries.get(_REPOSITORY)
        if pointer and not pointer.is_dir(follow_symlinks=False) and self._changed(pointer):
            self._emit(f"{place}/{_REPOSITORY}", program=False)
        if entries.keys() >= _BARE and any(self._changed(entries[name]) for name in ("HEAD", _CONFIGURATION)):
            self._emit(f"{place}/{_CONFIGURATION}", program=False)

    def _changed(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.stat(follow_symlinks=False).st_ctime_ns >= self._search.since_ns
        except OSError:  # gone
            return False

    def _emit(self, path: str, *, program: bool) -> None:
        self._job.emit([path, program], _ITEM_BYTES + len(path))


def _is_program(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file(follow_symlinks=False) and bool(entry.stat(follow_symlinks=False).st_mode & _EXECUTABLE)
    except OSError:  # gone
        return False


def _mount_points() -> set[str]:
    with open("/proc/self/mountinfo", "rb") as lines:
        return {os.fsdecode(_plain(line.split(b" ")[4])) for line in lines}


def _plain(field: bytes) -> bytes:
    """Undo the octal escapes of a blank, a tab, a line's end and a backslash."""
    if b"\\" not in field:
        return field
    for code, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, character)
    return field
