"""Find what the rules block in the system's own directories, once for all sessions. Outside the walls.

These hold a hundred thousand names that no session changes, so they are looked through once, in a thread, and not at
each birth. On a slow file system that takes minutes: a birth waits a moment for the end, takes what is found by then,
and its session says so. Where administrators keep their own files is looked at first.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress

import attrs
import trio

from sandbox.plan.plan import NEVER, Names
from sandbox.plan.walls import SYSTEM_PATHS
from sandbox.threads import run_in_thread

WAIT_S = 2.0
"""Seconds that a birth waits for the end of the look: it takes some tenths of one where the disk is near."""
_FIRST = ("/etc", "/usr/local")
_KERNEL_TREES = frozenset({"/proc", "/sys"})  # nobody keeps files there


@attrs.define(eq=False)
class _Look:
    """One look; what it found so far can be read at any time."""

    blocked: Names
    last_names: str
    paths: dict[str, None] = attrs.field(factory=dict, init=False)
    done: trio.Event = attrs.field(factory=trio.Event, init=False)
    _stop: threading.Event = attrs.field(factory=threading.Event, init=False)

    async def run(self, roots: tuple[str, ...]) -> None:
        """Look through *roots* in a thread; without one, `done` stays away, and the next birth begins another look.

        Cancellation: it ends with the directory that it is in.
        """
        try:
            with suppress(OSError):  # there is no thread
                await run_in_thread(self._walk, roots, abandon_on_cancel=True)
                self.done.set()
        finally:
            self._stop.set()

    @property
    def given_up(self) -> bool:
        """Tell whether it ended before it had looked at everything."""
        return self._stop.is_set() and not self.done.is_set()

    def _walk(self, roots: tuple[str, ...]) -> None:
        from_root, anywhere = re.compile(self.blocked.from_root).match, re.compile(self.blocked.anywhere).search
        may_be_blocked = re.compile(self.last_names).match
        pending = [root for root in reversed(roots) if os.path.isdir(root) and not os.path.islink(root)]
        while pending and not self._stop.is_set():
            for path, name, is_directory in _entries(pending.pop()):
                if may_be_blocked(f"/{name}") and (anywhere(path) or from_root(path)):
                    self.paths[path] = None
                elif is_directory and path not in _FIRST:
                    pending.append(path)


class SystemSearch:
    """Search for blocked paths in the system's directories, by the names that were asked for last."""

    def __init__(self, nursery: trio.Nursery, roots: tuple[str, ...] = SYSTEM_PATHS) -> None:
        """Look for nothing yet; looks end with *nursery*."""
        self._nursery = nursery
        others = (root for root in roots if root not in _KERNEL_TREES and root not in _FIRST)
        self._roots = (*_FIRST, *others)
        self._last: _Look | None = None

    def begin(self, blocked: Names, last_names: str) -> _Look | None:
        """Begin to look, if it is for something else than last time; None: there is nothing to look for.

        Args:
            blocked: the names. Those that begin somewhere are asked for at each birth.
            last_names: what a name must match to be blocked in a directory that is not (see `plan.ClosedPaths`).
        """
        if blocked.anywhere == NEVER:
            return None
        last = self._last
        if last is None or last.given_up or (last.blocked, last.last_names) != (blocked, last_names):
            self._last = _Look(blocked, last_names)
            self._nursery.start_soon(self._last.run, self._roots)
        return self._last

    async def found(self, blocked: Names, last_names: str) -> tuple[tuple[str, ...], bool]:
        """Return every blocked path found, without what lies beneath one, and whether all was looked at.

        Waits WAIT_S seconds at most.
        """
        look = self.begin(blocked, last_names)
        if look is None:
            return (), True
        with trio.move_on_after(WAIT_S):
            await look.done.wait()
        return tuple(look.paths), look.done.is_set()


def _entries(directory: str) -> list[tuple[str, str, bool]]:
    try:
        with os.scandir(directory) as entries:
            return [(entry.path, entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:  # not ours to look into, and so not the session's
        return []
