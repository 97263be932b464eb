"""What the file system of a session is made of: pure, from walls to what `root.py` and `blocked_paths.py` are told.

The system's directories read-only, what the policy allows at its own place, private directories, nothing else.
Nothing here needs the machine: what is not there is left out at the birth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.kernel.mounting import NO_DEV, NO_EXEC, NO_SUID, READ_ONLY
from sandbox.paths import is_beneath_any
from sandbox.plan.system import SYSTEM_PATHS
from sandbox.plan.walls import writable_paths

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandbox.plan.plan import Plan, Walls
    from sandbox.wire import Message

TMP = "/tmp"  # noqa: S108 - the name that every program knows
SHARED_MEMORY = "/dev/shm"  # noqa: S108
_SYSTEM = READ_ONLY | NO_SUID | NO_DEV
_OURS = NO_SUID | NO_DEV
_MADE_NEW = frozenset({"/proc"})


def private_paths(plan: Plan, walls: Walls) -> tuple[str, ...]:
    """Return the directories that a session gets empty and for itself.

    /tmp is among them where the operator says so, and where the policy does not allow the machine's.
    """
    if not plan.spaces:
        return ()
    machines = not plan.private_tmp and is_beneath_any(TMP, (*writable_paths(walls), *walls.read_paths))
    return (*(() if machines else (TMP,)), SHARED_MEMORY)


def root_for(plan: Plan, walls: Walls) -> Message:
    """Compose the new root; later binds win, and the nearest one above a path is what the session sees there."""
    private = private_paths(plan, walls)
    writable = [path for path in writable_paths(walls, private) if path not in private]
    binds = {path: _SYSTEM for path in SYSTEM_PATHS if path not in _MADE_NEW and not is_beneath_any(path, writable)}
    binds |= dict.fromkeys(walls.read_paths, _SYSTEM)
    binds |= {path: _SYSTEM for path in walls.exec_paths if not is_beneath_any(path, (*writable, *binds))}
    binds |= {path: _own_rights(path, walls) for path in writable}
    return {
        "binds": list(binds.items()),
        "real": [*writable, *walls.exec_paths],
        "private": [(path, _OURS | NO_EXEC) for path in private],
        "private_bytes": plan.private_tmp_bytes,
    }


def close_for(plan: Plan, walls: Walls) -> Message:
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
            *((path, _SYSTEM) for path in walls.exec_paths),
        ],
    }


def _own_rights(path: str, walls: Walls) -> int:
    return _OURS | (0 if _touches(path, (*walls.exec_paths, *walls.named_programs)) else NO_EXEC)


def _touches(root: str, programs: Collection[str]) -> bool:
    """Tell whether a program is in this tree, or the tree is in a directory of programs."""
    return any(is_beneath_any(program, (root,)) or is_beneath_any(root, (program,)) for program in programs)
