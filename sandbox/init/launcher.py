"""Starts session inits: keeps one unconfined spare warm, gives it its walls, holds what became of it.

Broker side. `open_launcher` owns the spare, `open_init` one session's process and all below it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox import wire
from sandbox.cgroup.group import CgroupFault
from sandbox.cgroup.session import Leaves
from sandbox.errors import BirthCut, BirthFailed
from sandbox.init.init import Init
from sandbox.init.spare import Interpreter, start_spare
from sandbox.plan.limits import Limits
from sandbox.plan.plan import LAYERS, LayerReport, Plan, Walls
from sandbox.plan.system_search import SystemSearch
from sandbox.plan.walls import (
    close_for,
    grants_everything,
    grants_for,
    private_paths,
    readable_paths,
    real_grants_for,
    root_for,
    sockets,
    terminal_grants,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Sequence

    from sandbox.cgroup.session import SessionGroup
    from sandbox.cgroup.tree import Tree
    from sandbox.plan.plan import ClosedPaths
    from sandbox.protocol.commands import BirthSpec, LayerFound, ProcessLimits

BIRTH_S = 30.0  # it takes about 10 ms from a warm spare and 50 ms from a cold one; seconds where the disk is far
SPARE_S = 1.0  # for a spare to say that it is there: it takes less than a millisecond unless it is stopped
AFTER_S = 0.005  # the answer to create_session is on its way by then
SHUT_S = 25.0  # all of the bounded waits of an end together


@contextlib.asynccontextmanager
async def open_launcher(plan: Plan, groups: Tree | None = None) -> AsyncIterator[Launcher]:
    """Keep a spare interpreter warm; it ends with this block. Inits must be closed before.

    Args:
        plan: for all of them.
        groups: where each gets a control group; it must outlive the block.

    Raises:
        BirthFailed: no interpreter can be started.
    """
    async with trio.open_nursery() as nursery:
        launcher = Launcher(plan, groups, nursery)
        launcher.warm_up()
        nursery.start_soon(launcher.keep_warm)
        try:
            yield launcher
        finally:
            nursery.cancel_scope.cancel(reason="the launcher is closed")
            with trio.move_on_after(SHUT_S, shield=True):
                await launcher.cool_down()


class Launcher:
    """Gives birth to inits. The thread that runs it must outlive it (see `spare.py`)."""

    def __init__(self, plan: Plan, groups: Tree | None, nursery: trio.Nursery) -> None:
        """Start nothing yet."""
        self._groups = groups
        self._plan = plan
        self._spare: Interpreter | None = None
        self._closed = False
        self._alive = 0
        self._wanted = trio.Event()
        self._system = SystemSearch(nursery)
        self._patterns: tuple[str, ...] = ()  # of blocked paths, in the last birth: they follow from the policy

    @property
    def has_sessions(self) -> bool:
        """Whether a process of any session may be alive: one that did not end is counted for ever."""
        return self._alive > 0

    def warm_up_soon(self) -> None:
        """Have a spare started if there is none: after AFTER_S, so as not to take the time of an answer under way."""
        self._wanted.set()

    async def keep_warm(self) -> None:
        """Start the spares that are wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await trio.sleep(AFTER_S)
            with contextlib.suppress(BirthFailed):  # the next init starts its own, and says why not
                self.warm_up()

    def warm_up(self) -> None:
        """Start a spare if there is none. Takes about a millisecond of the loop's time, and ten of another core's.

        Raises:
            BirthFailed: no interpreter can be started.
        """
        if self._spare is None and not self._closed:
            self._spare = self._start_spare()

    async def cool_down(self) -> None:
        """End the spare, and have none any more."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.end()

    @contextlib.asynccontextmanager
    async def open_init(self, walls: Walls) -> AsyncIterator[Init]:
        """Give birth to a session's process; everything in it ends with this block.

        Raises:
            BirthFailed: a stage failed, or a layer that the operator requires is not enforced inside; BirthCut: none
                did, the process was ended or stopped meanwhile.
        """
        system, known = await self._system.found(walls.closed.blocked, walls.closed.last_names)
        walls = attrs.evolve(walls, closed=attrs.evolve(walls.closed, system=system, system_known=known))
        async with self._open_group(walls.limits) as group, self._open_init(walls, group) as init:
            yield init

    def look_ahead(self, closed: ClosedPaths) -> None:
        """Start to find out what births will want to know of the system's directories: the first one need not wait."""
        self._system.begin(closed.blocked, closed.last_names)

    @contextlib.asynccontextmanager
    async def _open_group(self, limits: Limits) -> AsyncIterator[SessionGroup | None]:
        if self._groups is None:
            yield None
            return
        async with contextlib.AsyncExitStack() as stack:
            try:
                group = await stack.enter_async_context(self._groups.open_session(limits.of_group()))
            except CgroupFault as fault:
                raise BirthFailed("cgroup", str(fault)) from fault
            yield group

    @contextlib.asynccontextmanager
    async def _open_init(self, walls: Walls, group: SessionGroup | None) -> AsyncIterator[Init]:
        spare = await self._take_spare()
        init: Init | None = None
        self._alive += 1
        with contextlib.ExitStack() as ends:
            try:
                files_socket, openers = map(ends.enter_context, _pair())
                layers = await self._give_birth(spare, walls, openers, group)
                leaves = await self._settle(group, walls.limits)
                mixed = self._plan.network == "some" and self._plan.seccomp
                spawns = _spawn_limits(walls.limits, grouped=group is not None) is not None
                init = Init(
                    spare,
                    files_socket,
                    layers,
                    walls.limits,
                    leaves,
                    mixed_network=mixed,
                    spawns=spawns,
                    own_task_count=self._plan.own_task_count,
                )
                yield init
            finally:
                gone = False
                with trio.move_on_after(SHUT_S, shield=True):
                    gone = await (spare.end() if init is None else init.end())
                self._alive -= gone

    async def _take_spare(self) -> Interpreter:
        """Return the spare if it is well, or a fresh one: while it waited, somebody may have killed or stopped it."""
        spare, self._spare = self._spare, None
        if spare is None:
            return self._start_spare()
        well = False
        try:
            with trio.move_on_after(SPARE_S), contextlib.suppress(BirthFailed, OSError):
                await spare.greet()
                well = True
        finally:
            if not well:
                spare.kill()
                with trio.move_on_after(SHUT_S, shield=True):
                    await spare.end()
        return spare if well else self._start_spare()

    def _start_spare(self) -> Interpreter:
        return start_spare(self._plan.spaces, internet=self._plan.internet, patterns=self._patterns)

    async def _settle(self, group: SessionGroup | None, limits: Limits) -> Leaves | None:
        """Make the session's group ready for leaves, now that no namespace is made in it any more."""
        if group is None or self._groups is None:
            return None
        try:
            await group.settle()
        except CgroupFault as fault:
            raise BirthFailed("cgroup", str(fault)) from fault
        return Leaves(group, limits.of_group(), self._groups.chores)

    async def _give_birth(
        self, spare: Interpreter, walls: Walls, openers: socket.socket, group: SessionGroup | None
    ) -> tuple[LayerReport, ...]:
        try:
            with trio.fail_after(BIRTH_S):
                await spare.wait_ahead()
                if group is not None:
                    await group.join(spare.pid)
                spec = birth_spec(self._plan, walls, grouped=group is not None)
                self._patterns = (*spec["close"]["blocked"], *spec["close"]["guarded"], spec["close"]["last_names"])
                wire.send(spare.sock, spec, [openers.fileno()])
                openers.close()  # or we would not see the opener's end
                answer, makers = await spare.hear("being_born")
        except trio.TooSlowError:
            raise BirthCut("report", f"no answer within {BIRTH_S:.0f} s") from None
        except CgroupFault as fault:
            raise BirthFailed("cgroup", str(fault)) from fault
        except ConnectionError as error:
            raise BirthCut("start", "the waiting interpreter is gone") from error
        except (OSError, ValueError) as error:  # no descriptors left, or a policy that is too long
            raise BirthFailed("start", str(error), getattr(error, "errno", None)) from error
        spare.terminal_maker_fd = makers[0] if makers else -1
        return self._judge(answer["layers"])

    def _judge(self, found: Sequence[LayerFound]) -> tuple[LayerReport, ...]:
        """Put what the init found inside in the place of what was expected."""
        layers = {layer.name: layer for layer in self._plan.layers}
        for report in found:
            layers[report["name"]] = LayerReport(**report)
        for name in self._plan.require:
            if layers[name].state != "enforced":
                raise BirthFailed(name, f"required, but {layers[name].state}: {layers[name].detail}")
        return tuple(layers[name] for name in LAYERS)


def _pair() -> tuple[socket.socket, socket.socket]:
    try:
        return wire.pair()
    except OSError as error:
        raise BirthFailed("start", error.strerror or str(error), error.errno) from error


def birth_spec(plan: Plan, walls: Walls, *, grouped: bool = False) -> BirthSpec:
    """Compose what an init is told about itself. *grouped*: it is in a control group of its session already."""
    user = walls.user
    terminals = terminal_grants(plan, walls)
    return {
        "op": "birth",
        "broker_pid": os.getpid(),
        "abi": plan.landlock_abi,
        "switch_user": plan.switch_user,
        "seccomp": plan.seccomp,
        "internet": plan.internet,
        "uid": user.uid,
        "gid": user.gid,
        "groups": user.groups,
        "user_name": user.name,
        "account": {"name": user.name, "uid": user.uid, "gid": user.gid, "home": walls.home},
        "dedicated": user.dedicated,
        "own_task_count": plan.own_task_count,
        "grants": (*grants_for(walls, readable_paths()), *terminals),
        "real_grants": real_grants_for(walls, private_paths(plan, walls)),
        "terminals": bool(terminals),
        "canary_granted": grants_everything(walls),
        "root": root_for(plan, walls),
        "close": close_for(plan, walls),
        "sockets": sockets() if plan.spaces else (),
        "expected": {layer.name: (layer.state, layer.detail) for layer in plan.layers},
        "cgroup": grouped,
        "spawn_limits": _spawn_limits(walls.limits, grouped=grouped),
        "besieged": plan.besieged,
    }


def _spawn_limits(limits: Limits, *, grouped: bool) -> ProcessLimits | None:
    """Return the limits of commands that need nothing of their own, and of who spawns them; None: all are forked.

    With control groups each needs one of its own.
    """
    return None if grouped or not limits.hold_a_keeper else limits.of_process(grouped=False)
