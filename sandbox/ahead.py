"""What a session's process does before anybody wants the session: what costs time and depends on no wall of it.

Child side. A warm spare moves into its namespaces while it waits, so that `create_session` does not pay for them.
From then on the process that the broker started only stands by, and process 1 inside has its socket.
"""

from __future__ import annotations

import os

from sandbox import namespaces
from sandbox.stages import stage


class Ahead:
    """What a birth needs of it later.

    Attributes:
        flags: the namespaces we moved into; those of mounts come at the birth.
        bond: a descriptor of who stands by for us, -1 if nobody does.
        ids_fd: where that one is told whom to become.
    """

    __slots__ = ("bond", "flags", "ids_fd")

    def __init__(self) -> None:
        self.flags = 0
        self.bond = -1
        self.ids_fd = -1

    def move(self, flags: int) -> None:
        """Move into new namespaces and become their process 1. Raises StageFailed."""
        with stage("namespaces"):
            namespaces.unshare(flags)
        with stage("pid_namespace"):
            theirs, self.ids_fd = os.pipe2(os.O_CLOEXEC)
            self.bond = namespaces.become_first(theirs)
        if flags & namespaces.NET:
            with stage("network"):
                namespaces.raise_loopback()
        self.flags = flags

    def release(self, uid: int, gid: int) -> None:
        """Let who stands by for us have no more rights than the session will have."""
        namespaces.release(self.ids_fd, uid, gid)
        self.ids_fd = -1

    def stay_bound(self) -> None:
        """Die with who stands by for us, whatever user we became meanwhile."""
        namespaces.die_with(self.bond)
        os.close(self.bond)
        self.bond = -1
