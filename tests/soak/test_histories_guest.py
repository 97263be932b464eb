"""A short storm in a guest: another kernel, control groups, root and a plain user, and a machine that is slow."""

from __future__ import annotations

import signal

import pytest

from tests.soak.test_histories import new_seed
from tests.support import live
from tests.support.storm import Plan, judge, run_storm

pytestmark = [
    pytest.mark.guest,
    pytest.mark.filterwarnings(
        "ignore:Async generator .* was garbage collected:ResourceWarning"
    ),  # of the SDK's client
]

STEPS = ("write_register", "upload_register", "read_register", "append_entry", "read_log", "put_name", "move_name")
STEPS += ("look_at_name", "create_slot", "use_slot", "kill_slot", "kill_some_process")


@pytest.mark.bounded(400)  # a net: emulated, it takes about a minute
async def test_one_order_explains_what_clients_of_a_struck_broker_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "START_BOUND_S", 120)
    plan = Plan(seed=new_seed(), clients=3, calls=60, lives=(signal.SIGKILL,), only=STEPS, answer_s=100)
    world = await run_storm(plan)
    assert world.told["write_file"], world.told
    assert world.odd == [], f"HISTORIES_SEED={plan.seed}"
    wrong = [str(violation) for violation in judge(world.ops)]
    assert not wrong, f"HISTORIES_SEED={plan.seed}\n" + "\n\n".join(wrong)
