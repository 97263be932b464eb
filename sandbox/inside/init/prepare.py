"""Preparation of a session's process before anybody wants the session: what costs time and depends on no wall of it.

Child side. A warm spare moves into its namespaces while it waits, so that `create_session` does not pay for them.
The process that the broker started ends then, and process 1 inside, the broker's child as well, has its socket.
"""

from __future__ import annotations

import contextlib
import os
import re

from sandbox import wire
from sandbox.inside.stages import stage
from sandbox.kernel import namespaces, seccomp, syscalls

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from sandbox.protocol.commands import Moved


class Preparation:
    """The work done ahead, and what a birth needs of it later.

    Attributes:
        flags: the namespaces we moved into; those of mounts come at the birth.
        bond: a descriptor of the broker, whose number means nothing in here; -1 where we have not moved.
        filters: system call filters that the birth may need, by their options.
    """

    __slots__ = ("bond", "filters", "flags")

    def __init__(self) -> None:
        self.flags = 0
        self.bond = -1
        self.filters: dict[seccomp.Options, bytes] = {}

    def move(self, flags: int, sock: socket.socket) -> None:
        """Move into new namespaces and become their process 1, which the broker learns on *sock*.

        Raises:
            StageFailed: one step could not be done.
        """
        with stage("namespaces"):
            namespaces.unshare(flags)
        moved: Moved = {"op": "ahead"}
        with stage("pid_namespace"):
            self.bond = namespaces.clone_first(lambda pidfd: wire.send(sock, moved, [pidfd]))
        if flags & namespaces.NET:
            with stage("network"):
                namespaces.raise_loopback()
        self.flags = flags

    def prepare(self, *, internet: bool, patterns: Iterable[str]) -> None:
        """Make what is likely to be needed: the filter, and the *patterns* of blocked paths.

        These stay in the cache of `re`, where whoever compiles the same ones finds them.
        """
        for pattern in patterns:
            re.compile(pattern)
        options = seccomp.Options(internet=internet, plain_memfds=True)
        with contextlib.suppress(syscalls.UnknownMachine):  # at its stage, that is an error
            self.filters[options] = seccomp.program(options)

    def stay_bound(self) -> None:
        """Die with the broker, whatever user we became meanwhile."""
        namespaces.die_with(self.bond)
        os.close(self.bond)
        self.bond = -1
