"""Cover what must not be seen, keep what must not change, and hold in their places the directories above. Child side.

Stdlib only. All of it is done by mounts, in the namespace where they stand:

- a mask: what it covers can be neither read nor changed nor renamed;
- a guard: a tree that is mounted on itself read-only can be read, and nothing in it changes;
- a hold: a directory mounted on itself cannot be renamed or removed, so that nobody finds later, under another name,
  what is closed beneath it; moving something out of it is a copy from then on;
- a frame: a directory that is read-only by itself takes no new names, so that what is closed though it is not there
  yet stays away; the directories in it are mounted on top as they were.

What belongs to the session beneath a mask or a guard, its home and its programs, is mounted there again: a hole.
"""

from __future__ import annotations

import contextlib
import os
import stat

from sandbox.kernel import mounting
from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, explained
from sandbox.paths import is_beneath_any

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandbox.kernel.mounting import Bind

_VOID = "/dev/.void"  # what masks are made of; gone when they are
_NOTHING = READ_ONLY | NO_SUID | NO_DEV | NO_EXEC


class MaskOutcome:
    """Result of closing: the paths that were covered, those that are guarded, and the directories that are framed.

    `left`: how many are guarded from the file tools alone.
    """

    __slots__ = ("framed", "guarded", "left", "masked")

    def __init__(self) -> None:
        self.left = 0
        self.masked: list[str] = []
        self.guarded: list[str] = []
        self.framed: list[str] = []


def close(
    found: Iterable[tuple[str, bool]],
    *,
    holds: Callable[[str], Iterable[str]] = lambda _: (),
    frames: Iterable[str] = (),
    stays_closed: Callable[[str], bool] = lambda _: False,
    holes: Iterable[Bind] = (),
) -> MaskOutcome:
    """Frame, then cover and guard what is *found*, asked for one by one; return what became of it.

    Args:
        found: paths, whatever they are, and whether each is only to be guarded; a link is closed together with what
            it leads to.
        holds: says which directories are to be held for a path, topmost first.
        frames: directories without links in their paths.
        stays_closed: says of a directory in a frame that it must not be written.
        holes: paths that stay as they are beneath what is closed, and the rights that nobody has in them.

    Raises OSError whose text says at what. /dev is ours and can be written.
    """
    os.makedirs(_VOID)
    work = _Closing(holes)
    try:
        for directory in sorted(frames, key=len):
            work.frame(directory, stays_closed)
        for path, only_guarded in found:
            for above in holds(path):
                work.hold(above)
            if only_guarded:
                work.guard(path, stays_closed)
            else:
                work.mask(path)
    finally:
        work.let_go()
    for name in os.listdir(_VOID):
        os.rmdir(f"{_VOID}/{name}") if name == "directory" else os.unlink(f"{_VOID}/{name}")
    os.rmdir(_VOID)
    return work.outcome


class _Closing:
    """Mounts of one session, while they are made."""

    def __init__(self, holes: Iterable[Bind]) -> None:
        self.outcome = MaskOutcome()
        self._held: set[str] = set()
        self._framed: set[str] = set()
        self._holes: list[tuple[str, int, int]] = []  # path, rights, the descriptor of what is there now
        for path, rights in sorted(holes, key=lambda hole: len(hole[0])):
            with contextlib.suppress(OSError):  # not there: then nothing of it can be left open
                self._holes.append((path, rights, mounting.pin(path)))

    def let_go(self) -> None:
        """Close what the holes are made of."""
        for _, _, fd in self._holes:
            os.close(fd)

    def hold(self, path: str) -> None:
        """Mount a directory on itself, once."""
        if path in self._held:
            return
        self._held.add(path)
        try:
            fd = mounting.clone(path, 0)
        except FileNotFoundError:  # moved while we looked, and what is beneath it too: there is nothing to hold
            return
        _attach(fd, path, f"hold {path}")

    def frame(self, directory: str, stays_closed: Callable[[str], bool]) -> None:
        """Let a directory take no new names; what is open in it stays as it is, plain files excepted."""
        if directory in self._framed:
            return
        self._framed.add(directory)
        try:
            before = mounting.pin(directory)  # of what lies under the mount that is made now
        except FileNotFoundError:
            return
        try:
            _attach(mounting.clone(directory, READ_ONLY), directory, f"frame {directory}")
            for name in _directories(before):
                path = f"{directory.rstrip('/')}/{name}"
                if not stays_closed(path):
                    with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # gone, or a link by now
                        _attach(mounting.clone_beneath(before, name), path, f"open {path}")
        finally:
            os.close(before)
        self._open_holes(directory)
        self.outcome.framed.append(directory)

    def guard(self, path: str, stays_closed: Callable[[str], bool]) -> None:
        """Mount *path* on itself read-only, and what it leads to; a link itself is kept by a frame around it."""
        real = os.path.realpath(path)
        if real != path and os.path.islink(path):
            self.frame(os.path.realpath(os.path.dirname(path)), stays_closed)
        try:
            fd = mounting.clone(real, READ_ONLY)
        except OSError:  # gone, or beneath a mask
            return
        _attach(fd, real, f"guard {path}")
        self._open_holes(real)
        self.outcome.guarded.append(path)

    def mask(self, path: str) -> None:
        """Cover *path* with nothing, whatever it is and if it is there."""
        real = os.path.realpath(path)
        try:
            is_directory = stat.S_ISDIR(os.lstat(real).st_mode)
        except OSError:  # not there, or beneath another mask
            return
        if is_directory and any(is_beneath_any(hole, (real,)) for hole, _, _ in self._holes):
            self._veil(real)
        else:
            _put_nothing(real, is_directory=is_directory)
        if os.path.islink(path):
            with contextlib.suppress(OSError):  # a kernel that mounts nothing on a link: its target is covered anyway
                _put_nothing(path, is_directory=False)
        self.outcome.masked.append(path)

    def _veil(self, directory: str) -> None:
        """Cover a directory with one that holds the way to the holes beneath it and nothing else."""
        kind = NO_SUID | NO_DEV | NO_EXEC
        fd = mounting.make("tmpfs", kind, {"size": "64k", "nr_inodes": "1k", "mode": "755"})
        _attach(fd, directory, f"veil {directory}")
        inside = [(path, hole) for path, _, hole in self._holes if is_beneath_any(path, (directory,))]
        for path, hole in inside:
            if not os.path.lexists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if stat.S_ISDIR(os.fstat(hole).st_mode):
                    os.mkdir(path)
                else:
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        self._open_holes(directory)
        mounting.forbid(directory, kind | READ_ONLY)

    def _open_holes(self, directory: str) -> None:
        for path, rights, fd in self._holes:
            if is_beneath_any(path, (directory,)) and os.path.lexists(path):
                _attach(mounting.clone_pinned(fd, rights), path, f"leave {path} open")


def _directories(fd: int) -> list[str]:
    readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        with os.scandir(readable) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    finally:
        os.close(readable)


def _attach(fd: int, path: str, what: str) -> None:
    try:
        with explained(what):
            mounting.attach(fd, path)
    finally:
        os.close(fd)


def _put_nothing(path: str, *, is_directory: bool) -> None:
    source = f"{_VOID}/{'directory' if is_directory else 'file'}"
    if not os.path.lexists(source):
        os.mkdir(source, 0) if is_directory else os.close(os.open(source, os.O_CREAT | os.O_CLOEXEC, 0))
    _attach(mounting.clone(source, _NOTHING), path, f"mask {path}")
