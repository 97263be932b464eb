"""Running one command, from its plan to its end.

A slot whose leader waits gets the pipes and the spec; then deadlines are kept in order, and what is left is ended.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox import wire
from sandbox.cgroup.group import CgroupFault
from sandbox.commands.running import KILL_BOUND_S, Command
from sandbox.commands.streams import Streams
from sandbox.commands.values import Ended, Exited, Signalled, TimedOut
from sandbox.errors import NeverBegan, SpawnFailed
from sandbox.protocol.commands import NO_ROOM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sandbox.commands.spill import Spill
    from sandbox.commands.values import ExecPlan, Partner, Times
    from sandbox.init.init import Init
    from sandbox.init.keeper import Slot
    from sandbox.init.keeper_pool import SlotPool
    from sandbox.plan.limits import Limits
    from sandbox.protocol.commands import CommandSpec

ATTEMPTS = 3  # a waiting leader may die (out of memory) before it reads its spec


async def run_command(
    init: Init,
    plan: ExecPlan,
    times: Times,
    *,
    output_bytes: int,
    on_started: Callable[[int], None] | None = None,
    partner: Partner | None = None,
) -> Ended:
    """Run *plan* to its end in a session and process group of its own.

    Daemons left by a command that ended in time live until the session ends.

    Args:
        init: where it runs.
        plan: what runs.
        times: for how long.
        output_bytes: how much of each stream is kept; the rest is read and counted.
        on_started: called with the leader's pid once its program runs.
        partner: who hears everything the command says, and may talk to it while this runs.

    Raises:
        SpawnFailed: nothing of the program ran; `.stage` says why.

    Cancellation: the tree is killed and gone before Cancelled leaves (at most KILL_BOUND_S seconds).
    """
    spill = None if partner is None else partner.spill
    lost = 0
    while True:
        started_s = trio.current_time()
        try:
            async with open_command(init, plan, output_bytes=output_bytes, spill=spill) as command:
                if partner is not None:
                    partner.on_launched(command)
                return await _see_through(command, times, started_s, on_started)
        except NeverBegan:
            lost += 1
            if lost == ATTEMPTS:
                raise
        except SpawnFailed as failed:
            if failed.stage != NO_ROOM or plan.forked:
                raise
            # The keeper has to live within the limits that its commands use up; one without limits may do it.
            plan = attrs.evolve(plan, forked=True)


async def _see_through(
    command: Command, times: Times, started_s: float, on_started: Callable[[int], None] | None
) -> Ended:
    with trio.move_on_at(started_s + times.timeout_s):
        await command.wait_started()
        if on_started is not None:
            on_started(command.pid)
        await command.wait_ended()
    timed_out = not command.ended
    if timed_out:
        await command.end(times.grace_s)
    drained = await command.drain(times.drain_s)
    return Ended(
        how=TimedOut(times.timeout_s) if timed_out else _how(command.exit_code),
        stdout=command.streams.stdout.captured(),
        stderr=command.streams.stderr.captured(),
        drained=drained,
        duration_ms=round((trio.current_time() - started_s) * 1000),
        pid=command.pid,
        usage=None if command.leaf is None else command.leaf.usage(),
    )


def _how(exit_code: int) -> Exited | Signalled:
    return Exited(exit_code) if exit_code >= 0 else Signalled(-exit_code)


@contextlib.asynccontextmanager
async def open_command(
    init: Init, plan: ExecPlan, *, output_bytes: int, spill: Spill | None = None
) -> AsyncIterator[Command]:
    """Launch *plan*; on the way out, whatever did not end by itself is killed.

    Args:
        init: where it runs.
        plan: what runs.
        output_bytes: how much of each stream the streams themselves keep.
        spill: who gets all of the output as well, at its own pace.

    Raises:
        SpawnFailed: nothing of the program ran. Whether the program could be executed, `wait_started` tells.
    """
    pool = init.pool_for(plan.limits, forked=plan.must_fork)
    command = await _launch(init, pool, plan, output_bytes, spill)
    pool.provide(command.slot)
    finished = False
    try:
        yield command
        finished = command.ended
    finally:
        with trio.move_on_after(KILL_BOUND_S, shield=True):
            if not (finished or command.tree_gone or command.failure):
                await command.kill()
            if not finished:  # what it has said already is heard, whatever ended it
                await command.drain(0)
        command.close()
        if command.leaf is not None and pool.leaves is not None:
            pool.leaves.release(command.leaf)
        if finished or command.tree_gone or command.failure:
            pool.give_back(command.slot)
        else:
            pool.discard(command.slot)


async def _launch(init: Init, pool: SlotPool, plan: ExecPlan, output_bytes: int, spill: Spill | None) -> Command:
    limits = init.limits.overridden(plan.limits)
    for _ in range(ATTEMPTS):
        slot = await pool.take()
        try:
            _limit_leaf(pool, slot, limits)
            return _hand_over(init, slot, plan, limits, output_bytes, spill)
        except CgroupFault as fault:
            pool.discard(slot)
            raise SpawnFailed("cgroup", str(fault)) from fault
        except ConnectionError:  # that leader is gone and nothing was started: try the next one
            slot.disarm()
            pool.give_back(slot)
        except (OSError, ValueError) as error:  # no descriptors left, or argv is no text
            pool.give_back(slot)
            raise SpawnFailed("launch", str(error), getattr(error, "errno", None)) from error
    raise SpawnFailed("launch", f"{ATTEMPTS} waiting processes ended before they could become the command")


def _limit_leaf(pool: SlotPool, slot: Slot, limits: Limits) -> None:
    """Hold the waiting leader, and the command that it becomes, to *limits*."""
    if pool.leaves is not None and slot.leaf is not None:
        pool.leaves.limit(slot.leaf, limits.of_group())


def _hand_over(
    init: Init, slot: Slot, plan: ExecPlan, limits: Limits, output_bytes: int, spill: Spill | None
) -> Command:
    """Open the pipes and send the spec to the slot's waiting leader; all or nothing."""
    launch = slot.launch
    if launch is None:
        raise ConnectionResetError
    with contextlib.ExitStack() as undo:
        streams = Streams(
            plan.stdin,
            output_bytes,
            stdin_stays=plan.stdin_stays,
            terminal=plan.terminal,
            terminal_maker_fd=init.terminal_maker_fd,
            on_data=None if spill is None else spill.add,
        )
        undo.callback(streams.close)
        theirs = streams.theirs if plan.stdin_fd is None else {0: plan.stdin_fd, **streams.theirs}
        internet = plan.network or not init.mixed_network
        spec = _spec(plan, limits, list(theirs), init.room_of(limits), grouped=slot.leaf is not None, internet=internet)
        wire.send(launch, spec, list(theirs.values()))
        streams.close_theirs()
        slot.begin()
        undo.callback(launch.close)
        command = Command(slot, launch, streams, spill, slot.take_leaf())
        command.paths = {"exec": plan.program, "chdir": plan.cwd}
        undo.pop_all()
        return command


def _spec(
    plan: ExecPlan,
    limits: Limits,
    numbers: list[int],
    room: tuple[int, int | None] | None,
    *,
    grouped: bool,
    internet: bool,
) -> CommandSpec:
    return {
        "program": plan.program,
        "argv": plan.argv,
        "env": dict(plan.env),
        "cwd": plan.cwd,
        "exec_paths": plan.exec_paths,
        "internet": internet,
        "limits": limits.of_process(grouped=grouped),
        "fds": numbers,
        "terminal": plan.terminal is not None,
        "search": plan.search,
        "attack": plan.attack,
        "room": room,
    }
