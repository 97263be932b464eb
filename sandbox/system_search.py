"""Find what the rules block in the system's own directories, once for all sessions. Broker side.

These hold a hundred thousand names that no session changes, so they are looked through once, in a thread, and not at
each birth.
"""

from __future__ import annotations

import os
import re

import trio

from sandbox.plan import Names
from sandbox.system import SYSTEM_PATHS

_NEVER = Names()
_KERNEL_TREES = frozenset({"/proc", "/sys"})  # nobody keeps files there


class SystemSearch:
    """What was found, by the names that were looked for."""

    def __init__(self, roots: tuple[str, ...] = SYSTEM_PATHS) -> None:
        """Look for nothing yet."""
        self._roots = tuple(root for root in roots if root not in _KERNEL_TREES)
        self._lock = trio.Lock()
        self._of = _NEVER
        self._found: tuple[str, ...] = ()

    async def found(self, blocked: Names, last_names: str) -> tuple[str, ...]:
        """Return every blocked path, without what lies beneath one. The first call takes some tenths of a second.

        *last_names*: what a name must match to be blocked in a directory that is not (see `plan.Closed`).

        Cancellation: the thread is left to itself, and the next call asks anew.
        """
        async with self._lock:
            if blocked != self._of:
                self._found = await trio.to_thread.run_sync(
                    _look, self._roots, blocked, last_names, abandon_on_cancel=True
                )
                self._of = blocked
            return self._found


def _look(roots: tuple[str, ...], blocked: Names, last_names: str) -> tuple[str, ...]:
    from_root, anywhere = re.compile(blocked.from_root).match, re.compile(blocked.anywhere).search
    may_be_blocked = re.compile(last_names).match
    found = []
    pending = [root for root in roots if os.path.isdir(root) and not os.path.islink(root)]
    while pending:
        for path, name, is_directory in _entries(pending.pop()):
            if may_be_blocked(f"/{name}") and (anywhere(path) or from_root(path)):
                found.append(path)
            elif is_directory:
                pending.append(path)
    return tuple(found)


def _entries(directory: str) -> list[tuple[str, str, bool]]:
    try:
        with os.scandir(directory) as entries:
            return [(entry.path, entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:  # not ours to look into, and so not the session's
        return []
