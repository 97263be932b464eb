"""The thread that writes the audit, and how long others wait for it.

A disk can be frozen: then an append takes as long as that lasts, and no task of the broker may. So records go to a
thread, in order. Usually it has written before HANDOFF_S are over, and nobody notices; else what only ends or stops
something goes on, its record owed, and what needs its record first waits REQUIRE_S and is refused.

What is owed waits in memory, within the bounds of `logfile.py`, and is written as soon as there is room, if need be in
the room that the file of this run kept free. The end of the process takes what is owed with it; that file says so to
the next start.

Each record gets the id of the run and its number in it: numbers rise by one in the order of the log, and one that is
missing was lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from broker.audit.logfile import OWED_BYTES, OWED_LINES, AuditUnavailable, LogFile
from broker.audit.run import RunFile

HANDOFF_S = 0.1
"""What anybody waits for the thread, the one task that serves everybody included; while it is late, nobody does."""
REQUIRE_S = 5.0
"""What a call waits, alone, for the record without which it may not happen."""
RETRY_S = 1.0
"""Between two attempts to write what is owed while no record comes."""
CLOSE_S = 5.0
"""For the last records when the broker stops."""


@attrs.frozen
class Lines:
    """A record: its line in the log of events, and the one in the log of failures if it is one."""

    event: bytes
    error: bytes | None = None

    def __len__(self) -> int:
        """How many bytes it is."""
        return len(self.event) + len(self.error or b"")


@attrs.define(eq=False)
class _Errand:
    """Something for the thread. Who handed it over may wait, or withdraw it as long as it is not begun."""

    act: Callable[[], None]
    size_bytes: int = 0
    owed: bool = False
    """Whether it is a record that is owed until then; nothing else counts against OWED_LINES and OWED_BYTES."""
    missing: int = 0
    """Records before this one for which there was no room."""
    trouble: AuditUnavailable | None = None
    finished: bool = False
    withdrawn: bool = False
    wake: Callable[[], object] | None = None
    _done: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._done.acquire()

    def finish(self) -> None:
        self.finished = True
        self._done.release()
        if self.wake is not None:
            with suppress(trio.RunFinishedError):
                self.wake()

    def wait(self, bound_s: float) -> bool:
        """Wait for its end, blocking; whether it came."""
        return self._done.acquire(timeout=bound_s)


@attrs.define(eq=False, kw_only=True)
class Writer:
    """Owns the two logs, the file of the run and the thread.

    Methods are for whoever hands records over, except those with an underscore that the thread calls; what both sides
    touch are plain flags and counts of which each has one writer.
    """

    events: LogFile
    errors: LogFile
    run: RunFile
    run_id: str
    complain: Callable[[str], None]
    restored: Callable[[str, int, int], Lines]
    """The record of a trouble that is over: why, how many records were owed, how many lost."""
    on_idle: Callable[[], float | None] = lambda: None
    """Called now and then by the thread; seconds until it should be again, None: not before there is a record."""
    _errands: queue.SimpleQueue[_Errand | None] = attrs.field(factory=queue.SimpleQueue, init=False)
    _late: _Errand | None = attrs.field(default=None, init=False)
    _handed: int = attrs.field(default=0, init=False)
    _handed_bytes: int = attrs.field(default=0, init=False)
    _taken: int = attrs.field(default=0, init=False)
    _taken_bytes: int = attrs.field(default=0, init=False)
    _dropped: int = attrs.field(default=0, init=False)
    _missing: int = attrs.field(default=0, init=False)
    _silent: bool = attrs.field(default=False, init=False)
    _trouble: AuditUnavailable | None = attrs.field(default=None, init=False)
    _behind: int = attrs.field(default=0, init=False)
    _number: int = attrs.field(default=0, init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> bool:
        """Whether the last attempt to write failed, or has not ended yet."""
        return self._silent or self._trouble is not None

    @property
    def owed(self) -> int:
        """How many records wait to be written."""
        return self._handed - self._taken + self._kept

    @property
    def _kept(self) -> int:
        return max(self.events.owed_lines, self.errors.owed_lines)

    @property
    def lost(self) -> int:
        """For how many there was no room even to wait, since the start."""
        return self._dropped + self.events.lost_lines + self.errors.lost_lines

    def owe(self, lines: Lines) -> None:
        """Have *lines* written now, or as soon as it can be; what there is no room for is counted."""
        pending, pending_bytes = self._handed - self._taken, self._handed_bytes - self._taken_bytes
        if pending >= OWED_LINES or pending_bytes + len(lines) > OWED_BYTES:
            self._dropped += 1
            self._missing += 1
            return
        self._hand(lambda: self.owe_here(lines), len(lines), owed=True)

    async def require(self, lines: Lines) -> None:
        """Have *lines* written, and return when they are.

        Raises:
            AuditUnavailable: they are not, or the disk has not answered in time.
        Cancellation: they are not written, unless that was just being done.
        """
        errand = self._hand(lambda: self._require(lines))
        try:
            if not errand.finished:
                await self._wait(errand)
            if errand.trouble is not None:
                raise errand.trouble
        except AuditUnavailable as error:
            error.owed_records, error.lost_records = self.owed, self.lost
            raise

    def owe_here(self, lines: Lines) -> None:
        """As `owe`, for the thread itself: `on_idle`, and what was handed over."""
        self._number += 1
        self._keep(self._stamped(lines, self._number))
        self._settle()

    def settle(self) -> None:
        """Have everything written that is owed, as far as it can be."""
        self._hand(self._settle)

    def reopen(self) -> None:
        """Have both files opened anew."""
        self._hand(self._reopen)

    def nudge(self) -> None:
        """Have `on_idle` asked again; while the thread is late, it will ask anyway."""
        if self._late is None or self._late.finished:
            self._hand(lambda: None)

    def close(self) -> bool:
        """Write what is owed as far as it can be in CLOSE_S, and end the thread; whether it has ended."""
        self._hand(self._settle)
        self._errands.put(None)
        self._thread.join(CLOSE_S)
        ended = not self._thread.is_alive()
        if owed := self.owed:
            self.complain(f"{self.events.path}: {owed} records are owed and lost with this broker")
        if ended:
            self.run.close(remove=not owed)
            self.events.close()
            self.errors.close()
        return ended

    def _hand(self, act: Callable[[], None], size_bytes: int = 0, *, owed: bool = False) -> _Errand:
        """Give *act* to the thread and wait for its end, unless the thread is late anyway."""
        errand = _Errand(act, size_bytes, owed, self._missing)
        self._missing = 0
        self._handed += owed
        self._handed_bytes += size_bytes
        self._errands.put(errand)
        if (self._late is None or self._late.finished) and not errand.wait(HANDOFF_S):
            self._late = errand
        return errand

    async def _wait(self, errand: _Errand) -> None:
        told, token = trio.Event(), trio.lowlevel.current_trio_token()
        errand.wake = lambda: token.run_sync_soon(told.set)
        if errand.finished:  # before it knew whom to wake
            return
        try:
            with trio.move_on_after(REQUIRE_S if self._thread.is_alive() else 0):
                await told.wait()
        finally:
            errand.withdrawn = not errand.finished
            if errand.withdrawn:
                errand.act = _nothing  # it waits for the thread, however long; its lines need not be kept
        if errand.withdrawn:
            why = f"the disk has not taken a record for {REQUIRE_S:g} seconds"
            if not self._silent:
                self._silent = True
                self._lament(why)
            raise AuditUnavailable(self.events.path, why)

    def _work(self) -> None:
        while (errand := self._next()) is not None:
            self._number += errand.missing
            self._behind += self._silent and errand.owed
            if not errand.withdrawn:
                try:
                    errand.act()
                except AuditUnavailable as error:
                    errand.trouble = error
            self._taken_bytes += errand.size_bytes
            self._taken += errand.owed
            self.run.tell(self.owed if self.broken else 0, self.lost)
            errand.finish()

    def _next(self) -> _Errand | None:
        while True:
            due_s = self.on_idle()
            if self.broken or not self.run.whole:
                due_s = min(due_s or RETRY_S, RETRY_S)
            with suppress(queue.Empty):
                return self._errands.get(timeout=due_s)
            if self.broken or self.owed:
                self._settle()
            self.run.refill()

    def _keep(self, lines: Lines) -> None:
        self.events.owe(lines.event)
        if lines.error is not None:
            self.errors.owe(lines.error)

    def _require(self, lines: Lines) -> None:
        """Write *lines*, now or never, and none of it into the room for what is owed."""
        try:
            self.events.settle()
            self.errors.settle()
            self._require_room()
            stamped = self._stamped(lines, self._number + 1)
            self.events.append(stamped.event)
            self._number += 1
            if stamped.error is not None:
                self.errors.append(stamped.error)
        except AuditUnavailable as error:
            self._note(error)
            raise
        self._note(None)

    def _require_room(self) -> None:
        if not self.run.refill():
            why = "its disk is full; what little room is left is for the records of what ends sessions or deletes files"
            raise AuditUnavailable(self.events.path, why, full=True)

    def _settle(self) -> None:
        trouble, owed = None, self._kept
        for log in (self.events, self.errors):
            try:
                log.settle()
            except AuditUnavailable as error:
                trouble = error
        if trouble is not None:
            self._behind = max(self._behind, owed)
        if owed or self._trouble is None:  # else nothing was tried, and the log is as it was
            self._note(trouble)

    def _reopen(self) -> None:
        trouble = None
        for log in (self.events, self.errors):
            try:
                log.open()
            except AuditUnavailable as error:
                trouble = error
        self._note(trouble)

    def _note(self, trouble: AuditUnavailable | None) -> None:
        was = self._trouble
        self._trouble = trouble
        if trouble is not None:
            if was is None:
                self._lament(trouble.why, trouble)
        elif was is not None or (self._silent and self._errands.empty()):
            why = was.why if was else "the disk did not answer"
            behind, self._behind, self._silent = self._behind, 0, False
            self.complain(
                f"{self.events.path}: can be written again, {behind} records that were owed are; "
                f"records lost since the start: {self.lost}"
            )
            if behind or self.lost:
                self.owe_here(self.restored(why, behind, self.lost))

    def _lament(self, why: str, trouble: AuditUnavailable | None = None) -> None:
        path = trouble.path if trouble else self.events.path
        self.complain(
            f"{path}: {why}; calls are refused until it can be written, but for those that stop or free something: "
            "they owe their records"
        )

    def _stamped(self, lines: Lines, number: int) -> Lines:
        end = b', "run": "%s", "seq": %d}\n' % (self.run_id.encode("ascii"), number)
        return Lines(lines.event[:-2] + end, None if lines.error is None else lines.error[:-2] + end)


def _nothing() -> None:
    """Stands for what was withdrawn."""


def uptime_ms() -> int:
    """Milliseconds since the machine started, sleep included: one clock for all brokers of it, which nobody sets."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
