"""The commands of a session as jobs: which run, which ran, and what is kept of what they said.

A job belongs to its session and ends with it at the latest. The table is bounded: so many run at once, so many ended
ones are remembered, and their output shares one quota, out of which the oldest ended ones go first.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from broker.session.command import Job, Origin
from sandbox.commands.spill import THREADS, OutputRoom, Quota, Spill

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


class Jobs:
    """All commands of one session, by id, the oldest first."""

    def __init__(self, limit: int, room: OutputRoom, on_end: Callable[[Job], None]) -> None:
        """Begin empty. *on_end* is told of each job when it ends, before anybody who waits for it."""
        self.limit = limit
        self.room = room
        self._on_end = on_end
        self._quota = Quota(room.spill_bytes, self._make_room)
        self._limiter = trio.CapacityLimiter(THREADS)
        self._jobs: dict[str, Job] = {}
        self._ended: dict[str, Job] = {}  # of those, in the order in which they ended
        self._count = 0

    def admit(self, argv: tuple[str, ...], origin: Origin, *, has_terminal: bool, stays: bool) -> Job:
        """Take in one more command. *stays*: it may outlive its call, so a reader can make room for its output.

        Raises:
            TooManyCommands: so many run already.
        """
        if len(self._jobs) - len(self._ended) >= self.limit:
            raise TooManyCommands(self.limit)
        self._forget_oldest()
        self._count += 1
        blocks = stays and self.room.when_full == "block"
        job = Job(
            id=f"c{self._count}",
            argv=argv,
            origin=origin,
            spill=Spill(self.room, self._quota, self._limiter, blocks=blocks),
            has_terminal=has_terminal,
            on_end=self._take_end,
        )
        self._jobs[job.id] = job
        return job

    def find(self, command_id: str) -> Job:
        """The command of that id; raises CommandNotFound."""
        job = self._jobs.get(command_id)
        if job is None:
            raise CommandNotFound(command_id)
        return job

    def all(self) -> tuple[Job, ...]:
        """Every command that is remembered."""
        return tuple(self._jobs.values())

    def running(self) -> tuple[Job, ...]:
        """Those that have not ended."""
        return tuple(job for job in self._jobs.values() if job.running)

    def close(self) -> None:
        """Let go of all output; who still waits for a command learns that there is no more."""
        for job in self._jobs.values():
            job.spill.finish()
            job.started.set()
            job.done.set()
            job.spill.close()

    def _take_end(self, job: Job) -> None:
        self._ended[job.id] = job
        self._on_end(job)

    def _forget_oldest(self) -> None:
        """Forget what ended first, beyond those that are remembered; not what somebody is reading now."""
        while len(self._ended) >= REMEMBERED:
            oldest = next(iter(self._ended.values()))
            if oldest.spill.in_use:
                return
            oldest.spill.give_up()
            del self._ended[oldest.id], self._jobs[oldest.id]

    def _make_room(self, wanted: int) -> None:
        """Give up output of ended commands, the oldest first, until *wanted* bytes are free."""
        for job in self._ended.values():
            if wanted <= 0:
                return
            if not job.spill.in_use:
                wanted -= job.spill.size
                job.spill.give_up()
