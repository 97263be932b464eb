"""The thread that makes the audit durable: a line is on the disk after SYNC_S seconds, plus what the disk takes.

A thread of its own, because a disk takes milliseconds for it and no record shall wait that long: many records share
one. So the loss of power may take the records of the last moments although effects of theirs are on the disk; the end
of the process takes nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

SYNC_S = 0.2
"""Between the first write that is not durable and the call that makes it so."""


class Syncer:
    """Makes descriptors durable that somebody else writes, and may close meanwhile."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        """Start the thread. *complain* is told once when the disk refuses."""
        self._complain = complain
        self._dirty: dict[tuple[int, int], int] = {}
        self._closing = False
        self._changed = threading.Condition()
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="audit sync", daemon=True)
        self._thread.start()

    def mark(self, fd: int) -> None:
        """Say that *fd* was written: once for many writes. Raises nothing; who cannot be synced is complained about."""
        with self._changed:
            try:
                found = os.fstat(fd)
                if (key := (found.st_dev, found.st_ino)) not in self._dirty:
                    self._dirty[key] = os.dup(fd)
                    self._changed.notify()
            except OSError as error:  # no descriptor to be had
                self._say(error)

    def close(self, bound_s: float) -> bool:
        """Make the rest durable and end the thread; False if the disk did not answer in time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(bound_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing)
                self._changed.wait_for(lambda: self._closing, SYNC_S)
                dirty, self._dirty = self._dirty, {}
                closing = self._closing
            for fd in dirty.values():
                self._sync(fd)
            if closing:
                return

    def _sync(self, fd: int) -> None:
        try:
            os.fdatasync(fd)
            self._failed = False
        except OSError as error:
            self._say(error)
        finally:
            os.close(fd)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._complain(f"records that were written may not survive the loss of power: {error.strerror}")
        self._failed = True
