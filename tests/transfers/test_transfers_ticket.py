"""The right to one transfer: one at a time, one success, an end in time. In the time of a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from transfers.refusals import TransferBusy, TransferOver
from transfers.ticket import Ticket, TicketState

TTL_S = 10.0
ENDS = (TicketState.COMPLETE, TicketState.FAILED, TicketState.CANCELLED)


def ticket(now: float = 0.0) -> Ticket:
    return Ticket(transfer_id="t", ttl_s=TTL_S, expires_at=now + TTL_S)


def test_a_url_expires_when_nobody_used_it_in_time() -> None:
    one = ticket()
    assert not one.is_due(TTL_S - 0.001)
    assert one.is_due(TTL_S)
    with pytest.raises(TransferOver, match="expired"):
        one.take(0)


def test_asking_too_late_is_found_out_without_any_sweep() -> None:
    with pytest.raises(TransferOver):
        ticket().take(TTL_S)


def test_who_began_in_time_may_finish_and_a_cut_gives_the_time_again() -> None:
    one = ticket()
    one.take(TTL_S - 1)
    assert not one.is_due(TTL_S * 5)
    one.put_back(TTL_S * 5)
    one.take(TTL_S * 6 - 1)


def test_only_the_first_end_counts() -> None:
    one = ticket()
    one.end(TicketState.FAILED, "it broke")
    one.end(TicketState.COMPLETE)
    with pytest.raises(TransferOver, match="it broke"):
        one.take(0)


class AnyUse(RuleBasedStateMachine):
    """Takes, gives back, ends and lets time pass in any order, beside a model that is three plain values."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ticket = ticket()
        self.taken = False
        self.over = False
        self.due_at = TTL_S

    @rule(seconds=st.floats(0, 2 * TTL_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def take(self) -> None:
        expired = not self.taken and self.now >= self.due_at
        if self.over or expired:
            self.over = True
            with pytest.raises(TransferOver):
                self.ticket.take(self.now)
        elif self.taken:
            with pytest.raises(TransferBusy):
                self.ticket.take(self.now)
        else:
            self.ticket.take(self.now)
            self.taken = True

    @precondition(lambda self: self.taken)
    @rule()
    def put_back(self) -> None:
        self.ticket.put_back(self.now)
        self.taken = False
        if not self.over:
            self.due_at = self.now + TTL_S

    @rule(state=st.sampled_from(ENDS))
    def end(self, state: TicketState) -> None:
        self.ticket.end(state)
        self.over = True

    @rule()
    def sweep(self) -> None:
        expires = not self.over and not self.taken and self.now >= self.due_at
        assert self.ticket.is_due(self.now) == expires
        self.over = self.over or expires

    @invariant()
    def says_what_it_is(self) -> None:
        assert self.ticket.is_over == self.over
        assert (self.ticket.state is TicketState.ACTIVE) == (self.taken and not self.over)


TestAnyUse = AnyUse.TestCase
