"""Histories of clients that work on the same things while the broker is struck: one order explains all they were told.

The judge is `linearizable`, the promises are `historymodels`, the blows are those of `storm`. Each storm has a seed of
its own; what fails tells it, and HISTORIES_SEED=N tries it again, as far as the scheduler repeats itself.
"""

from __future__ import annotations

import os
import secrets
import signal

import attrs
import pytest
import trio

from tests.support import historymodels as model
from tests.support.linearizable import by_key
from tests.support.storm import LOGS, REGISTERS, Plan, World, judge, run_storm

pytestmark = [
    pytest.mark.histories,
    # The SDK's client leaves its streams to the collector when a call on it is cancelled.
    pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected:ResourceWarning"),
]

STORM_S = 300
"""A net: a storm takes half a minute on two idle cores."""
PLANS = {
    "all kinds of work and blows": {},
    "changes of one file": {
        "only": ("edit_register", "write_register", "upload_register"),
        "lives": (signal.SIGTERM,),
        "calls": 400,
    },
}


def new_seed() -> int:
    """The one that was asked for, or any."""
    return int(os.environ.get("HISTORIES_SEED", secrets.randbelow(1_000_000)))


@pytest.fixture(scope="module", params=PLANS)
def world(request: pytest.FixtureRequest) -> World:
    """What a storm left; whatever fails in it says which it was."""
    plan = Plan(seed=new_seed(), **PLANS[request.param])

    async def bounded() -> World:
        with trio.fail_after(STORM_S):
            return await run_storm(plan)

    return trio.run(bounded)


def test_one_order_explains_what_everybody_was_told(world: World) -> None:
    wrong = [str(violation) for violation in judge(world.ops)]
    assert not wrong, f"HISTORIES_SEED={world.plan.seed}\n" + "\n\n".join(wrong)


def test_every_call_has_an_answer_that_its_work_explains(world: World) -> None:
    assert world.odd == [], f"HISTORIES_SEED={world.plan.seed}"


def test_the_storm_was_one(world: World) -> None:
    """Enough was done, refused and left unknown that the judgement says something."""
    told, plan = world.told, world.plan
    assert min(told["edit_file"], told["edit_file FILE_CHANGED"] + told["edit_file FILE_EDIT_MISMATCH"]) >= 10, told
    assert sum(not op.known for op in world.ops) >= 10
    if not plan.only:
        for tool in ("write_file", "upload_file", "copy_path", "move_path", "delete_path", "kill_session", "SIGKILL"):
            assert told[tool], told


@pytest.mark.parametrize("key", [*REGISTERS, *LOGS])
def test_the_same_history_with_one_lie_is_refused(world: World, key: str) -> None:
    """A control: the judgement is no formality on a history of this size. It is about the end of the first life."""
    if world.plan.only:
        pytest.skip("these calls were of one file only")
    part = by_key(world.ops)[key]
    _, at, *_ = [at for at, op in enumerate(part) if op.who == "the disk"]
    seen = part[at].act
    lie = model.Entries((*seen.seen[:-1], "nobody's")) if isinstance(seen, model.Entries) else model.Read("nobody's")
    assert judge([*part[:at], attrs.evolve(part[at], act=lie), *part[at + 1 :]]) != []
