"""The process that becomes a command: forked ahead of need, it waits for its spec and then execs. Child side.

Success is silent: exec closes the launch socket, and its end-of-file is the news. A failure is a message that
names the stage, and exit status 127.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import termios

from sandbox import wire
from sandbox.inside.keeper import search_output
from sandbox.kernel import landlock, process, rlimits, seccomp
from sandbox.protocol.commands import EXIT_NOT_STARTED, TO_LEADER

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from sandbox.protocol.commands import CommandSpec, NotStarted

# Files are to come out as programs expect them (git, npm and pip compare modes); privacy is the home's, which
# is 0700.
UMASK = 0o022

Failure = tuple[str, OSError | ValueError | MemoryError]


def main(
    launch_fd: int, *, abi: int, tasks_room: int, keeper_pid: int, arrive: Callable[[], Failure | None] | None = None
) -> NoReturn:
    """Prepare everything that needs no spec, wait for the spec, become the command.

    *arrive* is the last thing that needs descriptors of the keeper: to enter a group, and to say so.
    """
    fault = _prepare(abi, keeper_pid)
    if arrive is not None:
        fault = arrive() or fault
    sock = socket.socket(fileno=process.keep_only(launch_fd))
    received = wire.hear(sock, TO_LEADER)
    if received is None:  # nobody needs us any more
        os._exit(0)
    # A fault is kept until somebody asks: ending at once would only have the keeper fork the next one to fail.
    report(sock, *(fault or _become(sock, *received, abi=abi, tasks_room=tasks_room)))
    os._exit(EXIT_NOT_STARTED)


def _prepare(abi: int, keeper_pid: int) -> Failure | None:
    try:
        os.setsid()
        process.die_with(keeper_pid, signal.SIGKILL)
        process.default_signals(signal.SIGCHLD, signal.SIGTERM)  # the keeper's two; the init reset all others
        os.umask(UMASK)
        # A domain of its own inside the keeper's: it can signal its own kind and below, its keeper not.
        landlock.scope_signals(abi)
        _rehearse()
    except OSError as error:
        return "domain", error
    return None


def _rehearse() -> None:
    """Receive a spec like a real one: the pages which that touches are copied before somebody waits for it."""
    ours, theirs = wire.pair()
    with ours, theirs:
        limits = dict.fromkeys(rlimits.RESOURCES)
        spec = {"program": "", "argv": ["true"], "env": {"PATH": "/bin"}, "limits": limits, "fds": [1]}
        wire.send(ours, spec, [1])
        received = wire.hear(theirs, TO_LEADER)
    if received is not None:
        spec, fds = received
        _place(fds, spec["fds"])
        rlimits.apply(spec["limits"], 0)
        os.close(fds[0])


def _become(sock: socket.socket, spec: CommandSpec, fds: list[int], *, abi: int, tasks_room: int) -> Failure:
    """Exec the command; returns only where that fails."""
    stage = "descriptors"
    try:
        _place(fds, spec["fds"])
        if spec["terminal"]:
            stage = "terminal"
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        stage = "rlimits"
        rlimits.apply(spec["limits"], tasks_room if spec["room"] is None else rlimits.room_beside(*spec["room"]))
        stage = "exec_paths"
        narrow(spec["exec_paths"], abi)
        if not spec["internet"]:
            stage = "network"
            seccomp.forbid_internet()
        stage = "chdir"
        os.chdir(spec["cwd"])
        if spec["search"] is not None:  # a search is no program: this process does it and ends
            stage = "search"
            sock.close()
            search_output.main(spec["search"])
        if spec["attack"] is not None:  # likewise; only the doctor's session has loaded what can do it
            stage = "attack"
            sock.close()
            sys.modules["sandbox.inside.init.attacks"].main(spec["attack"])
        stage = "exec"
        os.execve(spec["program"], spec["argv"], spec["env"])  # noqa: S606 - no shell is the point
    except (OSError, ValueError, MemoryError) as error:
        return stage, error


def _place(fds: list[int], numbers: Sequence[int]) -> None:
    """Put what came over the socket on its number; the originals close with exec."""
    for fd, number in zip(fds, numbers, strict=True):
        os.dup2(fd, number, inheritable=True)


def narrow(exec_paths: Sequence[str] | None, abi: int) -> None:
    """Enter the domain of a command whose rule says what it may run; None: it may run what the session may."""
    if exec_paths is not None:
        landlock.narrow_execution(abi, exec_paths)


def report(sock: socket.socket, stage: str, error: Exception) -> None:
    """Say to whoever launched this at which stage it failed, and why."""
    code = error.errno if isinstance(error, OSError) else None
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or "out of memory"
    failed: NotStarted = {"stage": stage, "errno": code, "why": why}
    try:
        wire.send(sock, failed)
    except OSError:  # the broker is gone, and with it whoever would care
        return
