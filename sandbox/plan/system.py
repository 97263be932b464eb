"""What every session may read of the system: its directories, but not the programs in them. Broker side.

A program that can be read can be run by the dynamic loader, whatever may be executed. So the directories of programs
can be listed, and only programs that the session may execute can be read in them. Landlock cannot take a directory
out of a granted one, so what is granted are the others beside it.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

# What programs read wherever they run. Not /dev/shm and not /tmp: those are everybody's, and a policy that wants
# them names them. /etc/resolv.conf often points to one of the two files; beside them are sockets of the resolver,
# which would look up names for a session that has no network. Not /opt: what is there is somebody's own, with
# its secrets; of a program there that the policy names, what it came with can be read (`packages_of`).
SYSTEM_PATHS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/proc",
    "/sys",
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/systemd/resolve/resolv.conf",
)
PROGRAM_FOLDERS = frozenset({"bin", "sbin", "games", "libexec"})
LISTED = ("/usr", "/bin", "/sbin")
"""Their names can be read, with all beneath; of their files those in `readable_paths` and what may be executed."""
_BOUND_SOCKETS = "/proc/net/unix"
_COLUMNS = 7  # of numbers, before the name
_SPLIT = ("/usr", "/usr/local")
ADDED = "/opt"


def readable_paths() -> tuple[str, ...]:
    """Return what is readable as it is now: SYSTEM_PATHS without the folders of programs in them."""
    whole = (path for path in SYSTEM_PATHS if path not in LISTED)
    return (*whole, *(path for folder in _SPLIT for path in _beside_programs(folder)))


def packages_of(programs: Iterable[str]) -> tuple[str, ...]:
    """Return the folders /opt/NAME that hold *programs* which may be executed: what they read lies beside them.

    A program in /opt itself has nothing beside it. Of /opt/VENDOR/NAME it is all that the vendor has there.
    """
    parts = [path.split("/") for path in programs if path.startswith(f"{ADDED}/")]
    return tuple(dict.fromkeys("/".join(words[:3]) for words in parts if len(words) > 3))


def sockets() -> tuple[str, ...]:
    """Return the sockets in SYSTEM_PATHS and /opt that have been bound: on a read-only mount they answer, too.

    Known by the names that their services bound them by. What lies outside is not there for a session at all.
    """
    with open(_BOUND_SOCKETS, "rb") as table:
        rows = [line.rstrip(b"\n").split(None, _COLUMNS) for line in table]
    names = {os.fsdecode(row[_COLUMNS]) for row in rows if len(row) > _COLUMNS}
    inside = tuple(f"{path}/" for path in (*SYSTEM_PATHS, ADDED))
    return tuple(sorted(name for name in names if name.startswith(inside) and _is_socket(name)))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:  # removed, or not for us to see, so not for a session either
        return False


def _beside_programs(folder: str) -> tuple[str, ...]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:  # not there, so nothing in it is granted either
        return ()
    paths = (f"{folder}/{name}" for name in names if name not in PROGRAM_FOLDERS)
    return tuple(path for path in paths if path not in _SPLIT)
