"""Marked rows of the attack corpus in a guest, whose kernel has what this one may lack: control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.escape.attack import load_catalogue
from tests.escape.corpus import Run, run_corpus
from tests.escape.report import agree_with, as_json

COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "isolation").glob("*.json"))
ATTACKS = tuple(attack for attack in load_catalogue() if attack.guest)
RUN_S = 800
"""A net: an emulated guest takes a few minutes."""

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def corpus() -> Run:
    async def bounded() -> Run:
        with trio.fail_after(RUN_S):
            return await run_corpus(ATTACKS, lambda _: None)

    return trio.run(bounded)


def test_no_attack_gets_through_a_layer_that_claims_to_hold(corpus: Run) -> None:
    wrong = {
        result.attack.name: result.shipped
        for result in corpus.results
        if result.shipped.state in ("finding", "unclaimed")
    }
    assert wrong == {}


def test_control_groups_hold_what_nothing_else_does(corpus: Run) -> None:
    states = {result.attack.name: result.shipped for result in corpus.results}
    for name in ("more processes than a command may have", "more memory in several processes"):
        assert states[name].state == "held", states[name]


def test_this_run_says_what_the_committed_table_says(corpus: Run) -> None:
    agree_with(COMMITTED, as_json(corpus, ""))
