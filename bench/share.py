"""Our share of a call, without HTTP and the SDK: a gateway in this process, with a session of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.rounds import Probe
from broker import app
from broker.calls import Call
from broker.gateway import Gateway
from broker.wiring import lay_foundation
from config.load import load_config
from sandbox.machine.claims import Claims
from tests.support.live import live_folder, write_config


@asynccontextmanager
async def open_share() -> AsyncIterator[Probe]:
    """A probe that runs /bin/true through gateway, session and sandbox, audit included."""
    with live_folder() as base:
        write_config(base, {"logging": {"level": "WARNING"}})
        config = load_config(base / "config")
        with Claims() as claims:
            async with app.open_broker(config, lay_foundation(config, claims)) as broker:
                yield await _probe(broker.gateway, base)


async def _probe(gateway: Gateway, base: Path) -> Probe:
    async def call(tool: str, **arguments: object) -> dict[str, object]:
        asked = Call(tool=tool, arguments=arguments, principal="bench", client="bench", request_id="1")
        answer = await gateway.handle(asked)
        if answer.structured.get("success") is not True:
            raise RuntimeError(f"{tool}: {answer.structured}")
        return answer.structured

    session = (await call("create_session", working_dir=str(base / "ws")))["session_id"]
    return lambda: call("execute_command", session_id=session, argv=["true"])
