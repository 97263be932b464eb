"""Find the process that holds a socket, and tell whether it is one of a session, by /proc. Outside the walls.

Blocks for milliseconds. A process of a session is known by this: it is in the pid namespace that its session has, from
which nothing leads out; and where sessions have none, it descends from the broker (its init and keepers are the reapers
of what it leaves, and out of reach of its signals) or has the marks that nothing takes off: no_new_privs, and a filter
more than the broker.
So the others are told apart, and only where it is certain: they are in the broker's own pid namespace, or have a whole
line of ancestors without the broker. A process that cannot be looked at is not known to be one of them.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import attrs

from sandbox.kernel import processes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STATUS_BYTES = 8192


@attrs.frozen
class Holder:
    """A process that has the socket. `apart`: it is certainly of no session."""

    pid: int
    apart: bool


@attrs.frozen(kw_only=True)
class Holders:
    """Search for holders. `own_namespaces`: sessions have pid namespaces of their own. `filtered`: and a filter."""

    own_namespaces: bool
    filtered: bool

    def find(self, inode: int, likely: Sequence[int] = ()) -> Holder | None:
        """Return the process that has the socket *inode*, one of a session first; None: none that we can see.

        Args:
            inode: of the socket.
            likely: numbers of processes that are looked at before all others.
        """
        inside = self.find_inside(inode)
        if inside is not None:
            return Holder(inside, apart=False)
        suspect: Holder | None = None
        for pid in _in_order(likely):
            if _holds(f"/proc/{pid}/fd", inode):
                if self._is_apart(pid):
                    return Holder(pid, apart=True)
                suspect = Holder(pid, apart=False)
        return suspect

    def find_inside(self, inode: int) -> int | None:
        """Return the number of a descendant of ours that has the socket *inode* in one of its threads; or None."""
        for entry in processes.descendants(os.getpid()):
            threads = f"/proc/{entry.pid}/task"
            with contextlib.suppress(OSError):  # it ended, or is not ours to see
                if any(_holds(f"{threads}/{thread}/fd", inode) for thread in os.listdir(threads)):
                    return entry.pid
        return None

    def _is_apart(self, pid: int) -> bool:
        if self.own_namespaces and _pid_namespace(pid) == _pid_namespace(os.getpid()) != "":
            return True
        line = _whole_line(pid)
        if line is None or os.getpid() in line or line != _whole_line(pid):
            return False
        return self.own_namespaces or not self._marked(pid)

    def _marked(self, pid: int) -> bool:
        theirs, ours = _restraint(pid), _restraint(os.getpid())
        if theirs is None or ours is None:
            return True
        return theirs[0] > 0 and (not self.filtered or theirs[1] > ours[1])


def _in_order(likely: Sequence[int]) -> Iterator[int]:
    """Yield the likely ones, then all processes, the youngest first: clients are younger than daemons."""
    yield from likely
    yield from sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _holds(folder: str, inode: int) -> bool:
    """Tell whether one of the descriptors in *folder* is the socket; no for those that are not ours to see."""
    wanted = f"socket:[{inode}]"
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(OSError):  # closed meanwhile
            if os.readlink(f"{folder}/{name}") == wanted:
                return True
    return False


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # gone, or not ours to see
        return ""


def _whole_line(pid: int) -> tuple[int, ...] | None:
    """Return the numbers of a process and all its ancestors; None if one of them cannot be seen."""
    line = [pid]
    while (entry := processes.read_entry(line[-1])) is not None and entry.parent > 0:
        line.append(entry.parent)
    return None if entry is None else tuple(line)


def _restraint(pid: int) -> tuple[int, int] | None:
    """Return no_new_privs, and how many filters (before Linux 5.9: whether any); None if it cannot be seen."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            fields = dict(line.split(b":", 1) for line in status.read(STATUS_BYTES).splitlines() if b":" in line)
        return int(fields[b"NoNewPrivs"]), int(fields.get(b"Seccomp_filters", fields[b"Seccomp"]))
    except (OSError, KeyError, ValueError):
        return None
