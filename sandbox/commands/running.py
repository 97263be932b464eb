"""A command while it runs: its pipes, its keeper's news, its end.

The broker reads the command's pipes itself and hears from the keeper how the leader ended and when the tree is
empty. All of it is waited for in one place, an epoll of the command's own: that spares the tasks and nurseries
that would cost a third of what `/bin/true` takes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING

import trio

from sandbox import wire
from sandbox.commands.terminal import resize
from sandbox.errors import NeverBegan, SpawnFailed
from sandbox.kernel.processes import take_pid
from sandbox.protocol.commands import FROM_LEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from sandbox.cgroup.session import Leaf
    from sandbox.commands.spill import Spill
    from sandbox.commands.streams import Input, Streams
    from sandbox.commands.terminal import Size
    from sandbox.init.keeper import Slot
    from sandbox.protocol.commands import NotStarted, Started

KILL_BOUND_S = 5.0  # SIGKILL works at once except on a process that hangs in the kernel


class Command:
    """A command that was launched. One task uses it; whoever opened it closes it."""

    def __init__(
        self,
        slot: Slot,
        launch: socket.socket,
        streams: Streams,
        spill: Spill | None = None,
        leaf: Leaf | None = None,
    ) -> None:
        """Own *launch* and *streams*, and have the use of *slot*, *spill* and *leaf*."""
        self.slot = slot
        self.leaf = leaf
        self.pid = slot.leader_pid
        self.failure: SpawnFailed | None = None
        self.streams = streams
        self._spill = spill
        self.paths: Mapping[str, str] = {}  # what a stage that fails was about
        self._serial = slot.serial
        self._launch = launch
        self._launching = True
        self._epoll = select.epoll(5)
        self._watched: dict[int, tuple[Callable[[], bool], Callable[[], None]]] = {}
        self._watch(launch.fileno(), self._read_launch, launch.close)
        self._watch(slot.sock.fileno(), self._read_news, _leave_open)
        for output in (streams.stdout, streams.stderr):
            if output.fd >= 0:
                self._watch(output.fd, output.pump, output.close)
        if streams.stdin is not None:
            self._watch_stdin(streams.stdin)

    def _watch(
        self, fd: int, on_ready: Callable[[], bool], close: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        """Call *on_ready* whenever *fd* is, until it returns False; then *close*."""
        self._epoll.register(fd, events)
        self._watched[fd] = on_ready, close

    def _watch_stdin(self, stdin: Input) -> None:
        self._watch(stdin.fd, stdin.pump, stdin.rest, select.EPOLLOUT)

    def feed(self, data: bytes | bytearray, *, last: bool) -> int | None:
        """Have *data* written to the command's input; return how much waits then, None if the input is closed."""
        stdin = self.streams.feed(data, last=last)
        if stdin is None:
            return None
        if stdin.fd not in self._watched:
            self._watch_stdin(stdin)
        return stdin.waiting_bytes

    def signal(self, signum: int) -> None:
        """Send *signum* to the command's process group, or kill the whole tree if it is SIGKILL."""
        if signum == signal.SIGKILL:
            self._kill()
        else:
            self.slot.signal(self._serial, signum)

    def resize(self, size: Size) -> bool:
        """Tell its terminal a new size; return whether it has one."""
        if not self.streams.is_terminal or self.streams.stdout.fd < 0:
            return False
        resize(self.streams.stdout.fd, size)
        return True

    @property
    def ended(self) -> bool:
        """Whether the leader ended; with its keeper it does, by PR_SET_PDEATHSIG or the init's hand."""
        return self.slot.ended[0] == self._serial or self.slot.gone

    @property
    def tree_gone(self) -> bool:
        """Whether nothing of the command is left."""
        return self.slot.empty_serial >= self._serial or self.slot.gone

    @property
    def exit_code(self) -> int:
        """The code that the leader returned, or minus the signal that ended it."""
        serial, status = self.slot.ended
        return os.waitstatus_to_exitcode(status) if serial == self._serial else -signal.SIGKILL

    async def wait_started(self) -> None:
        """Wait until the program runs.

        Raises:
            SpawnFailed: it does not; a stage before it failed.
        """
        while self._launching:
            await self._advance()
        if self.failure is not None:
            raise self.failure

    async def wait_ended(self) -> None:
        """Wait for the leader's end, and take in what the command says meanwhile."""
        while not self.ended:
            await self._advance()

    async def drain(self, drain_s: float) -> bool:
        """Read the pipes to their end, at most *drain_s* seconds: others may hold them. Return whether it came.

        What they hold by then is read in any case: the bound is for what others may yet say, not for a busy broker.
        """
        with trio.move_on_after(drain_s):
            while self.streams.open_outputs:
                await self._advance()
        for output in (self.streams.stdout, self.streams.stderr):
            if output.fd in self._watched and not output.pump_rest():
                self._unwatch(output.fd)
                output.close()
        return not self.streams.open_outputs

    async def end(self, grace_s: float) -> None:
        """Ask the command's group to end, and kill the whole tree *grace_s* seconds later."""
        self.slot.signal(self._serial, signal.SIGTERM)
        with trio.move_on_after(grace_s):
            while not self.tree_gone:
                await self._advance()
        await self.kill()

    async def kill(self) -> None:
        """Kill the tree and wait until nothing of it is left.

        Cancellation: shielded, at most KILL_BOUND_S seconds.
        """
        self._kill()
        with trio.move_on_after(KILL_BOUND_S, shield=True):
            while not self.tree_gone:
                await self._advance()

    def _kill(self) -> None:
        """Have the keeper kill its tree, and the kernel the group: whoever left the one is still in the other."""
        self.slot.kill(self._serial)
        if self.leaf is not None and self.slot.leaves is not None:
            self.slot.leaves.kill(self.leaf)

    async def _advance(self) -> None:
        """Wait until anything happens, and deal with it."""
        await trio.lowlevel.wait_readable(self._epoll)
        for fd, _ in self._epoll.poll(0):
            on_ready, close = self._watched[fd]
            if not on_ready():
                self._unwatch(fd)
                close()
        if self._spill is not None and self._spill.due:
            await self._spill.settle()

    def _unwatch(self, fd: int) -> None:
        # By hand and before it is closed: a copy in a process that is just being started would keep it in the set.
        self._epoll.unregister(fd)
        del self._watched[fd]

    def _read_launch(self) -> bool:
        """Learn what became of the launch: exec closes the socket silently, a failed stage says its name.

        What was spawned is heard of as well, and which process it is. An end that leaves the spec unread is reset by
        the kernel: then nothing ran.
        """
        if self._launch.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET:
            self.failure = NeverBegan()
        # Without a descriptor of ours left to take it in, it runs, and nobody learns its number.
        with contextlib.suppress(wire.Truncated):
            received = wire.hear(self._launch, FROM_LEADER)
            if received is not None:
                news, fds = received
                NEWS[wire.kind_of(news)](self, news, fds)
        self._launching = False
        return False

    def _learn_failure(self, news: NotStarted, _fds: list[int]) -> None:
        self.failure = SpawnFailed(news["stage"], news["why"], news["errno"], self.paths.get(news["stage"], ""))

    def _learn_pid(self, _news: Started, fds: list[int]) -> None:
        (pidfd,) = fds
        with contextlib.suppress(OSError):  # as above
            self.pid = take_pid(pidfd)

    def _read_news(self) -> bool:
        self.slot.read_news()
        return not self.slot.gone

    def close(self) -> None:
        """Close what the broker holds of it."""
        self._watched.clear()
        if not self._epoll.closed:
            trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()
        self._launch.close()
        self.streams.close()


NEWS: Mapping[str, Callable[[Command, Any, list[int]], None]] = MappingProxyType(
    {"started": Command._learn_pid, "stage": Command._learn_failure}  # noqa: SLF001  a table of its own methods
)
"""By kind of what a leader says, the method that takes it in."""


def _leave_open() -> None:
    """Do nothing: the keeper's socket is its slot's."""
