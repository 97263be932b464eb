"""The commands of a session: which run, which ran, and what is kept of what they said.

One command is how it runs, what it can be told while it does, and how it ended. It runs in the session's nursery or
inside a call of it, and ends with the session at the latest. The table of them is bounded: so many run at once, so many
ended ones are remembered, and their output shares one quota, out of which the oldest ended ones go first. Knows no
tool, no rule and no wire code.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import attrs
import trio

from broker.contract.encode import utc_now
from config.settings import OutputSettings
from sandbox.commands.run import run_command
from sandbox.commands.running import Command
from sandbox.commands.spill import THREADS, Quota, Spill
from sandbox.commands.terminal import Size
from sandbox.commands.values import Ended, ExecPlan, Partner, Times
from sandbox.init.init import Init

WAITING_BYTES = 1024 * 1024
"""Of input that a command has not read yet."""
SIGNALS: Mapping[str, int] = MappingProxyType(
    {
        name: int(signal.Signals[name])
        for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGCONT", "SIGSTOP")
    }
)


class NotTaken(Exception):
    """The command cannot be told anything: why stands in the text."""


@attrs.frozen(kw_only=True)
class CommandOrigin:
    """The call that started a command, for the record. `session_over`: whether its session is ending."""

    session_id: str
    principal: str
    client: str
    request_id: str
    session_over: Callable[[], bool]


@attrs.define(eq=False, kw_only=True)
class SessionCommand:
    """One command. `detached`: its call has answered, so that its end is nobody's answer.

    When it is done, one of three says how: `ended`, `failure` where nothing of the program ran or the broker failed,
    `cancelled` where its call or its session left.
    """

    id: str
    argv: tuple[str, ...]
    origin: CommandOrigin
    spill: Spill
    has_terminal: bool
    started_at: str = attrs.field(factory=utc_now)
    detached: bool = False
    pid: int | None = None
    ended: Ended | None = None
    failure: Exception | None = None
    cancelled: bool = attrs.field(default=False, init=False)
    started: trio.Event = attrs.field(factory=trio.Event, init=False)
    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    _since_s: float = attrs.field(factory=trio.current_time, init=False)
    _done_s: float | None = attrs.field(default=None, init=False)
    _on_end: Callable[[SessionCommand], None]
    _command: Command | None = attrs.field(default=None, init=False)
    """As the sandbox has it, while it runs."""

    async def run(self, init: Init, plan: ExecPlan, times: Times) -> None:
        """Run it to its end.

        Raises:
            SpawnFailed: nothing of the program ran.
        Cancellation: the tree is killed and gone before Cancelled leaves.
        """
        try:
            self.ended = await run_command(
                init,
                plan,
                times,
                output_bytes=0,
                on_started=self._begin,
                partner=Partner(spill=self.spill, on_launched=self._have),
            )
            await self.spill.tuck_away()
        except Exception as error:
            self.failure = error
            raise
        except BaseException:
            self.cancelled = self.ended is None  # the Cancelled belongs to whoever left, and is not kept
            raise
        finally:
            self._command = None
            self._done_s = trio.current_time()
            self.spill.finish()
            self._on_end(self)
            self.started.set()
            self.done.set()

    def _have(self, command: Command) -> None:
        self._command = command

    def _begin(self, pid: int) -> None:
        self.pid = pid or None  # nobody could tell us: there were no descriptors to be had
        self.started.set()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.done.is_set()

    @property
    def duration_ms(self) -> int:
        """How long it ran, or has been running."""
        if self.ended:
            return self.ended.duration_ms
        until_s = trio.current_time() if self._done_s is None else self._done_s
        return round((until_s - self._since_s) * 1000)

    @property
    def used(self) -> dict[str, Any]:
        """Its use of the machine as far as known, by the names on the wire; nothing before its end or ungrouped."""
        usage = self.ended.usage if self.ended else None
        return attrs.asdict(usage) if usage else {}

    def write(self, data: bytes | bytearray, *, last: bool) -> int:
        """Have *data* written to its input; return how many bytes wait there then.

        Raises:
            NotTaken: it has ended, its input is closed, or too much waits already.
        """
        command = self._command
        if command is None:
            raise NotTaken(f"command {self.id} has ended or not started yet")
        stdin = command.streams.stdin
        if stdin is not None and stdin.waiting_bytes + len(data) > WAITING_BYTES:
            raise NotTaken(
                f"command {self.id} has not read {stdin.waiting_bytes} bytes of its input; at most {WAITING_BYTES} "
                "may wait, so write less, or later"
            )
        waiting = command.feed(data, last=last)
        if waiting is None:
            raise NotTaken(
                f"the input of command {self.id} is closed; it stays open for a command started with background or "
                "wait_seconds and without stdin_input, or with a terminal"
            )
        return waiting

    def signal(self, signum: int) -> bool:
        """Signal its process group, or with SIGKILL all it started; return whether it was running."""
        if self._command is None or self._command.ended:
            return False
        self._command.signal(signum)
        return True

    async def end(self, grace_s: float) -> None:
        """Ask it to end, and kill all it started *grace_s* seconds later, or as soon as it has ended.

        Cancellation: it is killed at once, since nobody may be left to ask for that.
        """
        command = self._command
        if command is None:
            return
        command.signal(signal.SIGTERM)
        try:
            with trio.move_on_after(grace_s):
                await self.done.wait()
        finally:
            command.signal(signal.SIGKILL)

    def resize(self, size: Size) -> None:
        """Give its terminal a new size.

        Raises:
            NotTaken: it has none, or has ended.
        """
        if self._command is None or not self._command.resize(size):
            raise NotTaken(f"command {self.id} has ended, or was started without terminal")


REMEMBERED = 32
"""Ended commands of one session that can still be read: each may hold a descriptor and some memory."""


class TooManyCommands(Exception):
    """As many commands run in this session as may run at once."""

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} commands are running in this session and sessions.max_concurrent_commands is {limit}; "
            "wait until one ends, or end one with signal_command"
        )
        self.limit = limit


class CommandNotFound(Exception):
    """The session has no such command, or does not remember it any more."""

    def __init__(self, command_id: str) -> None:
        super().__init__(
            f"the session has no command {command_id!r}; it remembers those that run and the {REMEMBERED} that ended "
            "last, see list_commands"
        )


class SessionCommands:
    """All commands of one session, by id, the oldest first."""

    def __init__(
        self, limit: int, output: OutputSettings, folder: str, on_end: Callable[[SessionCommand], None]
    ) -> None:
        """Begin empty; output goes to *folder*. *on_end* is told of each command that ends, before its waiters."""
        self.limit = limit
        self.output = output
        self._folder = folder
        self._on_end = on_end
        self._quota = Quota(output.spill_bytes, self._make_room)
        self._limiter = trio.CapacityLimiter(THREADS)
        self._commands: dict[str, SessionCommand] = {}
        self._ended: dict[str, SessionCommand] = {}  # of those, in the order in which they ended
        self._count = 0

    def admit(self, argv: tuple[str, ...], origin: CommandOrigin, *, has_terminal: bool) -> SessionCommand:
        """Take in one more command.

        Raises:
            TooManyCommands: so many run already.
        """
        if len(self._commands) - len(self._ended) >= self.limit:
            raise TooManyCommands(self.limit)
        self._forget_oldest()
        self._count += 1
        command = SessionCommand(
            id=f"c{self._count}",
            argv=argv,
            origin=origin,
            spill=Spill(self.output.inline_bytes, self._folder, self._quota, self._limiter),
            has_terminal=has_terminal,
            on_end=self._take_end,
        )
        self._commands[command.id] = command
        return command

    def find(self, command_id: str) -> SessionCommand:
        """The command of that id; raises CommandNotFound."""
        command = self._commands.get(command_id)
        if command is None:
            raise CommandNotFound(command_id)
        return command

    def all(self) -> tuple[SessionCommand, ...]:
        """Every command that is remembered."""
        return tuple(self._commands.values())

    def running(self) -> tuple[SessionCommand, ...]:
        """Those that have not ended."""
        return tuple(command for command in self._commands.values() if command.running)

    def close(self) -> None:
        """Let go of all output; who still waits for a command learns that there is no more."""
        for command in self._commands.values():
            command.spill.finish()
            command.started.set()
            command.done.set()
            command.spill.close()

    def _take_end(self, command: SessionCommand) -> None:
        self._ended[command.id] = command
        self._on_end(command)

    def _forget_oldest(self) -> None:
        """Forget what ended first, beyond those that are remembered; not what somebody is reading now."""
        while len(self._ended) >= REMEMBERED:
            oldest = next(iter(self._ended.values()))
            if oldest.spill.in_use:
                return
            oldest.spill.give_up()
            del self._ended[oldest.id], self._commands[oldest.id]

    def _make_room(self, wanted: int) -> None:
        """Give up output of ended commands, the oldest first, until *wanted* bytes are free."""
        for command in self._ended.values():
            if wanted <= 0:
                return
            if not command.spill.in_use:
                wanted -= command.spill.size
                command.spill.give_up()
