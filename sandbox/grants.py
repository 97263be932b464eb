"""Which paths a session's Landlock domain grants, and with what rights: pure.

Landlock cannot take a path out of a granted directory again; what must stay hidden inside an allowed root needs
a mount namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox import landlock
from sandbox.system import LISTED

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandbox.landlock import Grant
    from sandbox.plan import Plan, Walls

DEVICES = (
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
)
TERMINALS = ("/dev/ptmx", "/dev/pts")


def grants_for(walls: Walls, system: Collection[str], private: Collection[str] = ()) -> tuple[Grant, ...]:
    """List the rules of a session's domain: *system* to read, *private* directories; rules on one path add up."""
    writable = dict.fromkeys((*writable_paths(walls), *private))
    return (
        *((path, landlock.READ_DIR) for path in LISTED),
        *((path, landlock.READ) for path in (*system, *walls.read_paths)),
        *((path, landlock.DEVICE) for path in DEVICES),
        *((path, landlock.WRITE) for path in writable),
        *((path, landlock.RUN) for path in walls.exec_paths),
    )


def writable_paths(walls: Walls) -> tuple[str, ...]:
    """Return what a session may write: its home, where it begins, and what the policy allows."""
    return tuple(dict.fromkeys((walls.home, walls.working_dir, *walls.write_paths)))


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
