"""From a plan to a command that runs: a slot whose leader waits, the pipes, the spec; and the end of all of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from sandbox import wire
from sandbox.cgroup.group import CgroupFault
from sandbox.commands.running import KILL_BOUND_S, Command
from sandbox.commands.streams import Streams
from sandbox.errors import SpawnFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sandbox.commands.run import ExecPlan
    from sandbox.commands.spill import Spill
    from sandbox.init.init import Init
    from sandbox.init.keeper import Slot
    from sandbox.init.keeper_pool import SlotPool
    from sandbox.plan.limits import Limits
    from sandbox.protocol import CommandSpec

ATTEMPTS = 3  # a waiting leader may die (out of memory) before it reads its spec


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
    pool = init.pool_for(plan)
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
