"""Running one command to its end: what is asked for, the order of deadlines, what is answered."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from sandbox.commands.launching import ATTEMPTS, open_command
from sandbox.errors import NeverBegan, SpawnFailed
from sandbox.protocol import NO_ROOM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandbox.cgroup.usage import CommandUsage
    from sandbox.commands.running import Command
    from sandbox.commands.spill import Spill
    from sandbox.commands.streams import Captured
    from sandbox.commands.terminal import Size
    from sandbox.init.init import Init
    from sandbox.plan.limits import Limits
    from sandbox.protocol import Attack, SearchSpec


@attrs.frozen(kw_only=True)
class ExecPlan:
    """What to run. `env` is the whole environment; `stdin` None is /dev/null, unless it `stays` open for more.

    `exec_paths` narrows what the command's tree may execute (None: what the session may). `network`: it gets
    internet sockets, if its session has any. `terminal`: its size, and
    all three streams are that. `search`: no program, but a search (`sandbox/inside/keeper/search_output.py`) in what
    `stdin_fd` is. `attack`: no program either, but an attack on the walls (`sandbox/inside/init/attacks.py`), in a
    besieged session alone. `forked`: never spawned, whatever it needs.
    """

    program: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    stdin: bytes | bytearray | None = None
    exec_paths: tuple[str, ...] | None = None
    network: bool = False
    limits: Limits | None = None
    stdin_stays: bool = False
    stdin_fd: int | None = None
    terminal: Size | None = None
    search: SearchSpec | None = None
    attack: Attack | None = None
    forked: bool = False


@attrs.frozen(kw_only=True)
class Partner:
    """Who a command is in touch with while it runs: `spill` gets its output, and may hold it up."""

    spill: Spill
    on_launched: Callable[[Command], None]


@attrs.frozen
class Exited:
    """The leader returned this code."""

    code: int


@attrs.frozen
class Signalled:
    """A signal ended the leader."""

    signal: int


@attrs.frozen
class TimedOut:
    """The deadline ended the tree."""

    after_s: float


How = Exited | Signalled | TimedOut


@attrs.frozen(kw_only=True)
class Ended:
    """A command's whole story.

    `drained`: both pipes were read to their end; `pid`: 0 where it could not be learnt; `usage`: None without a cgroup.
    """

    how: How
    stdout: Captured
    stderr: Captured
    drained: bool
    duration_ms: int
    pid: int
    usage: CommandUsage | None = None


async def run_command(
    init: Init,
    plan: ExecPlan,
    *,
    timeout_s: float,
    grace_s: float,
    drain_s: float,
    output_bytes: int,
    on_started: Callable[[int], None] | None = None,
    partner: Partner | None = None,
) -> Ended:
    """Run *plan* to its end in a session and process group of its own.

    Daemons left by a command that ended in time live until the session ends.

    Args:
        init: where it runs.
        plan: what runs.
        timeout_s: seconds after which the group gets SIGTERM.
        grace_s: seconds from SIGTERM to SIGKILL of the whole tree.
        drain_s: seconds for which the pipes are read after the end, while somebody else holds them.
        output_bytes: how much of each stream is kept; the rest is read and counted.
        on_started: called with the leader's pid once its program runs.
        partner: who hears everything the command says, and may talk to it while this runs.

    Raises:
        SpawnFailed: nothing of the program ran; `.stage` says why.

    Cancellation: the tree is killed and gone before Cancelled leaves (at most KILL_BOUND_S seconds).
    """
    run = partial(
        _run,
        init,
        timeout_s=timeout_s,
        grace_s=grace_s,
        drain_s=drain_s,
        output_bytes=output_bytes,
        on_started=on_started,
        partner=partner,
    )
    lost = 0
    while True:
        try:
            return await run(plan)
        except NeverBegan:
            lost += 1
            if lost == ATTEMPTS:
                raise
        except SpawnFailed as failed:
            if failed.stage != NO_ROOM or plan.forked:
                raise
            # The keeper has to live within the limits that its commands use up; one without limits may do it.
            plan = attrs.evolve(plan, forked=True)


async def _run(
    init: Init,
    plan: ExecPlan,
    *,
    timeout_s: float,
    grace_s: float,
    drain_s: float,
    output_bytes: int,
    on_started: Callable[[int], None] | None,
    partner: Partner | None,
) -> Ended:
    started_s = trio.current_time()
    spill = None if partner is None else partner.spill
    async with open_command(init, plan, output_bytes=output_bytes, spill=spill) as command:
        if partner is not None:
            partner.on_launched(command)
        with trio.move_on_at(started_s + timeout_s):
            await command.wait_started()
            if on_started is not None:
                on_started(command.pid)
            await command.wait_ended()
        timed_out = not command.ended
        if timed_out:
            await command.end(grace_s)
        drained = await command.drain(drain_s)
        return Ended(
            how=TimedOut(timeout_s) if timed_out else _how(command.exit_code),
            stdout=command.streams.stdout.captured(),
            stderr=command.streams.stderr.captured(),
            drained=drained,
            duration_ms=round((trio.current_time() - started_s) * 1000),
            pid=command.pid,
            usage=None if command.leaf is None else command.leaf.usage(),
        )


def _how(exit_code: int) -> Exited | Signalled:
    return Exited(exit_code) if exit_code >= 0 else Signalled(-exit_code)
