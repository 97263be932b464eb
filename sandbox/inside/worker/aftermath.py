"""Look for closed names that came to be after a session's birth. Child side, stdlib only.

What a rule closes wherever it lies (`.git/hooks`) can be made by commands in a directory that is open: the birth
could not cover what was not there. So it is looked for while the session lives. Found is a closed name

- that the birth did not meet,
- that it met and that nothing covers, changed since: its cover went when somebody outside replaced what lay beneath,
  or there are no mounts to cover with.

Where the configuration of repositories is closed, also what makes another folder one: a `.git` that is no directory,
and a `config` beside what git tells a repository by. And in a guarded directory of these, every program: git runs a
hook only if it may be executed, and leaves examples that end in `.sample`.

What would have git start a program in a repository that was not there at the birth is set aside: the hook, or the
configuration, gets another name in its folder. Usual clones have nothing of the kind: their configuration says where
they came from, their hooks are examples. Hooks that tools put there (pre-commit, git-lfs) are set aside too, and
their owner may rename them back. All else is told alone: it may be of somebody outside, who works in his own
repositories meanwhile, or a file that a clone brought along and git would miss. A process of the session that puts one
back has it set aside again after the next command, and is dead at the last look. Which files start nothing is told by
closed lists of what usual repositories say; anything that is not on them counts as what could start a program.

It is not known who made a name: another session or somebody outside may have. No link is followed. The walk goes by
descriptors, tree after tree, nearest names first; it is bounded, and says when it did not come to its end. Changes
are told by the stamp of the last change (ctime), which no session sets, but a foreign file system may have its own
clock for.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import deque

from sandbox.inside.worker.job import Stop
from sandbox.inside.worker.walk import look_into

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from sandbox.inside.blocked_paths import Search
    from sandbox.inside.worker.job import Job
    from sandbox.protocol.files import FindClosedNames, Nothing

    Folder = tuple[str, str]  # its name, and what is known of the guarded directory that it is or lies in

MAX_NAMES = 50_000  # of one look: about a quarter of a second
_OPEN, _MET, _NEW = "", "met", "new"  # no guarded directory; one that the birth met; one that came later
_EXAMPLE = ".sample"
_REPOSITORY, _CONFIGURATION = ".git", "config"
_BARE = frozenset(("HEAD", "objects", "refs", _CONFIGURATION))  # a directory with these is a repository to git
_TELLING = _BARE | {_REPOSITORY}
_POINTER, _HOOKS, _ELSEWHERE = "commondir", "hooks", "config.worktree"
_ASIDE = ".set-aside"
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_ITEM_BYTES = 16  # of a finding, beside the path


def look(job: Job, spec: FindClosedNames, _fds: list[int]) -> Nothing:
    """Report each closed name that is new: its path, whether it is a program, the name that it was given, or "".

    Begins in the directory `first`.

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
        # What is closed to us is closed to the session too, which has the same rights.
        return look_into(root, steps, self._seen, lambda fd, place: self._scan(fd, place, guarded)) or []

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
                    self._take_program(entry, fd, place, guarded)
                elif how := self._search.closes(place, entry.name):
                    within = self._take(entry, fd, place)
                    if how == "blocked" or not within:
                        continue
                elif entry.name in _TELLING:
                    telling[entry.name] = entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append((entry.name, within))
            if telling:
                self._take_repository(telling, fd, place)
        return folders

    def _take(self, entry: os.DirEntry[str], fd: int, place: str) -> str:
        """Report a closed name if it is new or changed. Return what is known of it; nothing where it is covered."""
        path = f"{place}/{entry.name}"
        met = path in self._search.met
        if met and path not in self._bare:
            return ""
        # Where the birth did not see every name, what it did not meet may have been there.
        new = not met and not self._search.missed
        if new or self._changed(entry):
            aside = _set_aside(fd, entry.name) if new and _misleads(entry, fd, place) else ""
            self._emit(path, program=_is_program(entry), aside=aside)
        return _NEW if new else _MET

    def _take_program(self, entry: os.DirEntry[str], fd: int, place: str, guarded: str) -> None:
        if entry.name.endswith((_EXAMPLE, _ASIDE)) or not _is_program(entry):
            return
        if guarded == _NEW or self._changed(entry):
            aside = _set_aside(fd, entry.name) if guarded == _NEW and _is_of_git(place) else ""
            self._emit(f"{place}/{entry.name}", program=True, aside=aside)

    def _take_repository(self, entries: dict[str, os.DirEntry[str]], fd: int, place: str) -> None:
        """Report what tells git which configuration to obey, where that has no closed name itself."""
        if not self._search.closes(f"{place}/{_REPOSITORY}", _CONFIGURATION):
            return
        pointer = entries.get(_REPOSITORY)
        if pointer and not pointer.is_dir(follow_symlinks=False) and self._changed(pointer):
            plain = is_plain_pointer(_content(fd, _REPOSITORY))
            self._emit(f"{place}/{_REPOSITORY}", program=False, aside="" if plain else _set_aside(fd, _REPOSITORY))
        if entries.keys() >= _BARE and any(self._changed(entries[name]) for name in ("HEAD", _CONFIGURATION)):
            plain = is_plain_configuration(_content(fd, _CONFIGURATION))
            aside = "" if plain else _set_aside(fd, _CONFIGURATION)
            self._emit(f"{place}/{_CONFIGURATION}", program=False, aside=aside)

    def _changed(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.stat(follow_symlinks=False).st_ctime_ns >= self._search.since_ns
        except OSError:  # gone
            return False

    def _emit(self, path: str, *, program: bool, aside: str = "") -> None:
        self._job.emit((path, program, aside), _ITEM_BYTES + len(path) + len(aside))


def _is_of_git(place: str) -> bool:
    """Tell whether git keeps the folder, and nothing that a repository has versions of lies in it."""
    return any(step.endswith(_REPOSITORY) for step in place.split("/"))


def _misleads(entry: os.DirEntry[str], fd: int, place: str) -> bool:
    """Tell whether a closed name that is new has git start a program or obey another folder."""
    if not _is_of_git(place):
        return False
    if entry.name in (_CONFIGURATION, _ELSEWHERE):
        return not is_plain_configuration(_content(fd, entry.name))
    if entry.name == _POINTER:  # of worktrees alone
        of_worktree = os.path.basename(os.path.dirname(place)) == "worktrees"
        return not (of_worktree and is_plain_common(_content(fd, entry.name)))
    return entry.name == _HOOKS and entry.is_symlink()


def _content(fd: int, name: str) -> bytes:
    """The beginning of a file, more than is taken for plain; of what is none, or is not ours to read, nothing plain."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return b"\0"
    try:
        return os.read(file, CONFIGURATION_BYTES + 1) if stat.S_ISREG(os.fstat(file).st_mode) else b"\0"
    except OSError:
        return b"\0"
    finally:
        os.close(file)


def _set_aside(fd: int, name: str) -> str:
    """Give a file another name in its folder, which nothing obeys; return that, or "" where it cannot be had."""
    aside = f"{name}.{time.time_ns()}{_ASIDE}"
    try:
        os.rename(name, aside, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError:  # gone, or the folder takes no names from us
        return ""
    return aside


def _is_program(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_symlink():  # git runs what it leads to
            return True
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


# --- which files that git obeys start nothing

CONFIGURATION_BYTES = 64 * 1024  # of a configuration that is read; usual ones have some hundred

# Compiled when a look needs them (and kept by `re`): every session has this module, and few make repositories.
_HEADER = r'\[([A-Za-z0-9-]+)(?: "([^"\\]*)")?\]'
_SETTING = r"([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:=(.*))?"
_TARGET = rb"gitdir: (?:[^\0\n]*/)?\.git/(?:modules|worktrees)/([^\0\n]+)\n?"
_COMMON = b"../.."  # from a worktree's folder to its repository

_OF_A_SECTION = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "core": "repositoryformatversion filemode bare logallrefupdates ignorecase precomposeunicode symlinks worktree "
        "sparsecheckout sparsecheckoutcone autocrlf eol safecrlf quotepath abbrev compression hidedotfiles longpaths",
        "extensions": "worktreeconfig partialclone objectformat refstorage compatobjectformat",
        "index": "sparse version threads",
        "init": "defaultbranch",
        "user": "name email",
        "pull": "rebase ff",
        "push": "default autosetupremote followtags",
        "fetch": "prune prunetags",
        "rebase": "autostash autosquash",
        "merge": "conflictstyle ff",
        "commit": "verbose cleanup",
        "gc": "auto",
        "maintenance": "auto strategy",
        "advice": "detachedhead",
        "lfs": "repositoryformatversion",
    }.items()
    for key in keys.split()
)
_OF_A_NAME = frozenset(
    f"{section}.{key}"
    for section, keys in {
        "remote": "url pushurl fetch push mirror prune prunetags tagopt promisor partialclonefilter skipfetchall "
        "gh-resolved",
        "branch": "remote merge rebase description pushremote autosetupmerge",
        "submodule": "url active branch path update ignore",
    }.items()
    for key in keys.split()
)


def is_plain_configuration(data: bytes) -> bool:
    """Tell whether a repository's configuration says nothing but what makes git start no program."""
    if len(data) > CONFIGURATION_BYTES or b"\\" in data or b"\r" in data or b"\0" in data:
        return False
    section = None
    for line in data.decode(errors="replace").split("\n"):
        words = line.strip(" \t")
        if not words or words[0] in "#;":
            continue
        header = re.fullmatch(_HEADER, words)
        if header is not None:
            section = header
            continue
        setting = re.fullmatch(_SETTING, words)
        if section is None or setting is None or not _is_listed(section, setting):
            return False
    return True


def _is_listed(section: re.Match[str], setting: re.Match[str]) -> bool:
    key = f"{section[1]}.{setting[1]}".lower()
    value = (setting[2] or "").strip()
    # A transport of another program's ("ext::"), and a submodule that is updated by a command ("!").
    if "::" in value or value.lstrip('"').startswith("!"):
        return False
    return key in (_OF_A_SECTION if section[2] is None else _OF_A_NAME)


def is_plain_pointer(data: bytes) -> bool:
    """Tell whether a file named `.git` leads into a repository, as those of submodules and worktrees do."""
    target = re.fullmatch(_TARGET, data) if len(data) <= CONFIGURATION_BYTES else None
    return target is not None and b".." not in target[1].split(b"/")


def is_plain_common(data: bytes) -> bool:
    """Tell whether a worktree's `commondir` leads to the repository that it lies in."""
    return data.strip() == _COMMON
