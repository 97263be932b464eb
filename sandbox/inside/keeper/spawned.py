"""A command-to-be that is no process yet: a thread of its keeper waits for the spec and spawns it. Child side.

posix_spawn lends the new process the keeper's memory until it execs. A fork copies that memory for a process that
throws it away, which costs more than everything else about a short command together.

What a command must have of its own comes from three places. What the kernel keeps for each thread, the domain and the
filter, from this thread, which serves one command and ends. Limits and umask from the keeper, which lives within those
of its commands. Session and descriptors from posix_spawn. A command that needs more (a terminal, limits or a control
group of its own) is forked (`forked.py`).

Until the thread has ended, a moment after the exec, the program may signal it, and so stop or kill its keeper. It gains
nothing by it: a keeper that is stopped or dead has its tree ended by the init.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import signal

from sandbox import wire
from sandbox.inside.keeper.forked import narrow, report
from sandbox.kernel import landlock, rlimits, seccomp
from sandbox.protocol.commands import EXIT_NOT_STARTED, NO_ROOM, TO_LEADER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sandbox.protocol.commands import CommandSpec, Started

STACK_BYTES = 256 * 1024  # of the thread: the usual 8 MiB would count as memory that the keeper uses
BEGIN_S = 1.0  # for a thread to say that it has begun, which takes less than a millisecond
REVOKED = int(signal.SIGKILL)  # the wait status of what was killed before it was there
_REFUSED = frozenset({errno.EAGAIN, errno.ENOMEM})


class Spawn:
    """One command, from before there is a process until that is reaped.

    Attributes:
        pid: of the process; 0 before there is one and once it is reaped.
        status: its wait status once it has ended, or what would have been one if it never began.
        lock: held from the last look at orders until the process is known and said. Whoever reaps holds it too, or a
            number could be somebody else's before it was looked up.
    """

    __slots__ = ("_abi", "_begun", "_poke", "_signals", "_sock", "_stage", "_unborn_status", "lock", "pid", "status")

    def __init__(self, sock: socket.socket, abi: int, poke: Callable[[], None]) -> None:
        """Own *sock*, over which the spec comes; *poke* wakes the keeper if nothing came of it.

        Raises:
            OSError: the kernel has no thread to give, or none with the memory to begin.
        """
        self.pid = 0
        self.status: int | None = None
        self.lock = _thread.allocate_lock()
        self._sock = sock
        self._abi = abi
        self._poke = poke
        self._signals: list[int] = []
        self._stage = "domain"
        self._unborn_status = EXIT_NOT_STARTED << 8
        self._begun = _thread.allocate_lock()
        self._begun.acquire()
        _thread.stack_size(STACK_BYTES)
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError as error:  # all that it says is that there is no thread to be had
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        # A thread that there was no memory to begin ends without a word, and whoever launches would wait for ever.
        if not self._begun.acquire(timeout=BEGIN_S):
            self.revoke()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    @property
    def waits(self) -> bool:
        """Whether there is no process yet, but may be one."""
        return self.pid == 0 and self.status is None

    def let_go(self) -> None:
        """Wait until whoever launched the process has looked its number up, which that of a reaped one cannot be."""
        if self.pid and self._sock.fileno() >= 0:
            with self._sock, contextlib.suppress(ConnectionResetError):  # as good as the end of file
                self._sock.recv(1)

    def revoke(self) -> None:
        """See to it that from here on no process begins."""
        with self.lock:
            if self.waits:
                self.status = REVOKED

    def signal(self, signum: int) -> None:
        """Signal the process group, now or as soon as there is one."""
        with self.lock:
            if self.waits:
                self._signals.append(signum)
            elif self.pid:
                signal_group(self.pid, signum)

    def _run(self) -> None:
        try:
            self._begun.release()
            self._serve()
        finally:
            with self.lock:
                unborn = self.waits
                if unborn:
                    self.status = self._unborn_status
                if not self.pid:
                    self._sock.close()
            if unborn:
                self._poke()

    def _serve(self) -> None:
        try:
            self._receive()
        except MemoryError as error:
            report(self._sock, NO_ROOM, error)
        except (OSError, ValueError, wire.WireBroken) as error:
            report(self._sock, self._stage, error)

    def _receive(self) -> None:
        """Wait for the spec and make it a process; without one if nobody needs it any more."""
        fault: OSError | None = None
        try:
            # A domain of its own inside the keeper's: it can signal its own kind and below, its keeper not.
            landlock.scope_signals(self._abi)
        except OSError as error:
            fault = error
        else:
            self._stage = "descriptors"
        received = wire.hear(self._sock, TO_LEADER)
        if received is None:
            self._unborn_status = 0
            return
        spec, fds = received
        try:
            if fault is not None:  # kept until somebody asks: ending at once would only have the next one fail
                raise fault
            self._become(spec, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _become(self, spec: CommandSpec, fds: list[int]) -> None:
        if spec["room"] is not None:  # the keeper's limits are for all that ever may be, these are for now
            self._stage = "rlimits"
            rlimits.apply(spec["limits"], spec["room"][0])
        self._stage = "exec_paths"
        narrow(spec["exec_paths"], self._abi)
        if not spec["internet"]:
            self._stage = "network"
            seccomp.forbid_internet()
        self._stage = "chdir"
        # What the whole keeper shares is changed under the lock alone, and nothing in there waits for a file system.
        cwd = os.open(spec["cwd"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self.lock:
                if self.waits:
                    os.fchdir(cwd)
                    self._stage = "exec"
                    self._spawn(spec, fds)
        finally:
            os.close(cwd)

    def _spawn(self, spec: CommandSpec, fds: list[int]) -> None:
        """Start the process, and hand over what stands for it. Only with the lock."""
        places = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(fds, spec["fds"], strict=True)]
        try:
            self.pid = os.posix_spawn(spec["program"], spec["argv"], spec["env"], file_actions=places, setsid=True)
        except OSError as error:
            if error.errno in _REFUSED:
                self._stage = NO_ROOM
            raise
        finally:
            os.chdir("/")  # nobody's directory is to be in use because a command once ran there
        for signum in self._signals:
            signal_group(self.pid, signum)
        try:
            pidfd = os.pidfd_open(self.pid)
            try:
                started: Started = {"started": True}
                wire.send(self._sock, started, [pidfd])
            finally:
                os.close(pidfd)
        except (OSError, MemoryError):  # whatever there is too little of, or nobody there: it runs, its number unknown
            self._sock.close()


def signal_group(leader_pid: int, signum: int) -> None:
    """Signal a process group, whose leader must be unreaped; one that is gone is as good."""
    try:
        os.killpg(leader_pid, signum)
        if signum == signal.SIGTERM:
            os.killpg(leader_pid, signal.SIGCONT)  # a stopped process would not get to see it
    except ProcessLookupError:
        return
