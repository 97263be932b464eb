"""Who goes first when the machine runs out of something: what sessions run, never the broker that answers for all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from live import COMMANDS, LiveBroker, broker_in, connect, live_folder, new_session, run, write_config
from live_plain_user import PlainUser, plain_user

from sandbox.prctl import FIRST_TO_GO

POLICY = {"allowed_commands": {**COMMANDS, "python3": {"executable": "/usr/bin/python3"}}}
TAKE_BACK = """
import sys
with open("/proc/self/oom_score_adj", "r+b", buffering=0) as score:
    score.write(sys.argv[1].encode())
    score.write(b"0")
    score.seek(0)
    print(score.read().decode())
"""
as_each = pytest.mark.parametrize("who", ["root", "user"])
pytestmark = [pytest.mark.bounded(90), pytest.mark.long, pytest.mark.once]  # each starts a broker


@contextmanager
def scene(who: str, *, namespaces: bool) -> Iterator[tuple[LiveBroker, PlainUser | None]]:
    """A broker of root or of a plain user, who is given too."""
    with live_folder() as base:
        write_config(base, {"sandbox": {"enable_namespaces": namespaces}}, POLICY)
        user = plain_user(base) if who == "user" else None
        words = {} if user is None else {"python": user.python, "environment": user.environment}
        with broker_in(base, **words) as broker:
            yield broker, user


def score(process: psutil.Process) -> int:
    with open(f"/proc/{process.pid}/oom_score_adj") as file:
        return int(file.read())


@as_each
@pytest.mark.parametrize("namespaces", [True, False])
async def test_sessions_go_before_the_broker_and_cannot_change_that(who: str, *, namespaces: bool) -> None:
    with scene(who, namespaces=namespaces) as (broker, user):
        python = ("/usr/bin/python3",) if user is None else user.python
        environment = dict(os.environ) if user is None else dict(user.environment)
        control = subprocess.run(
            [*python, "-c", TAKE_BACK, "500"], env=environment, capture_output=True, text=True, check=False
        )
        assert control.stdout == "0\n\n", "outside it can be taken back"
        async with connect(broker) as client:
            session_id = await new_session(client)
            done = await run(client, session_id, "python3", "-c", "print(open('/proc/self/oom_score_adj').read())")
            assert int(done["stdout"]) == FIRST_TO_GO
            done = await run(client, session_id, "python3", "-c", TAKE_BACK, "500")
            assert done["exit_code"] == 1, done.data
            assert {score(process) for process in broker.family()} == {FIRST_TO_GO}
            assert score(psutil.Process(broker.process.pid)) < FIRST_TO_GO
