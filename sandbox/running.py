"""A command while it runs: its pipes, its keeper's news, its end.

The broker reads the command's pipes itself and hears from the keeper how the leader ended and when the tree is
empty. All of it is waited for in one place, an epoll of the command's own: that spares the tasks and nurseries
that would cost a third of what `/bin/true` takes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox import wire
from sandbox.faults import SpawnFailed
from sandbox.streams import Streams

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from sandbox.command import ExecPlan
    from sandbox.launcher import Init
    from sandbox.plan import Limits
    from sandbox.slot import Slot

KILL_BOUND_S = 5.0  # SIGKILL works at once except on a process that hangs in the kernel
ATTEMPTS = 3  # a waiting leader may die (out of memory) before it reads its spec


@contextlib.asynccontextmanager
async def open_command(init: Init, plan: ExecPlan, *, output_bytes: int) -> AsyncIterator[Command]:
    """Launch *plan*; on the way out, whatever did not end by itself is killed.

    Raises:
        SpawnFailed: nothing of the program ran. Whether the program could be executed, `wait_started` tells.
    """
    command = await _launch(init, plan, output_bytes)
    finished = False
    try:
        yield command
        finished = command.ended
    finally:
        with trio.move_on_after(KILL_BOUND_S, shield=True):
            if not (finished or command.tree_gone or command.failure):
                await command.kill()
        command.close()
        if finished or command.tree_gone or command.failure:
            init.slots.give_back(command.slot)
        else:
            init.slots.discard(command.slot)


async def _launch(init: Init, plan: ExecPlan, output_bytes: int) -> Command:
    limits = init.limits.overridden(plan.limits)
    for _ in range(ATTEMPTS):
        slot = await init.slots.take()
        try:
            return _hand_over(slot, plan, limits, output_bytes)
        except ConnectionError:  # that leader is gone and nothing was started: try the next one
            slot.disarm()
            init.slots.give_back(slot)
        except (OSError, ValueError) as error:  # no descriptors left, or argv is no text
            init.slots.give_back(slot)
            raise SpawnFailed("launch", str(error), getattr(error, "errno", None)) from error
    raise SpawnFailed("launch", f"{ATTEMPTS} waiting processes ended before they could become the command")


def _hand_over(slot: Slot, plan: ExecPlan, limits: Limits, output_bytes: int) -> Command:
    """Open the pipes and send the spec to the slot's waiting leader; all or nothing."""
    if slot.launch is None:
        raise ConnectionResetError
    with contextlib.ExitStack() as undo:
        streams = Streams(plan.stdin, output_bytes)
        undo.callback(streams.close)
        theirs = streams.theirs
        wire.send(slot.launch, _spec(plan, limits, list(theirs)), list(theirs.values()))
        streams.close_theirs()
        launch, slot.launch = slot.launch, None
        undo.callback(launch.close)
        command = Command(slot, launch, streams)
        undo.pop_all()
        return command


def _spec(plan: ExecPlan, limits: Limits, numbers: list[int]) -> wire.Message:
    return {
        "program": plan.program,
        "argv": plan.argv,
        "env": dict(plan.env),
        "cwd": plan.cwd,
        "exec_paths": plan.exec_paths,
        "limits": attrs.asdict(limits),
        "fds": numbers,
    }


class Command:
    """A command that was launched. One task uses it; whoever opened it closes it."""

    def __init__(self, slot: Slot, launch: socket.socket, streams: Streams) -> None:
        """Own *launch* and *streams*, and have the use of *slot*."""
        self.slot = slot
        self.pid = slot.leader_pid
        self.failure: SpawnFailed | None = None
        self.streams = streams
        self._serial = slot.serial
        self._launch = launch
        self._launching = True
        self._epoll = select.epoll(5)
        self._watched: dict[int, tuple[Callable[[], bool], Callable[[], None]]] = {}
        self._watch(launch.fileno(), self._read_launch, launch.close)
        self._watch(slot.sock.fileno(), self._read_news, _leave_open)
        for output in (streams.stdout, streams.stderr):
            self._watch(output.fd, output.pump, output.close)
        if streams.stdin is not None:
            self._watch(streams.stdin.fd, streams.stdin.pump, streams.stdin.close, select.EPOLLOUT)

    def _watch(
        self, fd: int, on_ready: Callable[[], bool], close: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        """Call *on_ready* whenever *fd* is, until it returns False; then *close*."""
        self._epoll.register(fd, events)
        self._watched[fd] = on_ready, close

    @property
    def ended(self) -> bool:
        """Whether the leader ended; its keeper's death is its own (PR_SET_PDEATHSIG)."""
        return self.slot.ended[0] == self._serial or self.slot.gone

    @property
    def tree_gone(self) -> bool:
        """Whether nothing of the command is left."""
        return self.slot.empty_serial >= self._serial or self.slot.gone

    @property
    def exit_code(self) -> int:
        """What the leader returned, or minus the signal that ended it."""
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
        """Read the pipes to their end, at most *drain_s* seconds: others may hold them. Return whether it came."""
        with trio.move_on_after(drain_s):
            while self.streams.open_outputs:
                await self._advance()
        return not self.streams.open_outputs

    async def end(self, grace_s: float) -> None:
        """Ask the command's group to end, and kill the whole tree *grace_s* seconds later."""
        self.slot.order("signal", self._serial, signal=signal.SIGTERM)
        with trio.move_on_after(grace_s):
            while not self.tree_gone:
                await self._advance()
        await self.kill()

    async def kill(self) -> None:
        """Kill the tree and wait until nothing of it is left.

        Cancellation: shielded, at most KILL_BOUND_S seconds.
        """
        self.slot.order("kill", self._serial)
        with trio.move_on_after(KILL_BOUND_S, shield=True):
            while not self.tree_gone:
                await self._advance()

    async def _advance(self) -> None:
        """Wait until anything happens, and deal with it."""
        await trio.lowlevel.wait_readable(self._epoll)
        for fd, _ in self._epoll.poll(0):
            on_ready, close = self._watched[fd]
            if not on_ready():
                # By hand and first: a copy in a process that is just being started would keep it in the set.
                self._epoll.unregister(fd)
                del self._watched[fd]
                close()

    def _read_launch(self) -> bool:
        """Learn what became of the launch: exec closes the socket silently, a failed stage says its name."""
        received = wire.receive(self._launch)
        if received is not None:
            news, _ = received
            self.failure = SpawnFailed(news["stage"], news["why"], news["errno"])
        self._launching = False
        return False

    def _read_news(self) -> bool:
        self.slot.read_news()
        return not self.slot.gone

    def close(self) -> None:
        """Close what the broker holds of it."""
        self._epoll.close()
        self._launch.close()
        self.streams.close()


def _leave_open() -> None:
    """Do nothing: the keeper's socket is its slot's."""
