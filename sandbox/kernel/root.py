"""File system of a session: a new root that holds what was named and nothing else. Child side, stdlib only.

A new root instead of the old one made read-only: what is not there cannot be connected to (sockets in /run and
/tmp), asked for its size, owner or age, or have its mode changed, and Landlock prevents none of these. Trees of
the machine are cloned, stripped of rights while nobody sees them yet, and attached at their own paths.

Runs in a mount namespace of its own, as process 1 of the pid namespace, with CAP_SYS_ADMIN over both. Needs
mount_setattr (Linux 5.12). Everything that has to come from the old root is opened before the switch; what is
attached afterwards is looked up in the new root alone, so a symbolic link can lead nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat

from sandbox.kernel import masks, mounting
from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY, explained

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sandbox.kernel.mounting import Bind

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
_CGROUP = "/sys/fs/cgroup"
_LINKS_MAX = 40  # as the kernel
# An empty file takes the kernel about a KiB that counts as nobody's bytes: so many bytes there must be for each.
BYTES_PER_FILE = 8192
_FILES_MIN = 64


class RootPlan:
    """Contents of a new root.

    Attributes:
        binds: trees and files of the machine; one beneath another takes its place there. "/" is the machine's
            own root as the ground to build on, instead of an empty one.
        real: those of them whose paths have no symbolic links, so that one with a link is not what was meant: it is
            missing, but its name works where the link leads into another bind.
        private: directories that the session gets empty and for itself, open to all like /tmp.
        private_bytes: how much each of them holds, in a file for each BYTES_PER_FILE of them at most.
        close: closes what stays closed in all that; called when everything else stands.
        cgroup: show the cgroup in which the cgroup namespace was made, instead of none.
    """

    __slots__ = ("binds", "cgroup", "close", "private", "private_bytes", "real")

    def __init__(
        self,
        *,
        binds: Iterable[Bind],
        real: Iterable[str] = (),
        private: Iterable[Bind] = (),
        private_bytes: int = 1 << 30,
        close: Callable[[], masks.MaskOutcome] = masks.MaskOutcome,
        cgroup: bool = False,
    ) -> None:
        self.binds = dict(binds)
        self.real = frozenset(real)
        self.private = dict(private)
        self.private_bytes = private_bytes
        self.close = close
        self.cgroup = cgroup


class RootOutcome:
    """Result of building: the binds that are not there, and what was closed."""

    __slots__ = ("closed", "missing")

    def __init__(self, missing: Iterable[str], closed: masks.MaskOutcome) -> None:
        self.missing = tuple(missing)
        self.closed = closed


def build(plan: RootPlan) -> RootOutcome:
    """Build the new root and move into it. Raises OSError whose text says at what."""
    root = NewRoot()
    mounting.make_private()
    missing = root.gather(plan)
    missing += root.switch()
    closed = plan.close()
    for path in root.own & {"/", "/dev"}:
        mounting.forbid(path, READ_ONLY)
    return RootOutcome(missing, closed)


def trace(path: str) -> tuple[str, list[tuple[str, str]]]:
    """Resolve *path*; return the real path, and each symbolic link on the way with what it says.

    Raises OSError: it leads nowhere, or in circles.
    """
    links: list[tuple[str, str]] = []
    real, rest = "/", path.split("/")
    while rest:
        name = rest.pop(0)
        here = os.path.normpath(os.path.join(real, name))
        if name not in {"", ".", ".."} and stat.S_ISLNK(os.lstat(here).st_mode):
            target = os.readlink(here)
            links.append((here, target))
            if len(links) > _LINKS_MAX:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            real, rest = "/" if target.startswith("/") else real, target.split("/") + rest
        else:
            real = here
    return real, links


def needed(binds: Mapping[str, int], special: Collection[str]) -> list[Bind]:
    """Leave out what the tree above it shows already, with the same rights and nothing special in between."""
    return [(path, rights) for path, rights in binds.items() if _shown_by(path, binds, special) != rights]


def _shown_by(path: str, binds: Mapping[str, int], special: Collection[str]) -> int | None:
    while path != "/":
        path = os.path.dirname(path)
        if path in special:
            return None
        if path in binds:
            return binds[path]
    return None


def _depth(path: str) -> int:
    return len(path.rstrip("/").split("/"))


class NewRoot:
    """A root under construction: open mounts by the path they go to, until `switch` makes it ours."""

    def __init__(self) -> None:
        self.own: set[str] = set()  # where file systems of our own go
        self._own_devices: set[int] = set()  # their numbers: nothing is ever made in a tree of the machine
        self._mounts: dict[str, int] = {}
        self._links: dict[str, str] = dict(_DEVICE_LINKS)

    def gather(self, plan: RootPlan) -> list[str]:
        """Open everything that comes from the old root or has to be made while it is there; return what is not."""
        real_binds, missing = self._resolve(plan.binds, plan.real)
        if "/" not in real_binds:
            self._make("/", "tmpfs", NO_SUID | NO_DEV | NO_EXEC, size="1m", mode="755")
        self._make("/dev", "tmpfs", NO_SUID | NO_EXEC, size="64k", mode="755")
        self._make("/dev/pts", "devpts", NO_SUID | NO_EXEC, mode="620", ptmxmode="666")
        # A user namespace may mount /proc only while it sees a whole one: so before the switch.
        self._make("/proc", "proc", NO_SUID | NO_DEV | NO_EXEC)
        if plan.cgroup:
            self._make(_CGROUP, "cgroup2", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC)
        elif os.path.isdir(_CGROUP):
            self._make(_CGROUP, "tmpfs", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, size="4k", mode="755")
        for path, rights in plan.private.items():
            files = max(_FILES_MIN, plan.private_bytes // BYTES_PER_FILE)
            self._make(path, "tmpfs", rights, size=str(plan.private_bytes), nr_inodes=str(files), mode="1777")
        for path, rights in needed(real_binds, self._mounts):
            if path not in self._mounts:
                self._mounts[path] = mounting.clone(path, rights)
        for name in DEVICES:  # read-only: what they say of themselves cannot be changed, what they do is the same
            self._mounts[f"/dev/{name}"] = mounting.clone(f"/dev/{name}", READ_ONLY | NO_SUID | NO_EXEC)
        return missing

    def _resolve(self, binds: Mapping[str, int], wanted_real: Collection[str]) -> tuple[dict[str, int], list[str]]:
        real_binds: dict[str, int] = {}
        missing = []
        for path, rights in binds.items():
            try:
                real, links = trace(path)
            except OSError:  # not there, or not for us to see: there is nothing to show, and the caller says so
                missing.append(path)
                continue
            if path in wanted_real and links:
                missing.append(path)
            else:
                real_binds[real] = rights
            self._links.update(links)
        return real_binds, missing

    def _make(self, path: str, kind: str, rights: int, **settings: str) -> None:
        self._mounts[path] = fd = mounting.make(kind, rights, settings)
        self._own_devices.add(os.fstat(fd).st_dev)
        self.own.add(path)

    def switch(self) -> list[str]:
        """Make the ground our root, let go of the old one, attach the rest from the top down; return what is not."""
        mounting.enter(self._mounts.pop("/"))
        missing = [path for path in sorted(self._mounts, key=_depth) if not self._place(path)]
        for path in sorted(self._links, key=_depth):
            if self._make_point(os.path.dirname(path)) and self._is_ours(path) and not os.path.lexists(path):
                os.symlink(self._links[path], path)
        return missing

    def _place(self, path: str) -> bool:
        fd = self._mounts.pop(path)
        try:
            there = self._make_point(path, directory=stat.S_ISDIR(os.fstat(fd).st_mode))
            if there:
                mounting.attach(fd, path)
        finally:
            os.close(fd)
        return there

    def _make_point(self, path: str, *, directory: bool = True) -> bool:
        """See to it that there is something to mount on, made on our own ground or there already."""
        if os.path.lexists(path):
            return True
        if not self._make_point(os.path.dirname(path)) or not self._is_ours(path):
            return False
        with explained(path):
            if directory:
                os.mkdir(path, 0o755)
            else:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444))
        return True

    def _is_ours(self, path: str) -> bool:
        return os.stat(os.path.dirname(path)).st_dev in self._own_devices
