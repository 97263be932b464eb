"""The broker's hold on a process it started: a warm spare that becomes a session init.

Started by posix_spawn (fork of a threaded trio process is unsafe and slow), straight from the loop's thread: it
takes about a millisecond, and PR_SET_PDEATHSIG is tied to the thread that forks, so that a worker thread's end
would take the session with it. The thread that opens a launcher must therefore outlive it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from errno import EMFILE
from pathlib import Path
from typing import TYPE_CHECKING, overload

import attrs
import trio

import sandbox
from sandbox import wire
from sandbox.errors import BirthCut, BirthFailed
from sandbox.kernel.processes import pid_of
from sandbox.polled import close_descriptor, close_socket, wait_ended
from sandbox.protocol.commands import FROM_INIT
from sandbox.threads import run_in_thread

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Any, Literal

    from sandbox.protocol.commands import Born, GoAhead, Greet, Greeted, Legal, Moved, NotBorn

# Appended, not put first: beside an installed package lie others, which must not shadow the standard library.
BOOTSTRAP = "import sys; sys.path.append({parent!r}); from sandbox.inside.init.main import main; main(3, {broker_pid})"
PACKAGE_PARENT = str(Path(sandbox.__file__ or "").resolve().parent.parent)
SOCKET_FD = 3
END_S = 5.0  # after the socket closed and a SIGKILL: more means that the kernel holds a process in a system call


@attrs.define(eq=False)
class Interpreter:
    """A started interpreter: its socket, its pidfd, and the duty to reap it.

    With namespaces of its own it is another process than the one that was started: that one made it, told us, and
    ended. `pid` is always a number of ours.
    """

    pid: int
    sock: socket.socket
    _pidfd: int
    flags: int
    terminal_maker_fd: int = -1  # see `open_terminal`; ours, until the end
    _moved: bool = False
    _starter_pidfd: int = -1  # of the process that was started, until it is reaped

    async def wait_ahead(self) -> None:
        """Wait until it is where a birth begins; the caller bounds it.

        Raises:
            BirthFailed: a stage failed.
        """
        if self.flags and not self._moved:
            _, (pidfd,) = await self.hear("moving")
            self._take(pidfd)
        await self._reap_starter()

    async def greet(self) -> None:
        """Wait until it is where a birth begins and says so; the caller bounds it.

        Raises:
            BirthFailed, OSError: it is gone, or of no use.
        """
        await self.wait_ahead()
        greet: Greet = {"op": "greet"}
        wire.send(self.sock, greet)
        await self.hear("greeted")

    def _take(self, pidfd: int) -> None:
        """Hold the process that came out of the one we started. Raises OSError: we cannot, and let go of it."""
        try:
            self.pid = pid_of(pidfd)
        except OSError:
            os.close(pidfd)
            self._lose()
            raise
        self._moved = True
        self._starter_pidfd, self._pidfd = self._pidfd, pidfd

    def _lose(self) -> None:
        """Let go of what came without a descriptor that we could keep: it ends with its socket."""
        close_socket(self.sock)

    async def _reap_starter(self) -> None:
        if self._starter_pidfd >= 0:
            await wait_ended(self._starter_pidfd)
            _reap(self._starter_pidfd)
            self._starter_pidfd = -1

    @overload
    async def hear(self, state: Literal["moving"]) -> tuple[Moved, list[int]]: ...

    @overload
    async def hear(self, state: Literal["greeted"]) -> tuple[Greeted, list[int]]: ...

    @overload
    async def hear(self, state: Literal["being_born"]) -> tuple[Born, list[int]]: ...

    async def hear(self, state: str) -> tuple[Any, list[int]]:
        """Wait for what it says in *state*; see `FROM_INIT`.

        Raises:
            BirthFailed: that a stage failed; BirthCut: nothing any more.
        """
        received = await self._receive(FROM_INIT[state])
        if received is None:
            raise BirthCut("start", "the interpreter ended without a word")
        if received[0]["op"] == "failed":
            failed: NotBorn = received[0]
            raise BirthFailed(failed["stage"], failed["why"], failed["errno"])
        return received

    async def _receive(self, legal: Legal) -> tuple[Any, list[int]] | None:
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                return wire.hear(self.sock, legal)
            except BlockingIOError:  # woken for nothing
                continue
            except wire.WireBroken as error:
                self._lose()
                number = EMFILE if isinstance(error, wire.Truncated) else None
                raise BirthFailed("start", str(error), number) from error

    async def wait_gone(self) -> int:
        """Wait until it exited; reap it; return its wait code (negative: a signal)."""
        await wait_ended(self._pidfd)
        pidfd, self._pidfd = self._pidfd, -1
        return _reap(pidfd)

    async def wait_exited(self) -> None:
        """Wait until it exited, and leave it to its owner to reap it. Any number of tasks may wait."""
        if self._pidfd < 0:
            return
        pidfd = os.dup(self._pidfd)  # trio lets one task wait per descriptor
        try:
            await wait_ended(pidfd)
        finally:
            close_descriptor(pidfd)

    def exited(self) -> bool:
        """Tell whether it exited, or failed on its way, without waiting and without reaping it."""
        if self.flags and not self._moved:
            try:
                received = wire.hear(self.sock, FROM_INIT["moving"])
                if received is None or not received[1]:
                    return True
                self._take(received[1][0])
            except BlockingIOError:  # on its way
                return False
            except (OSError, wire.WireBroken):  # no descriptor left for it, so it is of no use
                self._lose()
                return True
        return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):  # it is gone, which is what we want
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> bool:
        """Close the socket, wait for it to end what it holds, kill it if it does not; return whether it is gone.

        Cancellation: shielded, at most END_S seconds, once more after a SIGKILL, and before for one that is on its way.
        """
        with trio.move_on_after(END_S, shield=True), contextlib.suppress(BirthFailed, OSError, wire.WireBroken):
            if self.sock.fileno() >= 0:  # or the process that comes out of this one would be nobody's
                await self.wait_ahead()
        close_socket(self.sock)
        if self.terminal_maker_fd >= 0:
            os.close(self.terminal_maker_fd)
            self.terminal_maker_fd = -1
        if self._pidfd < 0:
            return True
        if self.flags and not self._moved:
            return await self._end_group()
        with trio.move_on_after(END_S, shield=True):
            await self.wait_gone()
            return True
        self.kill()
        with trio.move_on_after(END_S, shield=True):
            await self.wait_gone()
            return True
        self._close_pidfd()
        return False

    async def _end_group(self) -> bool:
        """Kill and reap what was started, and what may have come out of it, of which we have no descriptor."""
        self._close_pidfd()
        with contextlib.suppress(ProcessLookupError):  # the number is ours until we have reaped it
            os.killpg(self.pid, signal.SIGKILL)
        with trio.move_on_after(END_S, shield=True):
            await run_in_thread(_reap_group, self.pid, abandon_on_cancel=True)
            return True
        return False

    def _close_pidfd(self) -> None:
        close_descriptor(self._pidfd)
        self._pidfd = -1


def _reap(pidfd: int) -> int:
    """Reap what has exited; return its wait code. Ownership: closes *pidfd*."""
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    close_descriptor(pidfd)
    if result is None:  # it has exited; WNOHANG only keeps a surprise from blocking the loop
        return 0
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def _reap_group(leader_pid: int) -> None:
    """Wait for all children in a process group, whose number is nobody else's until they are reaped."""
    with contextlib.suppress(ChildProcessError):  # that was all
        while True:
            os.waitpid(-leader_pid, 0)


def start_spare(flags: int, *, internet: bool = False, patterns: Sequence[str] = ()) -> Interpreter:
    """Start an interpreter that moves into namespaces of its own (*flags*, or none) and waits for its birth spec.

    With namespaces it also makes ready what it will probably need: see `Preparation.prepare`.

    Raises:
        BirthFailed: the interpreter cannot be started.
    """
    interpreter = start_interpreter(BOOTSTRAP.format(parent=PACKAGE_PARENT, broker_pid=os.getpid()), flags)
    if flags:
        with contextlib.suppress(OSError):  # it ended at once; whoever takes it learns that
            order: GoAhead = {"op": "ahead", "flags": flags, "internet": internet, "patterns": tuple(patterns)}
            wire.send(interpreter.sock, order)
    return interpreter


def start_interpreter(code: str, flags: int = 0) -> Interpreter:
    """Start an interpreter without environment, site packages or other descriptors than its socket; it runs *code*.

    Raises:
        BirthFailed: it cannot be started.
    """
    with contextlib.ExitStack() as undo:
        try:
            ours, theirs = map(undo.enter_context, wire.pair())
            pid, pidfd = _spawn_held(theirs, code)
        except OSError as error:
            raise BirthFailed("start", f"{sys.executable}: {error.strerror}", error.errno) from error
        theirs.close()
        undo.pop_all()
    ours.setblocking(False)
    return Interpreter(pid, ours, pidfd, flags)


def _spawn_held(theirs: socket.socket, code: str) -> tuple[int, int]:
    """Start the interpreter; return its number and a pidfd. Raises OSError, and then there is none."""
    # Out of the way of the numbers that the file actions write to.
    high = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 10)
    try:
        pid = _spawn(high, code)
    finally:
        os.close(high)
    try:
        return pid, os.pidfd_open(pid)
    except OSError:  # no descriptor left
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _spawn(socket_fd: int, code: str) -> int:
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", code],
        {},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
            (os.POSIX_SPAWN_DUP2, socket_fd, SOCKET_FD),
        ],
        setsid=True,  # a Ctrl-C at the broker's terminal is the broker's alone
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP],
    )
