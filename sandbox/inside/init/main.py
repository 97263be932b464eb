"""The session init: an interpreter that confines itself once, stage by stage, and then serves. Child side.

It is started as a bare spare, goes ahead into the namespaces of the session-to-be where there are any, gets its birth
spec over the socket, and answers with a report made by probes from inside the walls, or with the stage that failed.
Then it forks a keeper whenever the broker asks for one, reaps, and ends everything below it when the broker's end of
the socket closes, or the broker's thread does (PR_SET_PDEATHSIG). A kernel that has no process left to give (somebody
else's bomb) is told to the broker and asked again until it has.

Whatever is needed later is imported here, before the walls: behind them the standard library may be out of reach.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from types import MappingProxyType

from sandbox import wire
from sandbox.inside.init import probes
from sandbox.inside.init.birth import Birth
from sandbox.inside.init.prepare import Preparation
from sandbox.inside.keeper import keeper
from sandbox.inside.keeper.wakeup import Wakeup
from sandbox.inside.opener import main as opener
from sandbox.inside.stages import StageFailed, stage
from sandbox.kernel import process, processes, seccomp
from sandbox.protocol.commands import RETRY_S, TO_INIT

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    from sandbox.inside.blocked_paths import Search
    from sandbox.protocol.commands import (
        BirthSpec,
        Born,
        GoAhead,
        Greet,
        Greeted,
        KeeperForked,
        KeeperWanted,
        LayerFound,
        NotBorn,
        Short,
        WayIn,
    )

TERMINAL_MAKER = "/dev/pts/ptmx"


def main(fd: int, broker_pid: int) -> NoReturn:
    """Wait for a birth spec on *fd*, be born, serve until the session ends."""
    process.die_with(broker_pid, signal.SIGKILL)
    # Here and once: exec passes an ignored signal on, and Python ignores SIGPIPE and SIGXFSZ.
    process.default_signals()
    process.go_first()
    sock = socket.socket(fileno=process.keep_only(fd))
    try:
        born = _be_born(sock)
    except StageFailed as failed:
        news: NotBorn = {"op": "failed", "stage": failed.stage, "why": failed.why, "errno": failed.errno}
        wire.send(sock, news)
        os._exit(1)
    gc.disable()  # as in the keepers and leaders: what they make is reused or gone soon
    ServingInit(sock, born).serve()
    os._exit(0)


def _be_born(sock: socket.socket) -> Birth:
    """Go ahead as far as the broker says, wait for the spec, raise the walls, report. Raises StageFailed."""
    spec, opener_fd, prepared = Unborn(sock).wait_spec()
    if spec["besieged"]:
        from sandbox.inside.init import attacks  # noqa: F401, PLC0415  here and nowhere else: no real session has it at hand
    birth = Birth(spec, prepared)
    birth.raise_walls()
    layers = probes.report(birth)
    gc.freeze()  # keeps the collector of whatever is forked from here on from writing into pages that all share
    with stage("opener"):  # after the report: what we touch after a fork is there twice
        birth.opener_pid = _fork_opener(opener_fd, birth.search)
    if spec["seccomp"]:
        with stage("seccomp"):
            seccomp.forbid_openat2()
    _say_born(sock, birth, layers)
    return birth


def _say_born(sock: socket.socket, birth: Birth, layers: Sequence[LayerFound]) -> None:
    """Report, and hand over what makes terminals in here, if those are ours."""
    makers = [os.open(TERMINAL_MAKER, os.O_PATH | os.O_CLOEXEC)] if birth.prepared.flags else []
    born: Born = {"op": "born", "layers": layers}
    wire.send(sock, born, makers)
    for fd in makers:
        os.close(fd)


class Unborn:
    """An init that waits for its birth: returns greetings, goes ahead."""

    def __init__(self, sock: socket.socket) -> None:
        """Borrow *sock*."""
        self._sock = sock
        self._prepared = Preparation()
        self._born: tuple[BirthSpec, int] | None = None

    def wait_spec(self) -> tuple[BirthSpec, int, Preparation]:
        """Return the spec, the opener's socket and what was done ahead; exit if no further session is needed.

        Raises:
            StageFailed: going ahead came to nothing.
        """
        while self._born is None:
            received = wire.hear(self._sock, TO_INIT["moved" if self._prepared.flags else "waiting"])
            if received is None:
                os._exit(0)
            message, fds = received
            BEFORE_BIRTH[message["op"]](self, message, fds)
        return *self._born, self._prepared

    def _greet(self, _message: Greet, _fds: list[int]) -> None:
        greeted: Greeted = {"op": "greet"}
        wire.send(self._sock, greeted)

    def _go_ahead(self, order: GoAhead, _fds: list[int]) -> None:
        self._prepared.move(order["flags"], self._sock)
        self._prepared.prepare(internet=order["internet"], patterns=order["patterns"])

    def _take_spec(self, spec: BirthSpec, fds: list[int]) -> None:
        self._born = spec, fds[0]


BEFORE_BIRTH: Mapping[str, Callable[[Unborn, Any, list[int]], None]] = MappingProxyType(
    {"greet": Unborn._greet, "ahead": Unborn._go_ahead, "birth": Unborn._take_spec}  # noqa: SLF001  a table of its own
)
"""By kind of a message, the method that performs it. What may come when: TO_INIT."""


def fork(child: Callable[[], None]) -> int:
    """Run *child* in a new process that never comes back from it."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)  # or our signals would wake the parent
            child()
        finally:
            os._exit(1)
    return pid


def _fork_opener(fd: int, search: Search | None) -> int:
    init_pid = os.getpid()

    def child() -> None:
        process.die_with(init_pid, signal.SIGKILL)
        opener.serve(socket.socket(fileno=process.keep_only(fd)), search)
        os._exit(0)

    pid = fork(child)
    os.close(fd)
    return pid


class ServingInit:
    """Forks keepers, reaps, ends it all."""

    def __init__(self, sock: socket.socket, birth: Birth) -> None:
        """Own *sock* and everything below this process."""
        self._sock = sock
        self._abi = birth.spec["abi"]
        self._tasks_room = birth.tasks_room
        self._grouped = birth.spec["cgroup"]
        self._broker_pid = birth.spec["broker_pid"]
        self._first = bool(birth.prepared.flags)
        self._ours = {birth.opener_pid}  # the opener and the keepers
        self._keeper_killed = False
        self._wakeup = Wakeup(sock)
        self._limits = birth.spec["spawn_limits"]
        # Keepers asked for that are yet to be forked, each with whether it spawns and with its way into a group.
        self._due: list[tuple[bool, list[int]]] = []
        self._short = False  # whether the last one could not be

    def serve(self) -> None:
        """Serve until the broker closes the socket or dies; nothing is left below us when this process ends."""
        with contextlib.suppress(ConnectionError, wire.WireBroken):  # the broker is gone: what remains is to end
            self._serve()
        if self._first:  # the kernel ends a pid namespace with its process 1
            return
        if self._abi >= 6 and processes.scope_holds(self._broker_pid):
            processes.end_domain(_forget)
        else:
            processes.end_in_rounds(_forget)

    def _serve(self) -> None:
        while True:
            readable, signals = self._wakeup.wait(RETRY_S if self._due else None)
            if signal.SIGTERM in signals:
                return
            if signals:
                self._reap()
            if readable:
                received = wire.hear(self._sock, TO_INIT["serving"])
                if received is None:
                    return
                message, fds = received
                SERVED[message["op"]](self, message, fds)
            if not self._short or not (readable or signals):  # what came of a failure must not lead to the next one
                self._fork_keepers()

    def _owe_keeper(self, wanted: KeeperWanted, entry: list[int]) -> None:
        self._due.append((wanted["spawns"], entry))

    def _fork_keepers(self) -> None:
        """Fork those that are due, or say why not."""
        while self._due:
            try:
                spawns, entry = self._due[0]
                self._fork_keeper(entry, spawns=spawns)
            except ConnectionError:
                raise
            except OSError as error:  # no process, or no descriptor
                self._run_short(error)
                return
            for fd in self._due.pop(0)[1]:
                os.close(fd)
        self._short = False

    def _run_short(self, error: OSError) -> None:
        if not self._short:
            self._short = True
            short: Short = {"op": "short", "why": error.strerror or str(error)}
            wire.send(self._sock, short)

    def _fork_keeper(self, entry: list[int], *, spawns: bool) -> None:
        """Fork a keeper and tell it of the group for its first command, if there are groups."""
        ours, theirs = wire.pair()
        init_pid = os.getpid()
        with ours:
            with theirs:
                pid = fork(
                    lambda: keeper.main(
                        theirs.fileno(),
                        abi=self._abi,
                        tasks_room=self._tasks_room,
                        init_pid=init_pid,
                        grouped=self._grouped,
                        limits=self._limits if spawns else None,
                    )
                )
            self._ours.add(pid)
            with contextlib.suppress(ConnectionError):  # it is gone already, which the broker learns from its socket
                for fd in entry:
                    way_in: WayIn = {"op": "leaf"}
                    wire.send(ours, way_in, [fd])
            pidfd = os.pidfd_open(pid)  # its number in here may mean nothing outside
            try:
                forked: KeeperForked = {"op": "keeper"}
                wire.send(self._sock, forked, [ours.fileno(), pidfd])
            finally:
                os.close(pidfd)

    def _reap(self) -> None:
        self._keeper_killed = False
        try:
            while (changed := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
                self._changed(*changed)
        except ChildProcessError:
            return
        while self._keeper_killed:  # what it kept is ours now, and has nobody else to end it
            self._keeper_killed = False
            processes.end_in_rounds(self._exited, spare=self._ours)

    def _changed(self, pid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self._exited(pid, status)
        elif pid in self._ours:  # a keeper that is stopped ends no command: who stopped it shall not gain by it
            os.kill(pid, signal.SIGKILL)

    def _exited(self, pid: int, status: int) -> None:
        if pid in self._ours:
            self._ours.discard(pid)
            self._keeper_killed = self._keeper_killed or status != 0


SERVED: Mapping[str, Callable[[ServingInit, Any, list[int]], None]] = MappingProxyType(
    {"keeper": ServingInit._owe_keeper}  # noqa: SLF001  a table of its own methods
)
"""By kind of a message, the method that performs it: a broker asks for one thing alone."""


def _forget(_pid: int, _status: int) -> None:
    """Take no notice of who ended."""
