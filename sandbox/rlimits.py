"""Resource limits of setrlimit(2). Child side, stdlib only.

They count per process (memory, file size, open files) or per user (processes): a net with wide meshes, which a
cgroup replaces where there is one.
"""

from __future__ import annotations

import resource
from types import MappingProxyType

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


def no_core_dumps() -> None:
    """Forbid core files here and below: they would hold the memory of a confined process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def room(present: int, *, dedicated: bool) -> int:
    """Return how many tasks a user may have beside a command's own, given those *present* now."""
    return present + (ROOM_DEDICATED if dedicated else ROOM_SHARED)


def apply(limits: dict[str, int | None], tasks_room: int) -> None:
    """Lower soft and hard limits to *limits*; a limit above the one we have changes nothing."""
    for name, value in limits.items():
        if value is not None:
            which = RESOURCES[name]
            wanted = value + tasks_room if name == "pids_max" else value
            _, hard = resource.getrlimit(which)
            lowered = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(which, (lowered, lowered))
