"""Looks for what a session's commands left behind: names that the rules close and that were not there at its birth.

After commands, never before an answer: the answer is out before a look begins. Looks take turns with rests that are
much longer, so that a session of many commands spends a small part of one processor on them; what ends meanwhile is
looked after together. A session without commands costs nothing. Once more at the end of the session, if a command ended
since, and not for long; what a process that is still there then does afterwards is not seen.

Which names they are and what is not found: `sandbox/inside/worker/aftermath.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import attrs
import trio

from broker.session.commands import SessionCommand
from sandbox.errors import SpawnFailed
from sandbox.files.errors import FileError
from sandbox.files.trees import AFTERMATH, TreeWork

if TYPE_CHECKING:
    from sandbox.protocol.files import FindClosedNames

REST_S = 0.2
"""Before each look: what a client asks next comes first, and several commands get one look."""
RESTS = 19
"""A look is followed by a rest of so many times its length: it has at most a twentieth of the time."""
LOOK_S = 2.0
LAST_LOOK_S = 0.5
STOP_BOUND_S = 0.5
"""For a worker that looks for the last time to say what it found."""
MAX_FOUND = 1000
"""Of one look."""
MAX_TOLD = 10_000
"""Of one session: nobody makes so many by mistake, and there is no end to those that can be made."""


@attrs.frozen(kw_only=True)
class Appeared:
    """Finds of one look that were not told before, programs first. `stopped`: why it did not come to its end."""

    paths: tuple[str, ...]
    aside: tuple[str, ...]
    """Those of them that have another name now, which git does not obey."""
    stopped: str


@attrs.frozen(kw_only=True)
class Listeners:
    """Callbacks: at the end of each command, and for what was found after the one that ended last."""

    on_end: Callable[[SessionCommand], None]
    on_appeared: Callable[[SessionCommand, Appeared], None]


@attrs.define(eq=False)
class Aftermath:
    """The looks of one session."""

    _listeners: Listeners
    _told: dict[str, None] = attrs.field(factory=dict, init=False)
    _told_of_stop: bool = attrs.field(default=False, init=False)
    _last: SessionCommand | None = attrs.field(default=None, init=False)
    """The command that ended last, until a look that began after that is over."""
    _due: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def names(self) -> tuple[str, ...]:
        """All that was found so far, the earliest first."""
        return tuple(self._told)

    def command_ended(self, command: SessionCommand) -> None:
        """Pass the end of a command on, and have a look after it."""
        self._listeners.on_end(command)
        if isinstance(command.failure, SpawnFailed):  # nothing of it ran, so nothing is of its making
            return
        self._last = command
        self._due.set()

    async def run(self, trees: TreeWork, working_dir: Callable[[], str]) -> None:
        """Look when a look is due, for ever."""
        rest_s = REST_S
        while True:
            await self._due.wait()
            await trio.sleep(rest_s)
            began_s = trio.current_time()
            await self._look(trees, working_dir(), LOOK_S)
            rest_s = max(REST_S, RESTS * (trio.current_time() - began_s))

    async def look_at_the_end(self, trees: TreeWork, working_dir: str) -> None:
        """Look once more if a command ended since the last look began.

        Cancellation: what the look had not found by then is told as one that did not come to its end. Without it, it
        takes about LAST_LOOK_S seconds, and at most LAST_LOOK_S + STOP_BOUND_S where the owner shields it for so long.
        """
        if self._last is None:
            return
        try:
            await self._look(trees, working_dir, LAST_LOOK_S)
        except trio.Cancelled:
            if self._last is not None:
                self._take(self._last, [], "time")
            raise

    async def _look(self, trees: TreeWork, working_dir: str, timeout_s: float) -> None:
        self._due = trio.Event()
        command = self._last
        if command is None or len(self._told) >= MAX_TOLD:
            self._last = None
            return
        spec: FindClosedNames = {"first": working_dir, "max_items": MAX_FOUND}
        try:
            work = await trees.run(AFTERMATH, working_dir, spec, (), timeout_s=timeout_s)
        except FileError as fault:  # its worker was ended, or has no process to be
            self._take(command, [], str(fault))
        else:
            self._take(command, work.items, work.stopped)
        if self._last is command:
            self._last = None

    def _take(self, command: SessionCommand, found: Iterable[tuple[str, bool, str]], stopped: str) -> None:
        """Tell what is new of what was found, and once in a session that a look did not come to its end."""
        # What was set aside may come again, and that is new.
        fresh = {path: (program, aside) for path, program, aside in found if aside or path not in self._told}
        if fresh or (stopped and not self._told_of_stop):
            self._told_of_stop = self._told_of_stop or bool(stopped)
            self._told.update(dict.fromkeys(fresh))
            # A record shows so many: who plants a program cannot hide it behind names that run nothing.
            paths = sorted(fresh, key=lambda path: not fresh[path][0])
            aside = tuple(path for path in paths if fresh[path][1])
            self._listeners.on_appeared(command, Appeared(paths=tuple(paths), aside=aside, stopped=stopped))
