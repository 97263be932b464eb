"""Refusals keep what they were told, for `errors.py`, and say it to a person, without what a terminal obeys."""

from __future__ import annotations

import inspect

import pytest

from transfers import refusals
from transfers.refusals import TransferError, TransferOver

KINDS = [kind for _, kind in inspect.getmembers(refusals, inspect.isclass) if kind is not TransferError]
SHOWN_QUOTED = {"path", "opened_for", "transfer_id"}
"""What clients and their disks call things: it may hold any character."""


def told(kind: type[TransferError]) -> dict[str, object]:
    """A value of its own for each thing that *kind* is told."""
    texts = {"str", "str | None"}
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: f"the\x1b{p.name}" if p.annotation in texts else 1000 + n for n, p in enumerate(parameters)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_keeps_what_it_was_told_and_says_all_of_it(kind: type[TransferError]) -> None:
    arguments = told(kind)
    refusal = kind(**arguments)
    assert {name: getattr(refusal, name) for name in arguments} == arguments
    assert str(refusal)
    for name, value in arguments.items():
        assert (repr(value) if name in SHOWN_QUOTED else str(value)) in str(refusal)
        assert name not in SHOWN_QUOTED or str(value) not in str(refusal)


def test_a_transfer_that_is_over_says_why_only_if_there_is_more_to_say() -> None:
    assert str(TransferOver("t", "expired", "")) == "transfer 't' is expired; open another one"
    assert str(TransferOver("t", "lost", "no disk")) == "transfer 't' is lost (no disk); open another one"
