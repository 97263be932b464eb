"""Resource limits of setrlimit(2). Child side, stdlib only.

They count per process (memory, file size, open files) or per user (processes): a coarse net, which a cgroup replaces
where there is one.

The user namespace of a session has a count of its own (Linux 5.14): there the processes of its commands are held to
their limit, beside ours, which are known. Elsewhere the user's others count too, and there must be room for them.
"""

from __future__ import annotations

import resource
from types import MappingProxyType

from sandbox.kernel import processes

RESOURCES = MappingProxyType(
    {
        # Private writable memory. Not RLIMIT_AS: runtimes such as node reserve address space they never use.
        "memory_max_bytes": resource.RLIMIT_DATA,
        "pids_max": resource.RLIMIT_NPROC,
        "file_size_max_bytes": resource.RLIMIT_FSIZE,
        "open_files_max": resource.RLIMIT_NOFILE,
    }
)
# RLIMIT_NPROC counts all tasks of the user, the broker's and other sessions' included. Beside those found at the
# session's birth there must be room for what starts later, or an unrelated program makes our commands fail.
ROOM_DEDICATED = 256
ROOM_SHARED = 1024
ROOM_COUNTED = 256  # in a session with a count of its own, until a command says how much it is: more than all of ours

INIT_AND_OPENER = 2
PER_KEEPER = 2  # itself, and its thread or the leader that waits
ONE_MORE = 2  # the keeper that comes when a command has taken one


def no_core_dumps() -> None:
    """Forbid core files here and below: they would hold the memory of a confined process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def room(present: int, *, dedicated: bool) -> int:
    """Return how many tasks a user may have beside a command's own, given those *present* now."""
    return present + (ROOM_DEDICATED if dedicated else ROOM_SHARED)


def of_ours(keepers: int) -> int:
    """Return how many tasks of a session with so many *keepers* are ours at most; up to three less while one runs."""
    return INIT_AND_OPENER + PER_KEEPER * keepers + ONE_MORE


def room_beside(ours: int, widened_by: int | None) -> int:
    """Return the room for a command in a session with a count of its own. Its leader asks, with one thread.

    What runs already shall not keep it from what it may have; but all together they may have no more than the widest
    limit, that of the session or its own.

    Args:
        ours: see `of_ours`.
        widened_by: how much less than the session it may have; None if the session has no limit.
    """
    if widened_by == 0:
        return ours
    present = sum(entry.threads for entry in processes.entries()) - 1
    room = max(ours, present)
    return room if widened_by is None else min(room, ours + widened_by)


def apply(limits: dict[str, int | None], tasks_room: int) -> None:
    """Lower soft and hard limits to *limits*; a limit above the one we have changes nothing."""
    for name, value in limits.items():
        if value is not None:
            which = RESOURCES[name]
            wanted = value + tasks_room if name == "pids_max" else value
            _, hard = resource.getrlimit(which)
            lowered = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(which, (lowered, lowered))
