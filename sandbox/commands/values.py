"""Values of one command: what is to run, for how long, who is in touch with it, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandbox.cgroup.usage import CommandUsage
    from sandbox.commands.running import Command
    from sandbox.commands.spill import Spill
    from sandbox.commands.streams import Captured
    from sandbox.commands.terminal import Size
    from sandbox.plan.limits import Limits
    from sandbox.protocol.commands import Attack, SearchSpec


@attrs.frozen(kw_only=True)
class ExecPlan:
    """A command to be run. `env` is the whole environment; `stdin` None is /dev/null, unless it `stays` open for more.

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

    @property
    def must_fork(self) -> bool:
        """Whether it is forked whatever its limits are."""
        return self.forked or self.terminal is not None or self.search is not None or self.attack is not None


@attrs.frozen(kw_only=True)
class Times:
    """Seconds: until its group gets SIGTERM, from that to SIGKILL of the whole tree, and for output after its end.

    Output comes after the end where somebody else holds the pipes.
    """

    timeout_s: float
    grace_s: float
    drain_s: float


@attrs.frozen(kw_only=True)
class Partner:
    """The other side of a command while it runs: `spill` gets its output, and may hold it up."""

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
