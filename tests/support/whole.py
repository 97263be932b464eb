"""A gateway over everything that is real: sessions, walls, files, audit; only HTTP is left out."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from broker.app import Broker, open_broker
from broker.calls import Answer, Call
from broker.gateway import Gateway
from broker.wiring import Foundation, lay_foundation
from config.load import Config, load_config
from sandbox.machine.claims import Claims

POLICY = """
policy:
  allowed_commands:
    cat: {{executable: /bin/cat}}
    python3: {{executable: /usr/bin/python3}}
    sleep: {{executable: /bin/sleep}}
    "true": {{executable: /bin/true}}
  allowed_paths: ["~/**", "{work}/**"]
  blocked_paths: ["**/.ssh/**", "**/secret"]
  file_limits: {{max_read_size: 4096, max_write_size: 8192, blocked_extensions: [exe]}}
"""
URL = "http://127.0.0.1:1"
"""Where a client would have reached it; nothing listens there."""


@attrs.frozen(kw_only=True)
class Whole:
    """One broker without HTTP, and where its things are."""

    broker: Broker
    config: Config
    foundation: Foundation
    work: Path

    @property
    def gateway(self) -> Gateway:
        return self.broker.gateway

    async def answer(self, tool: str, principal: str = "me", **arguments: object) -> Answer:
        call = Call(tool=tool, arguments=arguments, principal=principal, client="test 1", request_id="7", base_url=URL)
        return await self.gateway.handle(call)

    async def ok(self, tool: str, **arguments: object) -> dict[str, Any]:
        answer = await self.answer(tool, **arguments)
        assert not answer.is_error, answer.structured
        return answer.structured

    async def failure(self, tool: str, **arguments: object) -> str:
        """The error_name of a call that must fail."""
        answer = await self.answer(tool, **arguments)
        assert answer.is_error, answer.structured
        return str(answer.structured["error_name"])

    def records(self) -> list[dict[str, Any]]:
        """The audit so far."""
        return [json.loads(line) for line in self.config.server.logging.audit_log.read_text().splitlines()]


@asynccontextmanager
async def open_whole(base: Path, policy: str = POLICY, server: str = "server: {}") -> AsyncIterator[Whole]:
    """A broker with its configuration, logs and a work folder beneath *base*."""
    work = base / "work"
    work.mkdir()
    config_dir = base / "config"
    config_dir.mkdir(mode=0o700)
    (config_dir / "server.yaml").write_text(server)
    (config_dir / "policy.yaml").write_text(policy.format(work=work))
    for path in config_dir.iterdir():
        path.chmod(0o600)
    config = load_config(config_dir)
    with Claims() as claims:
        foundation = lay_foundation(config, claims)
        _let_in(base, work, foundation)
        async with open_broker(config, foundation) as broker:
            yield Whole(broker=broker, config=config, foundation=foundation, work=work)


def _let_in(base: Path, work: Path, foundation: Foundation) -> None:
    """Pytest's folders are private to root; the session user must be able to pass through to its own."""
    if os.getuid() == 0:
        os.chown(work, foundation.user.uid, foundation.user.gid)
        for folder in (base, *base.parents):
            if folder == Path("/tmp"):
                break
            folder.chmod(folder.stat().st_mode | 0o011)
