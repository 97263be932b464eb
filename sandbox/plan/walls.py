"""Which paths a session's Landlock domain grants, and with what rights: pure.

Landlock cannot take a path out of a granted directory again; what must stay hidden inside an allowed root needs
a mount namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.kernel import landlock
from sandbox.paths import is_beneath_any
from sandbox.plan.system import LISTED

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandbox.kernel.landlock import Grant
    from sandbox.plan.plan import Plan, Walls

DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
)
TERMINALS = ("/dev/ptmx", "/dev/pts")


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

    What lies beneath another is left out, because a session could put something else in its place there; not so
    beneath *private* ones, where it finds only what is put there for it, nor what is opened in closed ones, where no
    session changes a name.
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
