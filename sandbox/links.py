"""Files with several names, and whether the rules permit all of them (child side, stdlib only).

As the broker asks it of a single file (`broker/hardlinks.py`), here for a whole walk: the roots are looked through
once, when the first such file is met, and all its names are remembered. A name that was not found counts against
the file.
"""

from __future__ import annotations

import os
from collections import deque

TYPE_CHECKING = False  # importing typing costs each session half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox.job import Job
    from sandbox.walk import Rules

SEARCHED_ENTRIES = 200_000


class Links:
    """The names of all files beneath the roots."""

    def __init__(self, job: Job, rules: Rules, roots: Iterable[str]) -> None:
        self._job = job
        self._rules = rules
        self._roots = tuple(dict.fromkeys(roots))
        self._names: dict[tuple[int, int], set[str]] | None = None

    def are_innocent(self, status: os.stat_result, path: str) -> bool:
        """Whether every name of the file is known and permitted."""
        if status.st_nlink < 2:
            return True
        if self._names is None:
            self._names = self._look()
        names = self._names.get((status.st_dev, status.st_ino), set()) | {path}
        return len(names) >= status.st_nlink and all(map(self._rules.permit, names))

    def _look(self) -> dict[tuple[int, int], set[str]]:
        names: dict[tuple[int, int], set[str]] = {}
        pending, seen, looked_at = deque(self._roots), set[tuple[int, int]](), 0
        while pending and looked_at < SEARCHED_ENTRIES:
            directory = pending.popleft()
            self._job.tick()
            try:
                facts = os.stat(directory, follow_symlinks=False)
                if (facts.st_dev, facts.st_ino) in seen:
                    continue
                seen.add((facts.st_dev, facts.st_ino))
                with os.scandir(directory) as entries:
                    for entry in entries:
                        looked_at += 1
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            names.setdefault((facts.st_dev, entry.inode()), set()).add(entry.path)
            except OSError:
                continue  # gone, or not ours to look into: its names stay unknown, which counts against a file
        return names
