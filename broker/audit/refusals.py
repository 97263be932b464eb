"""Repeated refusals, counted instead of repeated: else whoever is refused could fill the audit with it.

The first IN_FULL of one caller with one error code are recorded as they come; the others of an interval become one
record at its end, whether anybody calls then or not. Callers beyond CALLERS at once are counted together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import attrs

from broker.audit.events import Event, EventType

INTERVAL_S = 60.0
IN_FULL = 20
CALLERS = 256
"""Whose refusals are told apart; a principal is not made up by a client, so there are few."""
NAMED_TOOLS = 8
"""Of one count: a client may make tool names up."""
TOOL_CHARACTERS = 64
"""Of such a name; a longer one is counted among the others, or it would be kept for an interval and written whole."""
OTHERS = "others"


@attrs.define
class _Count:
    ends_at: float
    seen: int = 0
    tools: dict[str, int] = attrs.field(factory=dict)

    def note(self, tool: str) -> None:
        self.seen += 1
        if self.seen > IN_FULL:
            known = tool in self.tools or len(self.tools) < NAMED_TOOLS
            name = tool if known and len(tool) <= TOOL_CHARACTERS else OTHERS
            self.tools[name] = self.tools.get(name, 0) + 1


@attrs.define(eq=False)
class Refusals:
    """The counts of this interval. For one who counts and another who asks what is due."""

    _clock: Callable[[], float] = time.monotonic
    _counts: dict[tuple[str, str], _Count] = attrs.field(factory=dict, init=False)
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def in_full(self, event: Event) -> bool:
        """Count a refusal; whether it is recorded itself."""
        now = self._clock()
        key = (event.principal or "", event.error_code or "")
        with self._lock:
            if key not in self._counts and len(self._counts) >= CALLERS:
                key = (OTHERS, "")
            count = self._counts.get(key)
            if count is None or (count.seen <= IN_FULL and count.ends_at <= now):
                count = self._counts[key] = _Count(now + INTERVAL_S)
            count.note(event.tool_name or event.event_type.value)
            return count.seen <= IN_FULL

    def due(self, *, all_of_them: bool = False) -> tuple[Event, ...]:
        """Return the refusals to be recorded now; *all_of_them*: of intervals that are not over, too."""
        now = self._clock()
        with self._lock:
            over = [key for key, count in self._counts.items() if all_of_them or count.ends_at <= now]
            return tuple(self._recorded(over))

    def next_s(self) -> float | None:
        """Seconds until something is due; None: nothing is counted."""
        with self._lock:
            ends = [count.ends_at for count in self._counts.values() if count.seen > IN_FULL]
        return max(0.0, min(ends) - self._clock()) if ends else None

    def _recorded(self, keys: list[tuple[str, str]]) -> Iterator[Event]:
        for key in keys:
            count = self._counts.pop(key)
            if (more := count.seen - IN_FULL) > 0:
                principal, code = key
                yield Event(
                    event_type=EventType.REFUSALS_COUNTED,
                    principal=principal or None,
                    error=f"{more} more refusals like those before it, of one caller within {INTERVAL_S:g} seconds",
                    error_code=code or None,
                    details={"refused": more, "tools": dict(count.tools), "interval_s": INTERVAL_S},
                )
