"""Find where control groups may be made: a subtree that somebody delegated to us. Outside the walls.

Believes the kernel and not the path: a base is a directory of a cgroup v2 file system, has the controllers that
limits need, and lets us write. Hybrid machines mount cgroup v2 without any controller.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from sandbox.cgroup.group import CgroupFault, Group, is_cgroup2

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRED = frozenset({"memory", "pids"})
OPTIONAL = frozenset({"cpu", "io"})
CONTROLLERS = REQUIRED | OPTIONAL
_REMEDY = (
    "run the broker as a systemd service with Delegate=yes, or under `systemd-run --user --scope -p Delegate=yes`, or "
    "name a delegated group in sandbox.cgroup_base"
)


class NoCgroup(CgroupFault):
    """Lack of a place where this process may make groups that limit anything; `remedy` says what would help."""

    def __init__(self, path: str, why: str, remedy: str = _REMEDY) -> None:
        """Keep the three parts apart."""
        super().__init__(path, why)
        self.remedy = remedy


@attrs.frozen(kw_only=True)
class Mount:
    """A cgroup v2 mount, and which group of the hierarchy is its root."""

    point: str
    root: str


def cgroup2_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """Find the cgroup v2 mounts in /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        fields, _, filesystem = line.partition(" - ")
        if filesystem.startswith("cgroup2 "):
            root, point = (_unescape(field) for field in fields.split()[3:5])
            found.append(Mount(point=point, root=root))
    return tuple(found)


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes for blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def own_group(proc_cgroup: str) -> str | None:
    """Find this process's cgroup v2 in /proc/self/cgroup."""
    return next((line[3:] for line in proc_cgroup.splitlines() if line.startswith("0::/")), None)


def directory_of(group: str, mounts: tuple[Mount, ...]) -> str | None:
    """Return where *group* is found in the file system, if a mount shows it."""
    for mount in mounts:
        root = mount.root.rstrip("/")
        if group == mount.root or group.startswith(root + "/"):
            return (mount.point.rstrip("/") + "/" + group[len(root) :].strip("/")).rstrip("/")
    return None


def find_base(configured: str) -> Group:
    """Find the group below which ours are made: *configured* if that is an absolute path, else by looking around.

    A relative path is a folder beside the configuration, which is no group: the customer's files have one. Looking
    around, root takes its own group only; a plain user also one above it, as far up as it was delegated.

    Raises:
        NoCgroup: there is none, and why.
    """
    if os.path.isabs(configured):
        base = _usable(configured)
        _check_way(_own_directory(), configured)
        return base
    faults = []
    for path in _upwards(_own_directory()):
        try:
            return _usable(path)
        except NoCgroup as fault:
            faults.append(fault)
    raise faults[0]


def _own_directory() -> str:
    mounts = cgroup2_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))
    if not mounts:
        raise NoCgroup("/proc/self/mountinfo", "no cgroup v2 file system is mounted", "mount one")
    group = own_group(Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape"))
    own = group and directory_of(group, mounts)
    if not own:
        raise NoCgroup("/proc/self/cgroup", f"the broker's own cgroup {group!r} is not in any cgroup v2 mount here")
    return own


def _check_way(own: str, base: str) -> None:
    """Refuse a base into which we could move nobody: the kernel asks for a right above both places."""
    above = os.path.commonpath([own, base])
    if os.geteuid() != 0 and not os.access(f"{above}/cgroup.procs", os.W_OK):
        raise NoCgroup(base, f"nobody can be moved there from the broker's own {own}: {above} is not delegated")


def _upwards(own: str) -> Iterator[str]:
    """Give our own group and then, for a plain user, those above it that were handed over to that user."""
    yield own
    parent = os.path.dirname(own)
    while os.geteuid() != 0 and is_cgroup2(parent) and os.access(f"{parent}/cgroup.procs", os.W_OK):
        yield parent
        parent = os.path.dirname(parent)


def _usable(path: str) -> Group:
    if not is_cgroup2(path):
        raise NoCgroup(path, "this is no cgroup v2 directory, so files written there would limit nothing")
    group = Group(path)
    if missing := sorted(REQUIRED - group.controllers()):
        raise NoCgroup(path, f"there is no {' and no '.join(missing)} controller here")
    for name in ("cgroup.procs", "cgroup.subtree_control"):
        if not os.access(f"{path}/{name}", os.W_OK):
            raise NoCgroup(path, f"it is not delegated to uid {os.geteuid()}: {name} cannot be written")
    return group
