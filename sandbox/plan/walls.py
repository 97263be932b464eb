"""Paths of a session, and its rights on them: as Landlock grants, as a new root, and of the system.

From a session's `Walls` to what its process is told: `kernel/landlock.py` gets the grants, `kernel/root.py` the new
root, `inside/blocked_paths.py` what is to be closed in it. Pure, but for `readable_paths` and `sockets`, which look at
the machine; of all else, what is not there is left out at the birth. Outside the walls.

Landlock cannot take a path out of a granted directory again; what must stay hidden inside an allowed root needs
a mount namespace. The new root holds the system's directories read-only, what the policy allows at its own place,
private directories, nothing else.

Of the system every session may read the directories, but not the programs in them: a program that can be read can be
run by the dynamic loader, whatever may be executed. So the directories of programs can be listed, and only programs
that the session may execute can be read in them; what Landlock grants are the others beside them.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from sandbox.kernel import landlock, root
from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY
from sandbox.paths import is_beneath_any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sandbox.kernel.landlock import Grant
    from sandbox.plan.plan import Plan, Walls
    from sandbox.protocol.commands import CloseSpec, RootSpec

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
"""Directories whose names can be read, with all beneath; of their files those in `readable_paths` and what may run."""
_BOUND_SOCKETS = "/proc/net/unix"
_COLUMNS = 7  # of numbers, before the name of a socket
_SPLIT = ("/usr", "/usr/local")  # what has folders of programs beside others
ADDED = "/opt"  # where software is installed that is not of the system
DEVICES = tuple(f"/dev/{name}" for name in root.DEVICES)
TERMINALS = ("/dev/ptmx", "/dev/pts")
TMP = "/tmp"  # noqa: S108 - the name that every program knows
SHARED_MEMORY = "/dev/shm"  # noqa: S108
_SYSTEM_RIGHTS = READ_ONLY | NO_SUID | NO_DEV
_OWN_RIGHTS = NO_SUID | NO_DEV
_MADE_NEW = frozenset({"/proc"})  # `kernel/root.py` makes its own


def grants_for(walls: Walls, system: Collection[str]) -> tuple[Grant, ...]:
    """List what every session of a machine may read, *system*, and its devices; rules on one path add up."""
    return (
        *((path, landlock.READ_DIR) for path in LISTED),
        *((path, landlock.READ) for path in (*system, *walls.read_paths)),
        *((path, landlock.DEVICE) for path in DEVICES),
    )


def real_grants_for(walls: Walls, private: Collection[str] = ()) -> tuple[Grant, ...]:
    """List what a session may write, *private* directories with it, and execute: paths that hold no links.

    What is beneath one of these can be replaced by whoever may write there, so a link in one is never followed.
    """
    return (
        *((path, landlock.WRITE) for path in dict.fromkeys((*writable_paths(walls, private), *private))),
        *((path, landlock.RUN) for path in walls.exec_paths),
    )


def writable_paths(walls: Walls, private: Collection[str] = ()) -> tuple[str, ...]:
    """Return the topmost paths that a session may write: its home, what the policy allows, where it begins.

    A path beneath another one is left out, because a session could put something else in its place there. Two kinds
    stay: paths beneath *private* ones, where a session finds only what is put there for it, and paths that are opened
    in closed ones, where no session changes a name.
    """
    paths = dict.fromkeys((walls.home, *walls.write_paths, walls.working_dir))
    apart = {*private, *walls.closed.opened}
    return tuple(path for path in paths if path in apart or _nearest_above(path, {*paths, *apart}) in {None, *apart})


def _nearest_above(path: str, roots: Collection[str]) -> str | None:
    above = (root for root in roots if root != path and is_beneath_any(path, (root,)))
    return max(above, key=len, default=None)


def grants_everything(walls: Walls) -> bool:
    """Tell whether the root directory itself is granted, so that nothing is left for a probe to be refused."""
    return "/" in {walls.home, walls.working_dir, *walls.read_paths, *walls.write_paths, *walls.exec_paths}


def terminal_grants(plan: Plan, walls: Walls) -> tuple[Grant, ...]:
    """List the rules for terminals by name: where they are the session's own, or all others are somebody else's.

    Elsewhere those of the person who started the broker would be open to it too. The terminal that a command is
    given needs no rule: it is inherited, open.
    """
    if not (plan.spaces or walls.user.dedicated):
        return ()
    return tuple((path, landlock.DEVICE) for path in TERMINALS)


def private_paths(plan: Plan, walls: Walls) -> tuple[str, ...]:
    """Return the directories that a session gets empty and for itself.

    /tmp is among them where the operator says so, and where the policy does not allow the machine's.
    """
    if not plan.spaces:
        return ()
    machines = not plan.private_tmp and is_beneath_any(TMP, (*writable_paths(walls), *walls.read_paths))
    return (*(() if machines else (TMP,)), SHARED_MEMORY)


def root_for(plan: Plan, walls: Walls) -> RootSpec:
    """Compose the new root; later binds win, and the nearest one above a path is what the session sees there."""
    private = private_paths(plan, walls)
    writable = [path for path in writable_paths(walls, private) if path not in private]
    binds = {
        path: _SYSTEM_RIGHTS for path in SYSTEM_PATHS if path not in _MADE_NEW and not is_beneath_any(path, writable)
    }
    binds |= dict.fromkeys(walls.read_paths, _SYSTEM_RIGHTS)
    binds |= {path: _SYSTEM_RIGHTS for path in walls.exec_paths if not is_beneath_any(path, (*writable, *binds))}
    binds |= {path: _own_rights(path, walls) for path in writable}
    return {
        "binds": list(binds.items()),
        "real": [*writable, *walls.exec_paths],
        "private": [(path, _OWN_RIGHTS | NO_EXEC) for path in private],
        "private_bytes": plan.private_tmp_bytes,
    }


def close_for(plan: Plan, walls: Walls) -> CloseSpec:
    """Compose what is to be closed: where to look for it, by which names, and what stays open in it."""
    closed = walls.closed
    private = private_paths(plan, walls)
    roots = [path for path in (*writable_paths(walls, private), *walls.read_paths) if path not in private]
    return {
        "places": (*closed.places, *(place for place in closed.guarded_places if is_beneath_any(place, roots))),
        "roots": [*roots, *(place for place in closed.places if not is_beneath_any(place, roots))],
        "writable": roots,
        "uid": walls.user.uid,
        "sockets_in": [] if TMP in private else [TMP],
        "sockets_of": [
            path for path in (walls.home, walls.working_dir, *walls.write_paths) if not is_beneath_any(TMP, (path,))
        ],
        "blocked": [closed.blocked.from_root, closed.blocked.anywhere],
        "guarded": [closed.guarded.from_root, closed.guarded.anywhere],
        "last_names": closed.last_names,
        "names": [name for name in closed.names if is_beneath_any(name, roots)],
        "folders": closed.folders,
        "opened": closed.opened,
        "system": closed.system,
        "system_known": closed.system_known,
        "holes": [
            *((path, _own_rights(path, walls)) for path in closed.opened),
            *((path, _SYSTEM_RIGHTS) for path in walls.exec_paths),
        ],
    }


def _own_rights(path: str, walls: Walls) -> int:
    return _OWN_RIGHTS | (0 if _touches(path, (*walls.exec_paths, *walls.named_programs)) else NO_EXEC)


def _touches(root: str, programs: Collection[str]) -> bool:
    """Tell whether a program is in this tree, or the tree is in a directory of programs."""
    return any(is_beneath_any(program, (root,)) or is_beneath_any(root, (program,)) for program in programs)


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
