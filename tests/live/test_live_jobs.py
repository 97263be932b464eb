"""Commands as jobs, for a broker that a plain user started: over HTTP, with streams, input, a terminal and an end."""

from __future__ import annotations

import os
from typing import Any

import attrs
import pytest
import trio
from mcp.client.client import Client

from tests.sandbox.init.test_sandbox_births import survivors
from tests.support.live import MODERN, broker_in, connect, live_folder, new_session, ok, write_config
from tests.support.live_plain_user import plain_user

pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),  # the legacy client's, not ours
    pytest.mark.long,
]

PYTHON = {"allowed_commands": {"python3": {"executable": "/usr/bin/python3", "max_args": 10}}}
PROMPT = "import os; print(input('name? '), os.get_terminal_size().columns, os.getuid())"


@attrs.frozen
class Agent:
    """A client in its session."""

    client: Client
    session_id: str

    async def do(self, tool: str, **arguments: Any) -> Any:
        return await ok(self.client, tool, session_id=self.session_id, **arguments)

    async def start(self, script: str, **arguments: Any) -> str:
        begun = await self.do("execute_command", argv=["python3", "-c", script], background=True, **arguments)
        assert begun["running"] is True
        return str(begun["command_id"])

    async def hear(self, command_id: str, text: str) -> None:
        heard, cursor = "", 0
        while text not in heard:
            page = await self.do("read_output", command_id=command_id, cursor=cursor, wait_seconds=20)
            assert page["data"] or page["running"], heard
            heard, cursor = heard + page["data"], page["next_cursor"]


@pytest.mark.bounded(90)  # a broker that may write no bytecode starts slowly
async def test_jobs_work_for_a_broker_of_a_plain_user() -> None:
    token = f"plain-{os.getpid()}"
    with live_folder() as base:
        write_config(base, policy=PYTHON)
        user = plain_user(base)
        with broker_in(base, python=user.python, environment=user.environment) as broker:
            async with connect(broker, MODERN) as client:
                agent = Agent(client, await new_session(client))
                await _answers_a_prompt(agent)
                await _ends_a_tree(agent, token)
                left = await agent.start(f"import signal; print('up', flush=True); signal.pause()  # {token}")
                await agent.hear(left, "up")
                told = await agent.do("kill_session")
                assert told["commands_ended"] == [left]
            assert survivors(token) == []


async def _answers_a_prompt(agent: Agent) -> None:
    command_id = await agent.start(PROMPT, terminal={"rows": 30, "columns": 99})
    await agent.hear(command_id, "name? ")
    await agent.do("resize_terminal", command_id=command_id, rows=10, columns=44)
    await agent.do("write_stdin", command_id=command_id, data="Bob\n")
    told = await agent.do("wait_command", command_id=command_id)
    assert "Bob 44 " in told["stdout"]
    assert " 0\r\n" not in told["stdout"]  # never root
    found = await agent.do("search_output", command_id=command_id, pattern="Bob 44")
    assert len(found["matches"]) == 1


async def _ends_a_tree(agent: Agent, token: str) -> None:
    script = (
        "import os, signal\n"
        "if os.fork() == 0:\n os.setsid()\n signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        " print('child', flush=True)\n signal.pause()\n"
        f"signal.pause()  # {token}"
    )
    command_id = await agent.start(script)
    await agent.hear(command_id, "child")
    assert len(survivors(token)) == 2
    await agent.do("signal_command", command_id=command_id, signal="END")
    with trio.fail_after(20):
        while survivors(token):
            await trio.lowlevel.checkpoint()
