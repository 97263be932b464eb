"""The right to one transfer over a URL, as a machine: one user at a time, one success, and an end in time. No IO.

    OPEN --take--> ACTIVE --put_back--> OPEN                  (cut off: it may go on, and has its whole time again)
    OPEN, ACTIVE --end--> COMPLETE | FAILED | CANCELLED       (sticky)
    OPEN --is_due--> EXPIRED                                  (sticky; who is at work when the time comes may finish)

A second request at the same time is refused, not queued: the first one's bytes are on their way, and a queue would let
a slow client hold the door for all others.
"""

from __future__ import annotations

import enum
from types import MappingProxyType

import attrs

from transfers.refusals import TransferBusy, TransferOver


class TicketState(enum.Enum):
    """The state of a transfer, as a client reads it."""

    OPEN = "open"
    ACTIVE = "active"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_REASONS = MappingProxyType(
    {
        TicketState.COMPLETE: "a URL is for one transfer",
        TicketState.EXPIRED: "nobody used its URL in time",
    }
)


@attrs.define(eq=False, kw_only=True)
class Ticket:
    """The right to transfer *transfer_id*; *expires_at* is a moment of the clock that *now* comes from, in seconds."""

    transfer_id: str
    ttl_s: float
    expires_at: float
    state: TicketState = attrs.field(default=TicketState.OPEN, init=False)
    why: str = attrs.field(default="", init=False)

    @property
    def is_over(self) -> bool:
        """Tell whether nothing can be transferred any more."""
        return self.state not in {TicketState.OPEN, TicketState.ACTIVE}

    def take(self, now: float) -> None:
        """Begin to transfer.

        Raises:
            TransferBusy: somebody else does.
            TransferOver: it has ended, or its time has.
        """
        self.is_due(now)
        if self.is_over:
            raise TransferOver(self.transfer_id, self.state.value, self.why or _REASONS.get(self.state, ""))
        if self.state is TicketState.ACTIVE:
            raise TransferBusy(self.transfer_id)
        self.state = TicketState.ACTIVE

    def put_back(self, now: float) -> None:
        """Stop transferring without an end; harmless after one."""
        if self.state is TicketState.ACTIVE:
            self.state = TicketState.OPEN
            self.expires_at = now + self.ttl_s

    def end(self, state: TicketState, why: str = "") -> None:
        """Say how it ended; only the first end counts."""
        if not self.is_over:
            self.state = state
            self.why = why

    def is_due(self, now: float) -> bool:
        """Expire if the time is over and nobody is at work; return whether it expired now."""
        if self.state is not TicketState.OPEN or now < self.expires_at:
            return False
        self.state = TicketState.EXPIRED
        return True
